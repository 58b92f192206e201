#: tries = "all CPU time, on all cores"
#: outcomes = ["CPU_TIME_EXCEEDED"]
#: limits = { cpu_time = 0.6 }
import os

for _ in range(3):
    os.fork()
while True:
    pass
