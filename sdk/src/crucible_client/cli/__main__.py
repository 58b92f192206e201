"""`python -m crucible_client.cli`."""

from crucible_client.cli import main

main()
