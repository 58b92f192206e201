"""`python -m crucible_executor`: the executor as a process."""

from crucible_executor.app import main

main()
