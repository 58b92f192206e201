#: tries = "5000 threads with the highest limit that can be asked for"
#: stdout = "511 refused\n"
#: limits = { processes = 512 }
import os
import threading
import time

started = 0
try:
    for _ in range(5000):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        started += 1
except RuntimeError:
    print(started, "refused", flush=True)
os._exit(0)
