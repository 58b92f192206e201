#: tries = "variables that the loader, the interpreter and the starter might obey"
#: stdout = "ran\n"
#: stderr = "(ERROR: ld.so: .*)?"
#: env = { LD_PRELOAD = "/work/main.py", LD_LIBRARY_PATH = "/work", PYTHONPATH = "/work/no", PYTHONUSERBASE = "/work", PYTHONBREAKPOINT = "os.abort", PYTHONWARNDEFAULTENCODING = "0", GCONV_PATH = "/work", CHANNEL = "0" }
print("ran")
