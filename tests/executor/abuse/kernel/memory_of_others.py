#: tries = "reading and writing the memory of processes that it can name"
#: stdout = "read (ESRCH|EPERM|EFAULT)\nmem (ENOENT|EACCES|EPERM)\n"
import ctypes

from syscalls import attempt, call

buffer = ctypes.create_string_buffer(8)


class Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


local = Iovec(ctypes.addressof(buffer), 8)
remote = Iovec(0x400000, 8)
call("read", 310, 4321, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
attempt("mem", lambda: open("/proc/4321/mem", "rb").close())
