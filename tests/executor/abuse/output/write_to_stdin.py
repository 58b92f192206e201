#: tries = "writing to its input and reading from its output"
#: stdin = "abc"
#: stdout = "stdin (EBADF|ok|EPERM|EINVAL)\nstdout (EBADF|EPERM|EINVAL)\n"
import os

from syscalls import attempt

attempt("stdin", lambda: os.write(0, b"x"))
attempt("stdout", lambda: os.read(1, 1))
