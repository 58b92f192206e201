#: tries = "interfaces that have been ways into kernels"
#: stdout = "(\\w+ (EPERM|ENOSYS|ENODEV|EOPNOTSUPP|EACCES|EINVAL|ENOTSUP|EBADF)\n){17}"
from syscalls import call

call("bpf", 321, 0, b"\0" * 64, 64)
call("io_uring_setup", 425, 1, b"\0" * 120)
call("io_uring_enter", 426, 0, 0, 0, 0, 0, 0)
call("userfaultfd", 323, 0)
call("perf_event_open", 298, b"\0" * 128, 0, -1, -1, 0)
call("keyctl", 250, 0, -3, 1)
call("add_key", 248, b"user", b"x", b"x", 1, -3)
call("request_key", 249, b"user", b"x", 0, -3)
call("open_by_handle_at", 304, -100, b"\0" * 64, 0)
call("fanotify_init", 300, 0, 0)
call("landlock_create_ruleset", 444, 0, 0, 1)
call("modify_ldt", 154, 1, b"\0" * 16, 16)
call("lookup_dcookie", 212, 0, 0, 0)
call("memfd_secret", 447, 0)
call("quotactl", 179, 0, b"/", 0, 0)
call("nfsservctl", 180, 0, 0, 0)
call("vhangup", 153)
