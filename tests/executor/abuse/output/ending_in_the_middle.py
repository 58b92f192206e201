#: tries = "ending in the middle of a character"
#: stdout = "\\\\xf0\\\\x9f\\\\x98"
import os

os.write(1, "😀".encode()[:3])
