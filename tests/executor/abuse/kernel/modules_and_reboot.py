#: tries = "what only the administrator of a machine may do"
#: stdout = "(\\w+ (EPERM|ENOSYS|EINVAL)\n){14}"
from syscalls import call

call("init_module", 175, 0, 0, b"")
call("finit_module", 313, 0, b"", 0)
call("delete_module", 176, b"x", 0)
call("kexec_load", 246, 0, 0, 0, 0)
call("kexec_file_load", 320, 0, 0, 0, 0, 0)
call("reboot", 169, 0xFEE1DEAD, 672274793, 0x1234567, 0)
call("swapon", 167, b"/dev/zero", 0)
call("swapoff", 168, b"/dev/zero")
call("iopl", 172, 3)
call("ioperm", 173, 0, 1, 1)
call("sethostname", 170, b"mine", 4)
call("setdomainname", 171, b"mine", 4)
call("settimeofday", 164, b"\0" * 16, 0)
call("acct", 163, b"/tmp/x")
