#: tries = "every descriptor of every process"
#: stdout = "EMFILE 32\nEMFILE 32\n"
#: limits = { open_files = 32 }
import errno
import os
import sys


def exhaust():
    try:
        while True:
            os.dup(0)
    except OSError as error:
        print(errno.errorcode[error.errno], os.sysconf("SC_OPEN_MAX"))


exhaust()
sys.stdout.flush()
if os.fork() == 0:
    exhaust()
    sys.stdout.flush()
    os._exit(0)
os.wait()
