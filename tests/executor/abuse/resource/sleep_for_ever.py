#: tries = "waiting without end, deaf to every signal"
#: outcomes = ["WALL_TIME_EXCEEDED"]
#: stdout = "deaf\n"
#: limits = { wall_time = 1.0 }
import signal
import time

for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
print("deaf", flush=True)
while True:
    time.sleep(1000)
