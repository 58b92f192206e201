#: tries = "memory by data that waits in pipes"
#: outcomes = ["SUCCEEDED", "MEMORY_EXCEEDED"]
#: stdout = "((EMFILE|EPERM|full) [0-9]+\\n)?"
#: limits = { memory_bytes = 33554432, disk_bytes = 8388608 }
import errno
import fcntl
import os

pipes = 0
try:
    while True:
        _, end = os.pipe()
        os.set_blocking(end, False)
        try:
            fcntl.fcntl(end, 1031, 1 << 20)
        except OSError:
            pass
        try:
            while True:
                os.write(end, b"x" * 65536)
        except BlockingIOError:
            pipes += 1
except OSError as error:
    print(errno.errorcode[error.errno], pipes)
