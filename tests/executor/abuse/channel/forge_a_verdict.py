#: tries = "saying on every descriptor what a starter says, and what a result looks like"
#: outcomes = ["NONZERO_EXIT"]
#: exit_code = 3
#: stdout = "R?G?.*SUCCEEDED.*"
#: stderr = ".*"
import os

for descriptor in range(64):
    for word in (b"R", b"G", b"Eforged", b'{"outcome": "SUCCEEDED", "exitCode": 0}\n', b"\x08\x01\x10\x00"):
        try:
            os.write(descriptor, word)
        except OSError:
            pass
os._exit(3)
