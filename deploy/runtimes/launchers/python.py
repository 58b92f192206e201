"""Waits inside a sandbox for its program: the host boots this, and hands the program in over descriptor 3.

It says `R` when it waits. Then comes one bundle: fields, each an eight-byte big-endian length and so many bytes. A list
is a field with its length in decimal, then its members. In order: processes, open files, argv (a list), environment (a
list of NAME=value), files (a list of path, content, path, content ...). It writes the files, says `G`, and becomes the program.
The descriptor closes in the moment of becoming it, so the program never holds it. A failure before is told as `E` and a text.

It runs before anything of the caller's does, so what it says on the descriptor is trusted until the descriptor closes.
"""

import os
import resource
import sys

CHANNEL = 3
WORK = "/work"


def main() -> None:
    """Wait, lay out, become the program."""
    os.set_inheritable(CHANNEL, False)
    os.write(CHANNEL, b"R")
    try:
        become(open(CHANNEL, "rb", closefd=False))
    except BaseException as error:
        os.write(CHANNEL, b"E" + repr(error).encode()[:1000])
        os._exit(70)


def become(bundle) -> None:
    """Read the bundle and replace this process by its program."""

    def field() -> bytes:
        size = int.from_bytes(exactly(8), "big")
        return exactly(size)

    def exactly(size: int) -> bytes:
        data = bundle.read(size)
        if len(data) != size:
            raise EOFError("the bundle ends early")
        return data

    def fields() -> list[bytes]:
        return [field() for _ in range(int(field()))]

    processes = int(field())
    open_files = int(field())
    argv = fields()
    environment = dict(entry.split(b"=", 1) for entry in fields())
    files = fields()
    for path, data in zip(files[::2], files[1::2]):
        target = os.path.join(WORK.encode(), path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "xb") as out:
            out.write(data)
    os.chdir(WORK)
    resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))
    os.write(CHANNEL, b"G")
    os.execve(argv[0], argv, environment)


if __name__ == "__main__":
    main()
