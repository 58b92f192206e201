#: tries = "what it can see of the machine's size: it is told, and told nothing that it could use"
#: stdout = "[0-9]+ [0-9]+\n"
import os

with open("/proc/meminfo") as meminfo:
    print(os.cpu_count(), int(meminfo.readline().split()[1]))
