#: tries = "files that would tell of the host's kernel"
#: stdout = "done\n"
for file in /proc/kallsyms /proc/kcore /proc/config.gz /proc/sys/kernel/core_pattern /proc/modules /proc/iomem /proc/sched_debug /proc/keys /proc/timer_list /proc/vmallocinfo /proc/slabinfo /sys/kernel/debug /sys/firmware/efi /sys/class/net/eth0; do
    [ -e "$file" ] && [ -n "$(head -c 100 "$file" 2>/dev/null)" ] && echo "$file is there"
done
echo done
