#: tries = "an exit code that looks like a crash"
#: outcomes = ["NONZERO_EXIT"]
#: exit_code = 139
exit 139
