#: tries = "folders 3000 deep"
#: stdout = "(3000|[A-Z]+ [0-9]+)\n"
import errno
import os

depth = 0
try:
    for _ in range(3000):
        os.mkdir("d")
        os.chdir("d")
        depth += 1
    print(depth)
except OSError as error:
    print(errno.errorcode[error.errno], depth)
