#: tries = "memory by a mapping that is populated at once"
#: outcomes = ["MEMORY_EXCEEDED"]
#: limits = { memory_bytes = 33554432, disk_bytes = 8388608 }
import mmap

mapping = mmap.mmap(-1, 1 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
print("survived")
