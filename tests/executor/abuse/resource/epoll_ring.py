#: tries = "epoll instances that watch each other"
#: stdout = "ELOOP\n"
import errno
import select

first, second = select.epoll(), select.epoll()
first.register(second.fileno(), select.EPOLLIN)
try:
    second.register(first.fileno(), select.EPOLLIN)
    print("ok")
except OSError as error:
    print(errno.errorcode[error.errno])
