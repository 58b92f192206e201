#: tries = "leaving files in every place for the next program"
#: stdout = "\\[\\] \\[\\] \\['main.py', 'syscalls.py'\\]\n"
import os

print(sorted(os.listdir("/tmp")), sorted(os.listdir("/dev/shm")), sorted(name for name in os.listdir("/work") if name != "__pycache__"))
for folder in ("/tmp", "/dev/shm", "/work"):
    with open(f"{folder}/left", "w") as file:
        file.write("for you")
