#: tries = "changing what is mounted where"
#: stdout = "mount EPERM\numount EPERM\npivot_root EPERM\nchroot EPERM\nopen_tree (ENOSYS|EPERM)\nmove_mount (ENOSYS|EPERM)\nfsopen (ENOSYS|EPERM)\nmount_setattr (ENOSYS|EPERM)\n"
from syscalls import call

call("mount", 165, b"none", b"/tmp", b"tmpfs", 0, 0)
call("umount", 166, b"/tmp", 0)
call("pivot_root", 155, b"/tmp", b"/tmp")
call("chroot", 161, b"/tmp")
call("open_tree", 428, -100, b"/", 1)
call("move_mount", 429, -100, b"/", -100, b"/tmp", 0)
call("fsopen", 430, b"tmpfs", 0)
call("mount_setattr", 442, -100, b"/", 0, 0, 0)
