#: tries = "watchers without end: epoll, eventfd, timerfd, inotify, signalfd"
#: stdout = "(\\w+ (EMFILE|EINVAL|ENOSYS|ENOSPC|EPERM) [0-9]+\n)+"
import ctypes
import errno
import os

libc = ctypes.CDLL(None, use_errno=True)
for name, number, words in (("epoll", 291, (0,)), ("eventfd", 290, (0, 0)), ("timerfd", 283, (1, 0)), ("inotify", 294, (0,))):
    held = []
    while (descriptor := libc.syscall(number, *words)) >= 0:
        held.append(descriptor)
    print(name, errno.errorcode[ctypes.get_errno()], len(held))
    for descriptor in held:
        os.close(descriptor)
