#: tries = "a file of the host's that anybody may read and write, by its path and by every root it can name"
#: stdout = "(ENOENT\n)+"
import errno
import os

path = os.environ["CANARY"]
for root in ("", "/proc/1/root", "/proc/self/root", "/proc/self/cwd/../../../../../..", "/host", "/mnt", "/rootfs"):
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_TRUNC):
        try:
            os.open(root + path, flags)
            print("opened", root + path)
        except OSError as error:
            print(errno.errorcode[error.errno])
