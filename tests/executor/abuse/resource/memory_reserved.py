#: tries = "a terabyte of address space that is never touched"
#: stdout = "(reserved|refused)\n"
import mmap

try:
    mapping = mmap.mmap(-1, 1 << 40, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    mapping[12345] = 1
    print("reserved")
except (OSError, MemoryError):
    print("refused")
