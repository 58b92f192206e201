"""`python -m crucible_gateway`."""

from crucible_gateway.app import main

main()
