"""System calls by number, for tricks: each prints its name and how it was answered."""

import ctypes
import errno

libc = ctypes.CDLL(None, use_errno=True)


def call(name, number, *words):
    """Make one; prints `name ok` or `name EPERM`."""
    ctypes.set_errno(0)
    typed = [ctypes.c_long(word) if isinstance(word, int) else word for word in words]
    result = libc.syscall(ctypes.c_long(number), *typed)
    print(name, "ok" if result != -1 else errno.errorcode[ctypes.get_errno()], flush=True)
    return result


def attempt(name, do):
    """Do something that may raise OSError; prints the same."""
    try:
        result = do()
    except OSError as error:
        print(name, errno.errorcode.get(error.errno, error.errno), flush=True)
        return None
    print(name, "ok", flush=True)
    return result
