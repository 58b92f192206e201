#: tries = "a little output now and then, past its time"
#: outcomes = ["WALL_TIME_EXCEEDED"]
#: stdout = "(\\.)+"
#: limits = { wall_time = 1.2 }
import sys
import time

while True:
    sys.stdout.write(".")
    sys.stdout.flush()
    time.sleep(0.05)
