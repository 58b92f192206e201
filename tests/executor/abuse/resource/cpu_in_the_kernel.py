#: tries = "all CPU time in system calls"
#: outcomes = ["CPU_TIME_EXCEEDED"]
#: limits = { cpu_time = 0.6 }
import os

while True:
    os.getppid()
