#: tries = "personality, priorities, real-time scheduling, locked memory"
#: stdout = "personality \\w+\nnice (EPERM|EACCES|ok)\nfifo (EPERM|EINVAL|ok)\nmlockall \\w+\noom (EACCES|EPERM|ok)\n"
import os

from syscalls import attempt, call

call("personality", 135, 0x0040000)
attempt("nice", lambda: os.setpriority(os.PRIO_PROCESS, 0, -20))
attempt("fifo", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99)))
call("mlockall", 151, 3)


def oom():
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("-1000")


attempt("oom", oom)
