#: tries = "memory by data that waits in sockets"
#: outcomes = ["SUCCEEDED", "MEMORY_EXCEEDED"]
#: stdout = "(EMFILE [0-9]+\\n)?"
import errno
import socket

held = []
try:
    while True:
        pair = socket.socketpair()
        held.append(pair)
        pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)
        pair[0].setblocking(False)
        try:
            while True:
                pair[0].send(b"x" * 65536)
        except BlockingIOError:
            pass
except OSError as error:
    print(errno.errorcode[error.errno], len(held))
