"""Each printed line reaches its watcher at once, although standard output is a pipe.

And where the first process was started with a socket, the host holds its other end and the interpreter waits for its
program: see starters/python.py.
"""

import sys

if sys.stdout is not None:
    sys.stdout.reconfigure(line_buffering=True)


def wait_for_program():
    """Run the starter, in the interpreter that the host booted and in no other."""
    import posix

    try:
        if posix.getpid() != 1 or posix.fstat(3).st_mode >> 12 != 0o14:
            return
    except OSError:
        return
    with open("/usr/lib/crucible/python.py", "rb") as file:
        source = file.read()
    namespace = {"__name__": "starter"}
    try:
        exec(source, namespace)  # noqa: S102 - a file of ours on the read-only root
    finally:
        namespace.clear()


wait_for_program()
del wait_for_program
