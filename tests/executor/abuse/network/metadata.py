#: tries = "the metadata services of clouds"
#: stdout = "(\\S+ (ENETUNREACH|EHOSTUNREACH|EAFNOSUPPORT|EADDRNOTAVAIL)\n){4}"
import socket

from syscalls import attempt


def connect(family, address, port):
    with socket.socket(family) as client:
        client.settimeout(2)
        client.connect((address, port))


for family, address in ((socket.AF_INET, "169.254.169.254"), (socket.AF_INET6, "fd00:ec2::254"), (socket.AF_INET, "169.254.170.2"), (socket.AF_INET, "100.100.100.200")):
    attempt(address, lambda family=family, address=address: connect(family, address, 80))
