#: tries = "a child in a new user namespace, where it would be root: no way out leads from there"
#: stdout = "(EPERM|EINVAL|ENOSYS|in it: 65534 mount (EPERM|EACCES|EINVAL) host (EACCES|EPERM|ENOENT))\n"
import ctypes
import errno
import os

libc = ctypes.CDLL(None, use_errno=True)
pid = libc.syscall(56, 0x10000000 | 0x20000 | 17, 0, 0, 0, 0)
if pid == -1:
    print(errno.errorcode[ctypes.get_errno()])
elif pid == 0:
    mounted = libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)
    why = "ok" if mounted == 0 else errno.errorcode[ctypes.get_errno()]
    try:
        open("/proc/1/root/etc/shadow").close()
        host = "ok"
    except OSError as error:
        host = errno.errorcode[error.errno]
    os.write(1, f"in it: {os.getuid()} mount {why} host {host}\n".encode())
    os._exit(0)
else:
    os.waitpid(pid, 0)
