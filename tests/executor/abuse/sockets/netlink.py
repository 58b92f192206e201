#: tries = "changing addresses and routes"
#: stdout = "address (EPERM|EOPNOTSUPP|EACCES)\nlink (EPERM|EOPNOTSUPP|EACCES)\n"
import socket
import struct

from syscalls import attempt


def ask(kind, body):
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.bind((0, 0))
        netlink.send(struct.pack("=IHHII", 16 + len(body), kind, 1 | 4 | 0x400, 1, 0) + body)
        answer = netlink.recv(4096)
        (code,) = struct.unpack_from("=i", answer, 16)
        if code:
            raise OSError(-code, "netlink")


attempt("address", lambda: ask(20, struct.pack("=BBBBI", 2, 8, 0, 0, 1) + struct.pack("=HH4s", 8, 2, bytes([10, 0, 0, 1]))))
attempt("link", lambda: ask(16, struct.pack("=BBHiII", 0, 0, 0, 0, 0, 0) + struct.pack("=HH8s", 12, 3, b"veth0\0\0\0")))
