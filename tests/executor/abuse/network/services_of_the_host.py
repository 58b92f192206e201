#: tries = "the host's own services on its loopback: the gateway, NATS, PostgreSQL, ssh"
#: stdout = "0 reached\n"
import socket

reached = 0
for port in (22, 80, 111, 443, 2375, 2379, 4222, 4317, 5432, 6379, 6443, *range(8080, 8100), 10250):
    for address in ("127.0.0.1", "127.0.0.53", "localhost"):
        with socket.socket() as client:
            client.settimeout(1)
            reached += client.connect_ex((address, port)) == 0
print(reached, "reached")
