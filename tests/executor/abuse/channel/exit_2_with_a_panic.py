#: tries = "the exit code and the words of a sentry that panics"
#: outcomes = ["NONZERO_EXIT"]
#: exit_code = 2
#: stderr = "panic: .*"
import os

os.write(2, b"panic: runtime error: invalid memory address\n\ngoroutine 1 [running]:\ngvisor.dev/gvisor/pkg/sentry\n")
os._exit(2)
