"""Names in the object store."""


def output(evaluation_id: str, run: str, stream: str) -> str:
    """The whole of a stream (`stdout`, `stderr`) that was too long to be sent live."""
    return f"outputs/{evaluation_id}/{run}/{stream}"


def program(sha256: str) -> str:
    """A serialized `Program` too large for its job."""
    return f"inputs/sha256/{sha256}"
