#: tries = "150 processes that end while it does: only the first process's end counts"
#: outcomes = ["NONZERO_EXIT"]
#: exit_code = 42
import os

for number in range(150):
    pid = os.fork()
    if pid == 0:
        os._exit(number % 256)
    os.waitpid(pid, 0)
os._exit(42)
