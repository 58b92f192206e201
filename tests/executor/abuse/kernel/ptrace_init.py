#: tries = "tracing its own children: it may, and reaches nothing else"
#: stdout = "traceme ok\nattach (EPERM|ESRCH)\n"
import os

from syscalls import call

if os.fork() == 0:
    call("traceme", 101, 0, 0, 0, 0)
    os._exit(0)
os.wait()
call("attach", 101, 16, 0x7FFFFFF0 & 0xFFFF, 0, 0)
