#: tries = "a set-user-id program, its own and those of the image"
#: stdout = "set-uid files: \\[\\]\n65534\n"
import os
import shutil
import stat
import subprocess

found = []
for folder in ("/bin", "/usr/bin", "/usr/sbin", "/usr/lib"):
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            try:
                if os.lstat(path).st_mode & (stat.S_ISUID | stat.S_ISGID) and os.path.isfile(path):
                    found.append(path)
            except OSError:
                pass
print("set-uid files:", found)
shutil.copy("/usr/bin/id", "/tmp/id")
os.chmod("/tmp/id", 0o4755)
print(subprocess.run(["/tmp/id", "-u"], capture_output=True, text=True).stdout.strip())
