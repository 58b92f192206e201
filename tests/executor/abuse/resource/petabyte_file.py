#: tries = "a file of a petabyte, truncated and allocated"
#: stdout = "truncate EFBIG\nallocate (EFBIG|ENOSPC|EOPNOTSUPP|ENOTSUP)\n"
import errno
import os

descriptor = os.open("big", os.O_CREAT | os.O_RDWR)
for name, do in (
    ("truncate", lambda: os.truncate(descriptor, 10**15)),
    ("allocate", lambda: os.posix_fallocate(descriptor, 0, 10**15)),
):
    try:
        do()
        print(name, "ok")
    except OSError as error:
        print(name, errno.errorcode[error.errno])
