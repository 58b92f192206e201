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
import os
import sys

CHANNEL = 3
WORK = b"/work"


def main():
    """Wait, lay out, then return for the program to begin, or become it."""
    try:
        os.set_inheritable(CHANNEL, False)
        warm_up()
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


def warm_up():
    """Go the way that every program goes, so that the memory it needs is there."""
    # A string: compile() would leave the types of syntax trees behind.
    exec("class Warm:\n    def up(self): return [f'{n}' for n in range(9)]\nWarm().up()", {})  # noqa: S102 - our own words
    for hook in sys.path_hooks:
        try:  # noqa: SIM105 - contextlib is not among the modules that every program finds imported
            hook("/work/main.py")
        except ImportError:
            pass


def receive():
    """Take the bundle and do as it says."""
    import resource

    del sys.modules["resource"], sys.modules["gc"]
    os.write(CHANNEL, b"R")
    with open(CHANNEL, "rb", buffering=0, closefd=False) as channel:
        bundle = channel.readall()
    fields = split(bundle)
    here = next(fields) == b"here"
    processes, open_files = int(next(fields)), int(next(fields))
    argv, environment, files = ([next(fields) for _ in range(int(next(fields)))] for _ in range(3))
    for path, data in zip(files[::2], files[1::2], strict=True):
        target = os.path.join(WORK, path)
        if b"/" in path:
            os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "xb", buffering=0) as out:
            while data:
                data = data[out.write(data) :]
    resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))
    settings = dict(entry.split(b"=", 1) for entry in environment)
    if not here:
        os.chdir(WORK)
        os.write(CHANNEL, b"G")
        os.execve(argv[0], argv, settings)
    os.environb.clear()
    os.environb.update(settings)
    sys.orig_argv[:] = map(os.fsdecode, argv)
    sys.argv[:] = sys.orig_argv[1:]


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
