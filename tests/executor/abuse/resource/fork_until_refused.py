#: tries = "as many processes as there may be"
#: stdout = "EAGAIN 19\n"
#: limits = { processes = 20 }
import errno
import os
import time

children = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        children += 1
except OSError as error:
    print(errno.errorcode[error.errno], children)
