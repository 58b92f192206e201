#: tries = "seeing other processes"
#: stdout = "\\['1'\\] 1 0\n"
import os

print([name for name in os.listdir("/proc") if name.isdigit()], os.getpid(), os.getppid())
