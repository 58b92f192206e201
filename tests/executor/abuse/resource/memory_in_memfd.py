#: tries = "memory by anonymous files, which no tmpfs size bounds; one file has a bound of its own"
#: outcomes = ["MEMORY_EXCEEDED"]
#: limits = { memory_bytes = 33554432, disk_bytes = 8388608 }
import os

for number in range(16):
    held = os.memfd_create(str(number))
    for _ in range(15):
        os.write(held, b"x" * (1 << 20))
print("survived")
