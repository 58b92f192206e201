#: tries = "all memory in one process"
#: outcomes = ["MEMORY_EXCEEDED"]
#: limits = { memory_bytes = 33554432, disk_bytes = 8388608 }
held = []
while True:
    held.append(bytearray(1 << 20))
