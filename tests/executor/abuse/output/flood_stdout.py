#: tries = "output as fast as it goes"
#: outcomes = ["OUTPUT_EXCEEDED"]
#: stdout = "x{1048576}"
import os

block = b"x" * (1 << 20)
while True:
    os.write(1, block)
