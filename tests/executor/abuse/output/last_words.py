#: tries = "a last word just before it is killed by itself"
#: outcomes = ["SIGNALED"]
#: signal = "SIGKILL"
#: stdout = "x{60000}last"
import os
import signal

os.write(1, b"x" * 60000)
os.write(1, b"last")
os.kill(os.getpid(), signal.SIGKILL)
