#: tries = "learning the host's paths from its descriptors, and using one that it was not given"
#: stdout = "\\[0, 1, 2\\]\nok\n"
import os
import re

held = sorted(int(name) for name in os.listdir("/proc/self/fd"))
open_ones = []
for number in held:
    try:
        os.fstat(number)
        open_ones.append(number)
    except OSError:
        pass
print(open_ones)
targets = [os.readlink(f"/proc/self/fd/{number}") for number in open_ones]
strange = [target for target in targets if not re.fullmatch(r"host:\[\d+\]|pipe:\[\d+\]|/dev/null|/proc/\d+/fd", target)]
print(strange or "ok")
