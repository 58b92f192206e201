#: tries = "empty files without end, which no size bounds"
#: outcomes = ["WALL_TIME_EXCEEDED", "SUCCEEDED", "MEMORY_EXCEEDED", "CPU_TIME_EXCEEDED"]
#: stdout = "([A-Z]+\n)?"
#: limits = { wall_time = 2.5, memory_bytes = 33554432, disk_bytes = 8388608 }
import errno

number = 0
try:
    while True:
        open(f"/tmp/{number}", "w").close()
        number += 1
except OSError as error:
    print(errno.errorcode[error.errno])
