#: tries = "SIGKILL to every process that it can see"
#: outcomes = ["SUCCEEDED", "SIGNALED"]
#: signal = "SIGKILL"
#: stdout = "(alive\n)?"
import os
import signal

try:
    os.kill(-1, signal.SIGKILL)
except OSError:
    pass
print("alive", flush=True)
