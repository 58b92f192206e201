"""Fields of the contract as the command line spells them, so that an error names what was typed."""

from __future__ import annotations

import re

from crucible_client.cli.units import show_bytes

_OF_EVALUATION = {
    "runtime": "--runtime",
    "source": "FILE",
    "entrypoint": "FILE",
    "files": "--file",
    "args": "ARGUMENT",
    "env": "--env",
    "stdin": "--stdin",
    "stdin_bytes": "--stdin",
    "labels": "--label",
    "display_name": "--name",
    "priority": "--priority",
}
_OF_REQUESTS = {
    "id": "ID",
    "evaluation_id": "ID",
    "request_id": "--request-id",
    "filter": "--filter",
    "after_sequence": "--after",
    "offset": "--offset",
    "limit": "--limit",
}
_LIMIT = re.compile(r"evaluation\.limits\.(\w+)")
_FIELD = re.compile(r"(?:evaluation\.)?(\w+)(?:\[(.*)\])?", re.DOTALL)
_FIGURE = re.compile(r"\d{4,}")


def as_typed(field: str) -> str:
    """`evaluation.limits.memory_bytes` as `--limit memory_bytes`; what has no spelling of ours stays as it is."""
    if limit := _LIMIT.fullmatch(field):
        return f"--limit {limit[1]}"
    found = _FIELD.match(field)
    if found is None:
        return field
    name, subscript = found[1], found[2]
    word = (_OF_EVALUATION if field.startswith("evaluation.") else _OF_REQUESTS).get(name)
    if word is None:
        return field
    if not subscript:
        return word
    if not subscript.isdecimal():
        key = subscript.strip('"')
        return f"{word} {key}"
    if name == "files":
        # The program's own file is the first.
        return f"{word} number {subscript}" if subscript != "0" else "FILE"
    return f"{word} {int(subscript) + 1}"


def in_units(field: str, description: str) -> str:
    """A rule about bytes in the units that the command line takes: `67108864` as `64.0 MiB`."""
    if not field.endswith("_bytes"):
        return description
    return _FIGURE.sub(lambda found: show_bytes(int(found[0])), description)
