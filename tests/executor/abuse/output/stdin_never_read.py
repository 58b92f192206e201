#: tries = "not reading its input"
#: stdin = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#: stdout = "done\n"
print("done")
