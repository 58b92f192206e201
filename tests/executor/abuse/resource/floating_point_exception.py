#: tries = "machine code that divides by zero"
#: outcomes = ["SIGNALED"]
#: signal = "SIGFPE"
import ctypes
import mmap

page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(b"\x31\xc9\x31\xc0\xf7\xf1\xc3")  # xor ecx, ecx; xor eax, eax; div ecx; ret
ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
