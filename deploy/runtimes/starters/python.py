"""Waits inside a sandbox for its program: the host boots this, and hands the program in over descriptor 3.

The host starts `python3 main.py`, as it would start any program, while there is no main.py yet. Python sets itself up
and imports `site`, that imports `sitecustomize`, and that runs this file. So what waits is the very interpreter that
will run the program, one step before it opens main.py. Once this returns, Python does what it always does: no line of
ours imitates it.

It says `R` when it waits. Then comes one bundle and the end of the stream: fields, each an eight-byte big-endian length
and so many bytes. A list is a field with its length in decimal, then its members. In order: `here` or `exec`,
processes, open files, argv (a list), environment (a list of NAME=value), files (a list of path, content, path, content
...). It writes the files and says `G`. Then either it closes the descriptor and returns, or it becomes a new
interpreter, which is right for all that Python reads only when it starts. A failure before is told as `E` and a text.

It runs before anything of the caller's does, so what it says on the descriptor is trusted until the descriptor closes.
What it imports, it forgets again: the program finds nothing of it in `sys.modules`, in memory or among its descriptors.
"""

import gc
import io
import os
import sys

CHANNEL = 3
WORK = b"/work"


def main():
    """Wait, lay out, then return for the program to begin, or become it."""
    try:
        os.set_inheritable(CHANNEL, False)
        rehearse()
        # What is made from here on stays in the youngest generation, so that forgetting it costs little.
        gc.collect()
        gc.disable()
        receive()
        gc.collect(0)
        gc.enable()
    except BaseException as error:
        os.write(CHANNEL, b"E" + repr(error).encode()[:1000])
        os._exit(70)
    os.write(CHANNEL, b"G")
    os.close(CHANNEL)


def rehearse():
    """Go the way that every program goes, so that all memory on it was touched once."""
    script = b"class A:\n    def f(self): return [f'{n}' for n in range(9)]\nprint(*A().f(), file=out, flush=True)"
    parts = (b"here", b"1", b"1", b"1", b"python3", b"1", b"NAME=value", b"2", b"rehearsal.py", script)
    bundle = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    _, _, _, _, _, files = unpack(bundle)
    write(b"/tmp", files)
    with open("/tmp/rehearsal.py", encoding="utf-8") as file:  # noqa: S108 - same
        # A string: compile() would leave the types of syntax trees behind.
        exec(file.read(), {"out": io.TextIOWrapper(io.BytesIO(), "utf-8", line_buffering=True)})  # noqa: S102 - ours
    os.unlink("/tmp/rehearsal.py")  # noqa: S108 - same
    os.environb.update(os.environb)
    for search in (
        lambda: __import__("usercustomize"),
        *(lambda hook=hook: hook("/work/main.py") for hook in sys.path_hooks),
    ):
        try:  # noqa: SIM105 - contextlib is not among the modules that every program finds imported
            search()
        except ImportError:
            pass


def receive():
    """Take the bundle and do as it says."""
    import resource

    del sys.modules["resource"], sys.modules["gc"]
    os.write(CHANNEL, b"R")
    with open(CHANNEL, "rb", buffering=0, closefd=False) as channel:
        how, processes, open_files, argv, environment, files = unpack(channel.readall())
    write(WORK, files)
    resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))
    if how != b"here":
        os.write(CHANNEL, b"G")
        os.execve(argv[0], argv, environment)
    os.environb.clear()
    os.environb.update(environment)
    sys.orig_argv[:] = map(os.fsdecode, argv)
    sys.argv[:] = sys.orig_argv[1:]


def unpack(bundle):
    """How to run it, processes, open files, argv, environment and files of a bundle."""
    fields = split(bundle)
    how, processes, open_files = next(fields), int(next(fields)), int(next(fields))
    argv, environment, files = ([next(fields) for _ in range(int(next(fields)))] for _ in range(3))
    settings = dict(entry.split(b"=", 1) for entry in environment)
    return how, processes, open_files, argv, settings, list(zip(files[::2], files[1::2], strict=True))


def write(folder, files):
    """Place files, and the folders they need."""
    for path, data in files:
        target = os.path.join(folder, path)
        if b"/" in path:
            os.makedirs(os.path.dirname(target), exist_ok=True)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        while data:
            data = data[os.write(descriptor, data) :]
        os.close(descriptor)


def split(bundle):
    """The fields of a bundle, one after the other."""
    at = 0
    while at < len(bundle):
        start = at + 8
        at = start + int.from_bytes(bundle[at:start], "big")
        if at > len(bundle):
            raise EOFError("the bundle ends early")
        yield bundle[start:at]


main()
