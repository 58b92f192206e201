#: tries = "a signal every microsecond"
#: outcomes = ["WALL_TIME_EXCEEDED", "CPU_TIME_EXCEEDED", "SUCCEEDED"]
#: limits = { wall_time = 2.0 }
import signal
import time

count = 0


def handler(number, frame):
    global count
    count += 1


signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 1e-6, 1e-6)
end = time.monotonic() + 1
while time.monotonic() < end:
    pass
signal.setitimer(signal.ITIMER_REAL, 0)
