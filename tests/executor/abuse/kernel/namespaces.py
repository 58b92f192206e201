#: tries = "new namespaces, and entering others'"
#: stdout = "(unshare EPERM\n){7}setns (EPERM|EINVAL)\nopen (EACCES|ENOENT|EPERM|ok)\n"
from syscalls import attempt, call

for flag in (0x10000000, 0x40000000, 0x00020000, 0x20000000, 0x08000000, 0x04000000, 0x02000000):
    call("unshare", 272, flag)
with open("/proc/self/ns/net") as namespace:
    call("setns", 308, namespace.fileno(), 0)
attempt("open", lambda: open("/proc/1/ns/mnt").close())
