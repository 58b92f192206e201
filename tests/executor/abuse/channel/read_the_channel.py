#: tries = "reading and writing the descriptor by which it was delivered"
#: stdout = "read EBADF\nwrite EBADF\n"
import os

from syscalls import attempt

attempt("read", lambda: os.read(3, 10))
attempt("write", lambda: os.write(3, b"x"))
