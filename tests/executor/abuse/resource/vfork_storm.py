#: tries = "children by vfork and clone, one after the other and many at once"
#: stdout = "done\n"
#: limits = { processes = 16 }
import os
import subprocess

for _ in range(10):
    subprocess.run(["/bin/true"], check=True)
for _ in range(30):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
print("done")
