#: tries = "grandchildren that hold its output open"
#: stdout = "parent\n"
(setsid sleep 1000 &) ; (setsid sh -c 'trap "" TERM HUP INT; sleep 1000' &)
echo parent
