#: tries = "its first thread ends with 0 while another decides how it ends"
#: outcomes = ["NONZERO_EXIT"]
#: exit_code = 7
import ctypes
import os
import threading
import time

threading.Thread(target=lambda: (time.sleep(0.2), os._exit(7))).start()
ctypes.CDLL(None).syscall(60, 0)
