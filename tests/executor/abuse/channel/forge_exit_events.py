#: tries = "telling the host by every socket type it has that it ended well"
#: outcomes = ["NONZERO_EXIT"]
#: exit_code = 4
#: stdout = "no way\n"
import glob
import os
import socket

reached = False
for kind in (socket.SOCK_SEQPACKET, socket.SOCK_STREAM, socket.SOCK_DGRAM):
    for path in ("/run/crucible/events.sock", "events.sock", "\0events.sock", *glob.glob("/**/events.sock", recursive=False)):
        with socket.socket(socket.AF_UNIX, kind) as client:
            reached = reached or client.connect_ex(path) == 0
print("reached" if reached else "no way", flush=True)
os._exit(4)
