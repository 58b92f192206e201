#: tries = "more descriptors in flight than a process may hold, in rings that only a collector could free"
#: stdout = "[0-9]+\n"
#: limits = { open_files = 128 }
import array
import socket

rounds = 0
try:
    for _ in range(2000):
        one, two = socket.socketpair()
        one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [one.fileno(), two.fileno()]))])
        one.close()
        two.close()
        rounds += 1
except OSError:
    pass
print(rounds)
