#: tries = "one line of a megabyte"
#: stdout = "x{1048576}"
import sys

sys.stdout.write("x" * 1048576)
