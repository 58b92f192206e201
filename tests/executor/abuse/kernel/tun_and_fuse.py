#: tries = "device nodes that a sandbox has although it cannot use them"
#: stdout = "tun (EACCES|EPERM|ENOENT|EINVAL|ENODEV|ENXIO)\nfuse (EPERM|EACCES|ENOENT|ENXIO|ENODEV)\n"
import ctypes
import fcntl
import os

from syscalls import attempt, libc


def tun():
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(descriptor, 0x400454CA, b"tun0".ljust(16, b"\0") + (0x1001).to_bytes(2, "little") + b"\0" * 22)


def fuse():
    descriptor = os.open("/dev/fuse", os.O_RDWR)
    if libc.mount(b"x", b"/tmp", b"fuse", 0, f"fd={descriptor},rootmode=40000,user_id=0,group_id=0".encode()) != 0:
        raise OSError(ctypes.get_errno(), "mount")


attempt("tun", tun)
attempt("fuse", fuse)
