#: tries = "opening its output again, for reading too"
#: stdout = "written\nagain\n(read|refused)\n"
import os

os.write(1, b"written\n")
try:
    again = os.open("/proc/self/fd/1", os.O_WRONLY)
    os.write(again, b"again\n")
except OSError:
    os.write(1, b"again\n")
try:
    os.read(1, 1)
    os.write(1, b"read\n")
except OSError:
    os.write(1, b"refused\n")
