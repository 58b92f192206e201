#: tries = "another user id, and capabilities"
#: stdout = "setuid EPERM\nsetgid EPERM\nsetgroups EPERM\nsetresuid EPERM\ncapset EPERM\nambient (EPERM|EINVAL)\nkeepcaps (ok|EINVAL|EPERM)\n65534 65534\n"
import os

from syscalls import attempt, call

attempt("setuid", lambda: os.setuid(0))
attempt("setgid", lambda: os.setgid(0))
attempt("setgroups", lambda: os.setgroups([0]))
attempt("setresuid", lambda: os.setresuid(0, 0, 0))
header = (0x20080522).to_bytes(4, "little") + (0).to_bytes(4, "little")
call("capset", 126, header, b"\xff" * 24)
call("ambient", 157, 47, 2, 21, 0, 0)
call("keepcaps", 157, 8, 1, 0, 0, 0)
print(os.getuid(), os.geteuid())
