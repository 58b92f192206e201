#: tries = "a mailbox under an abstract name that a program beside it could find"
#: stdout = "alone\n"
import socket
import time

client = socket.socket(socket.AF_UNIX)
beside = client.connect_ex("\0mailbox") == 0
server = socket.socket(socket.AF_UNIX)
server.bind("\0mailbox")
server.listen()
server.settimeout(0.7)
try:
    server.accept()
    print("somebody came")
except TimeoutError:
    print("somebody was there" if beside else "alone")
