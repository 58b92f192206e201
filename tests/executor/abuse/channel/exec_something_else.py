#: tries = "becoming another program, from a thread"
#: outcomes = ["NONZERO_EXIT"]
#: exit_code = 11
import os
import threading
import time

threading.Thread(target=lambda: os.execv("/bin/sh", ["sh", "-c", "exit 11"])).start()
time.sleep(9)
