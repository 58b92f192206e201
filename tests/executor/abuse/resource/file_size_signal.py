#: tries = "a write beyond the largest file, with the signal's default action restored"
#: outcomes = ["SIGNALED", "SUCCEEDED"]
#: signal = "SIGXFSZ"
#: stdout = "(EFBIG\n)?"
#: limits = { disk_bytes = 1048576 }
import os
import signal

signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
descriptor = os.open("big", os.O_CREAT | os.O_RDWR)
try:
    os.pwrite(descriptor, b"x", 1 << 40)
except OSError:
    print("EFBIG")
