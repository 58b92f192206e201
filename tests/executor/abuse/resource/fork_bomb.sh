#: tries = "a fork bomb that never stops"
#: outcomes = ["WALL_TIME_EXCEEDED", "OUTPUT_EXCEEDED", "CPU_TIME_EXCEEDED"]
#: stderr = ".*"
#: limits = { wall_time = 2.0 }
:(){ :|:& };: ; while :; do :; done
