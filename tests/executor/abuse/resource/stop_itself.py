#: tries = "stopping itself, so that nothing is left to be signalled"
#: outcomes = ["WALL_TIME_EXCEEDED"]
#: stdout = "stops\n"
#: limits = { wall_time = 1.0 }
import os
import signal

print("stops", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
print("went on", flush=True)
