#: tries = "socket families beside those of a loopback"
#: stdout = "(\\w+ (EAFNOSUPPORT|EPERM|EACCES|EPROTONOSUPPORT|ESOCKTNOSUPPORT|EINVAL)\n)+"
import socket

from syscalls import attempt

for name, family, kind, protocol in (
    ("packet", 17, socket.SOCK_RAW, 0x0300),
    ("packet_dgram", 17, socket.SOCK_DGRAM, 0x0300),
    ("raw_icmp", socket.AF_INET, socket.SOCK_RAW, 1),
    ("raw_tcp", socket.AF_INET, socket.SOCK_RAW, 6),
    ("raw6", socket.AF_INET6, socket.SOCK_RAW, 58),
    ("vsock", 40, socket.SOCK_STREAM, 0),
    ("alg", 38, socket.SOCK_SEQPACKET, 0),
    ("can", 29, socket.SOCK_RAW, 1),
    ("xdp", 44, socket.SOCK_RAW, 0),
    ("tipc", 30, socket.SOCK_STREAM, 0),
    ("kcm", 41, socket.SOCK_DGRAM, 0),
    ("bluetooth", 31, socket.SOCK_RAW, 1),
    ("netfilter", 16, socket.SOCK_RAW, 12),
    ("audit", 16, socket.SOCK_RAW, 9),
):
    attempt(name, lambda family=family, kind=kind, protocol=protocol: socket.socket(family, kind, protocol).close())
