#: tries = "a real SIGSEGV"
#: outcomes = ["SIGNALED"]
#: signal = "SIGSEGV"
kill -SEGV $$
