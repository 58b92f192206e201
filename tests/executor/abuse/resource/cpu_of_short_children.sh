#: tries = "CPU time in children that are gone when somebody looks"
#: outcomes = ["CPU_TIME_EXCEEDED"]
#: limits = { cpu_time = 0.6 }
while :; do (:); done
