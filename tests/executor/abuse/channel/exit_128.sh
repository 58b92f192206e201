#: tries = "the exit code of a runsc that failed, with its words"
#: outcomes = ["NONZERO_EXIT"]
#: exit_code = 128
#: stderr = "running container: .*\n"
echo 'running container: starting container: starting root container: urpc method "containerManager.StartRoot" failed' >&2
exit 128
