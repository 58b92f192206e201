#: tries = "memory by files in /dev/shm, /tmp and /work"
#: outcomes = ["MEMORY_EXCEEDED"]
#: limits = { memory_bytes = 16777216, disk_bytes = 33554432 }
for folder in ("/dev/shm", "/tmp", "/work"):
    with open(f"{folder}/big", "wb", buffering=0) as file:
        for _ in range(31):
            file.write(b"x" * (1 << 20))
print("survived")
