#: tries = "making its output non-blocking and filling it"
#: outcomes = ["SUCCEEDED", "OUTPUT_EXCEEDED"]
#: stdout = "x+"
import os

os.set_blocking(1, False)
for _ in range(2000):
    try:
        os.write(1, b"x" * 4096)
    except BlockingIOError:
        pass
