#: tries = "learning on which machine it runs"
#: stdout = "sandbox\nLinux sandbox 4\\.[0-9.]+ .*\nnone\n"
import os
import platform
import socket

print(socket.gethostname())
print(" ".join(platform.uname()))
told = [path for path in ("/etc/machine-id", "/sys/class/dmi/id/product_uuid", "/sys/class/dmi/id/product_name", "/proc/device-tree", "/var/lib/dbus/machine-id") if os.path.exists(path) and os.path.isfile(path) and open(path).read().strip()]
print(told or "none")
