#: tries = "threads that run on when it ends"
#: outcomes = ["NONZERO_EXIT"]
#: exit_code = 9
import os
import threading

for _ in range(8):
    threading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start()
os._exit(9)
