#: tries = "a stack without end"
#: outcomes = ["SIGNALED"]
#: signal = "SIGSEGV"
import ctypes
import sys

sys.setrecursionlimit(1 << 30)
callback = None


def again():
    return callback()


callback = ctypes.CFUNCTYPE(ctypes.c_int)(again)
callback()
