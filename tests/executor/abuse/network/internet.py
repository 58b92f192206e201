#: tries = "the internet, by address, over TCP, UDP and ICMP"
#: stdout = "(\\S+ (ENETUNREACH|EHOSTUNREACH|EPERM|EACCES|EADDRNOTAVAIL|ECONNREFUSED|EAFNOSUPPORT)\n)+"
import socket

from syscalls import attempt


def tcp(family, address, port):
    with socket.socket(family) as client:
        client.settimeout(2)
        client.connect((address, port))


def udp(address, port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(2)
        client.sendto(b"x", (address, port))
        client.recv(10)


for address, port in (("1.1.1.1", 443), ("8.8.8.8", 53), ("10.0.0.1", 80), ("172.17.0.1", 2375), ("192.168.0.1", 80), ("100.64.0.1", 80)):
    attempt(f"{address}:{port}", lambda address=address, port=port: tcp(socket.AF_INET, address, port))
attempt("2606:4700::1111", lambda: tcp(socket.AF_INET6, "2606:4700:4700::1111", 443))
attempt("udp", lambda: udp("8.8.8.8", 53))
attempt("broadcast", lambda: udp("255.255.255.255", 67))
attempt("multicast", lambda: udp("224.0.0.251", 5353))
