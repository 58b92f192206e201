#: tries = "a server and a client of its own: allowed, and its own alone"
#: stdout = "b'ping' 127.0.0.1\n\\['lo'\\]\n"
import socket
import threading

server = socket.create_server(("127.0.0.1", 0))


def serve():
    connection, _ = server.accept()
    connection.sendall(connection.recv(100))
    connection.close()


threading.Thread(target=serve).start()
with socket.create_connection(server.getsockname()) as client:
    client.sendall(b"ping")
    print(client.recv(100), client.getpeername()[0])
print([name for _, name in socket.if_nameindex()])
