#: tries = "listening on every port of the host"
#: stdout = "[0-9]+\n"
#: limits = { open_files = 1024 }
import socket

held = []
for port in (22, 80, 443, 1080, 4222, 5432, 8080, 8081, 8082, 8083, 9090, *range(20000, 20200)):
    try:
        held.append(socket.create_server(("0.0.0.0", port)))
    except OSError:
        pass
print(len(held))
