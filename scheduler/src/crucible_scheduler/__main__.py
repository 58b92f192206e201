"""`python -m crucible_scheduler`: the scheduler as a process."""

from crucible_scheduler.app import main

main()
