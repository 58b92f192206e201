#: tries = "a signal handler that has no stack to run on"
#: outcomes = ["SIGNALED"]
#: signal = "SIGSEGV"
import ctypes
import mmap

page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(b"\x48\x31\xe4\x50\xc3")  # xor rsp, rsp; push rax
ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
