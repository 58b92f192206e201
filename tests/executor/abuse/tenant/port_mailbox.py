#: tries = "a port on the loopback that a program beside it could find"
#: stdout = "alone\n"
import socket
import time

beside = socket.socket().connect_ex(("127.0.0.1", 4321)) == 0
server = socket.create_server(("0.0.0.0", 4321))
server.settimeout(0.7)
try:
    server.accept()
    print("somebody came")
except TimeoutError:
    print("somebody was there" if beside else "alone")
