#: tries = "reading its input beyond the end, and closing it"
#: stdin = "abc"
#: stdout = "b'abc' b'' b''\n"
import os

print(os.read(0, 10), os.read(0, 10), os.read(0, 10))
os.close(0)
