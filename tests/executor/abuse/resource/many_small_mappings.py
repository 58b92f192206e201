#: tries = "100,000 mappings"
#: outcomes = ["SUCCEEDED", "MEMORY_EXCEEDED", "CPU_TIME_EXCEEDED", "WALL_TIME_EXCEEDED"]
#: stdout = "([0-9]+\n)?"
#: limits = { wall_time = 3.0 }
import mmap

held = []
try:
    for number in range(100_000):
        protection = mmap.PROT_READ if number % 2 else mmap.PROT_READ | mmap.PROT_WRITE
        held.append(mmap.mmap(-1, 4096, prot=protection))
except (OSError, MemoryError):
    pass
print(len(held))
