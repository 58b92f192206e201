#: tries = "timers without end"
#: stdout = "(EAGAIN|ENOMEM|ok) [0-9]+\n"
import ctypes
import errno

libc = ctypes.CDLL(None, use_errno=True)
identity = ctypes.c_int()
made = 0
while made < 20_000 and libc.syscall(222, 1, None, ctypes.byref(identity)) == 0:
    made += 1
print("ok" if made == 20_000 else errno.errorcode[ctypes.get_errno()], made)
