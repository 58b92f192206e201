#: tries = "thousands of writes to descriptors beyond its own"
#: stdout = ""
import os

for _ in range(5_000):
    for descriptor in (3, 4, 5):
        try:
            os.write(descriptor, b"G" * 100)
        except OSError:
            pass
