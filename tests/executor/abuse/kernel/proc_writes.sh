#: tries = "writing the kernel's settings"
#: stdout = "done\n"
for file in /proc/sys/kernel/core_pattern /proc/sys/kernel/hostname /proc/sys/vm/overcommit_memory /proc/sysrq-trigger /proc/sys/kernel/modprobe /proc/sys/net/ipv4/ip_forward /sys/kernel/uevent_helper /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/memory/release_agent /proc/self/uid_map /proc/self/setgroups; do
    if (echo '|/tmp/x' > "$file") 2>/dev/null; then echo "wrote $file"; fi
done
echo done
