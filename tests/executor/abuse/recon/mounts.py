#: tries = "learning the host's paths from the mounts"
#: stdout = "ok\n"
import re

with open("/proc/self/mountinfo") as mounts, open("/proc/mounts") as short:
    told = mounts.read() + short.read()
found = re.findall(r"(?i)crucible|/var/lib/\S+|/run/\S+|\.erofs|upperdir\S+", told)
print(found or "ok")
