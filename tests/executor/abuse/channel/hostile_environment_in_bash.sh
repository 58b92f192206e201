#: tries = "variables that a shell might obey before the program's first line"
#: outcomes = ["NONZERO_EXIT"]
#: exit_code = 6
#: stdout = "ran\n"
#: stderr = "(ERROR: ld.so: .*)?"
#: env = { BASH_ENV = "/dev/null", ENV = "/work/main.sh", IFS = "x", PS4 = "$(echo forged)", LD_PRELOAD = "/work/main.sh", PROMPT_COMMAND = "echo forged", CDPATH = "/etc", GLOBIGNORE = "*" }
echo ran
exit 6
