#: tries = "learning from the environment what the host is"
#: stdout = "\\['CANARY', 'HOME', 'LANG', 'PATH', 'TMPDIR'\\]\n\\['CANARY', 'HOME', 'LANG', 'PATH', 'TMPDIR'\\]\n"
import os
import subprocess

print(sorted(os.environ))
print(sorted(line.split("=")[0] for line in subprocess.run(["env"], capture_output=True, text=True).stdout.splitlines()))
