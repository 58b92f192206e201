#: tries = "names that are too long, or strange"
#: stdout = "ENAMETOOLONG ENAMETOOLONG 3\n"
import errno
import os


def fails(path):
    try:
        open(path, "w").close()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"


first, second = fails("x" * 256), fails("/work/" + "y/" * 2100)
open(b"\xff\n*", "w").close()
print(first, second, len(os.listdir(b".")))
