"""How the command ends where it is not by the program's own exit code. Imports nothing, so that Ctrl-C is early."""

REFUSED = 2
"""What was asked is wrong: an option, a file, or what the platform refused."""
LIMIT = 124
"""The program ran into a limit, or took longer than --timeout."""
PLATFORM_FAILED = 125
"""The platform failed or is away, or our own output cannot be written."""
INTERRUPTED = 130
"""Ctrl-C."""
PIPE_CLOSED = 141
"""Whoever read our output left."""
