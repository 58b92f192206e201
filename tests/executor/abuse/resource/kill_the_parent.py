#: tries = "killing its parent, its group and low process ids"
#: outcomes = ["SUCCEEDED", "SIGNALED"]
#: stdout = ".*"
#: signal = "SIGKILL"
import os
import signal

print("parent", os.getppid(), flush=True)
for pid in (os.getppid(), 0xFFFF, 2, 3):
    if pid > 1:
        try:
            os.kill(pid, signal.SIGKILL)
            print("killed", pid, flush=True)
        except OSError:
            pass
