#: tries = "both at once, from several processes"
#: outcomes = ["OUTPUT_EXCEEDED"]
#: stdout = "(y\n)*y?"
#: stderr = "(y\n)*y?"
yes & yes >&2 & yes & yes >&2
