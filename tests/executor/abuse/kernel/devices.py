#: tries = "the machine's devices, present or made"
#: stdout = "(/dev/[a-z/0-9-]+ (ENOENT|EACCES|EPERM|ENXIO|ENODEV)\n)+mknod \\w+\nread (EACCES|EPERM|ENXIO|ENOENT|ENODEV|EIO)\n"
import os
import stat

from syscalls import attempt

for name in ("sda", "sda1", "vda", "nvme0n1", "kvm", "mem", "kmem", "port", "nvidia0", "dri/card0", "loop0", "loop-control", "mapper/control", "vfio/vfio", "vhost-net", "kmsg", "sg0", "uinput"):
    attempt(f"/dev/{name}", lambda name=name: os.close(os.open(f"/dev/{name}", os.O_RDWR)))
attempt("mknod", lambda: os.mknod("/tmp/disk", stat.S_IFBLK | 0o666, os.makedev(254, 0)))
attempt("read", lambda: os.close(os.open("/tmp/disk", os.O_RDWR)))
