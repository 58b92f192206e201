#: tries = "closing all descriptors, the one it came by among them"
#: outcomes = ["SUCCEEDED"]
#: stdout = "before\n"
import os

print("before", flush=True)
os.closerange(0, 1024)
os._exit(0)
