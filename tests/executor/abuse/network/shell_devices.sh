#: tries = "the shell's own network devices"
#: stdout = "done\n"
(exec 9<>/dev/tcp/1.1.1.1/80) 2>/dev/null && echo connected
(exec 9<>/dev/tcp/127.0.0.1/8080) 2>/dev/null && echo connected
(exec 9<>/dev/udp/8.8.8.8/53 && echo x >&9 && head -c1 <&9) 2>/dev/null && echo answered
echo done
