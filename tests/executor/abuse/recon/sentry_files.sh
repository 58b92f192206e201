#: tries = "the files by which gVisor tells about itself"
#: stdout = "done\n"
cat /proc/sentry-meminfo >/dev/null 2>&1
cat /proc/gvisor/* >/dev/null 2>&1
ls -R /proc/self >/dev/null 2>&1
ls -R /sys >/dev/null 2>&1
cat /proc/self/mountinfo /proc/self/cgroup /proc/cmdline /proc/1/environ 2>/dev/null | tr "\0" "\n" | grep -ai "crucible\|runsc" | grep -v ^CANARY
echo done
