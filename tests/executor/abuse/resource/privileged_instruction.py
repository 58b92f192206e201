#: tries = "an instruction that only a kernel may use"
#: outcomes = ["SIGNALED"]
#: signal = "SIGSEGV"
import ctypes
import mmap

page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(b"\xf4\xc3")  # hlt
ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
