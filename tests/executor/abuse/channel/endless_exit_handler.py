#: tries = "never coming to its end"
#: outcomes = ["WALL_TIME_EXCEEDED"]
#: stdout = "end\n"
#: limits = { wall_time = 1.0 }
import atexit
import time


def again():
    atexit.register(again)
    time.sleep(0.01)


print("end", flush=True)
atexit.register(again)
atexit.register(lambda: [time.sleep(1) for _ in iter(int, 1)])
