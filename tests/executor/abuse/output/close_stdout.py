#: tries = "closing its output early and going on"
#: outcomes = ["NONZERO_EXIT"]
#: exit_code = 5
#: stdout = "first\n"
import os
import time

os.write(1, b"first\n")
os.close(1)
os.close(2)
time.sleep(0.3)
os._exit(5)
