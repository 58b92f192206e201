#: tries = "a real SIGKILL of its own, which is no limit"
#: outcomes = ["SIGNALED"]
#: signal = "SIGKILL"
import os
import signal

os.kill(os.getpid(), signal.SIGKILL)
