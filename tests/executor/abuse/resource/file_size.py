#: tries = "a file larger than the disk, as a sparse one"
#: stdout = "(EFBIG|ENOSPC) [0-9]+\n"
#: limits = { disk_bytes = 8388608 }
import errno
import os

descriptor = os.open("sparse", os.O_CREAT | os.O_RDWR)
offset = 0
try:
    while True:
        os.pwrite(descriptor, b"x", offset)
        offset += 1 << 20
except OSError as error:
    print(errno.errorcode[error.errno], offset >> 20)
