#: tries = "all memory in children, so that another process is killed"
#: outcomes = ["MEMORY_EXCEEDED"]
#: limits = { memory_bytes = 33554432, disk_bytes = 8388608 }
import os

for _ in range(4):
    if os.fork() == 0:
        held = bytearray(1 << 30)
        os._exit(0)
for _ in range(4):
    os.wait()
print("survived")
