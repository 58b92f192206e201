#: tries = "changing the interpreter for whoever comes next: nobody does"
#: stdout = "poisoned\n"
import builtins
import os
import sys

print("poisoned", flush=True)
for folder in ("/usr/lib/python3.11", "/usr/lib/python3/dist-packages", "/work/.local/lib/python3.11/site-packages"):
    try:
        os.makedirs(folder, exist_ok=True)
        with open(f"{folder}/sitecustomize.py", "w") as file:
            file.write("raise SystemExit('poisoned')")
    except OSError:
        pass
builtins.print = None
sys.modules.clear()
os._exit(0)
