#: tries = "opening a file by its handle, past every folder's rights"
#: stdout = "name_to_handle_at (EOPNOTSUPP|ENOTSUP|ENOSYS|EPERM|EOVERFLOW)\nopen_by_handle_at EPERM\n"
import ctypes

from syscalls import call

handle, mount = ctypes.create_string_buffer(136), ctypes.c_int()
handle[0] = 128
call("name_to_handle_at", 303, -100, b"/etc/passwd", handle, ctypes.byref(mount), 0)
call("open_by_handle_at", 304, -100, handle, 0)
