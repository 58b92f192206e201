#: tries = "an exit code that looks like a kill for memory"
#: outcomes = ["NONZERO_EXIT"]
#: exit_code = 137
exit 137
