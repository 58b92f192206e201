#: tries = "the host's sockets by abstract name and by path"
#: stdout = "(\\S+ (ECONNREFUSED|ENOENT|EACCES|EPERM)\n)+"
import socket

from syscalls import attempt


def connect(address):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address)


for name in ("\0/tmp/.X11-unix/X0", "\0/containerd-shim/x", "/run/docker.sock", "/var/run/docker.sock", "/run/containerd/containerd.sock", "/run/systemd/private", "/run/dbus/system_bus_socket", "/run/crucible/lock"):
    attempt(repr(name).replace(" ", ""), lambda name=name: connect(name))
