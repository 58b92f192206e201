#: tries = "ten thousand writes of one byte"
#: stdout = "x{10000}"
import os

for _ in range(10_000):
    os.write(1, b"x")
