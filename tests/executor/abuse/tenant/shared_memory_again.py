#: tries = "System V memory, queues and semaphores that a later program could find"
#: stdout = "\\(None, 0\\)\n"
import ctypes

libc = ctypes.CDLL(None, use_errno=True)
found = libc.shmget(0x1234, 4096, 0o666)
print((None if found == -1 else found, 0))
libc.shmget(0x1234, 4096, 0o1666)
libc.semget(0x1234, 1, 0o1666)
libc.msgget(0x1234, 0o1666)
