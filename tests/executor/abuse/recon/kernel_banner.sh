#: tries = "learning the host's kernel"
#: stdout = ".*Linux version 4\\.4\\.0.*Starting gVisor.*"
cat /proc/version
dmesg 2>/dev/null || true
