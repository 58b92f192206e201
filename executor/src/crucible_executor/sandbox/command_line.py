"""How a runtime's command becomes a command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

ENTRYPOINT: Final = "{entrypoint}"


def command_line(command: Sequence[str], entrypoint: str, args: Sequence[str] = ()) -> tuple[str, ...]:
    """The command with its entrypoint put in; one that looks like an option is not taken for one."""
    path = f"./{entrypoint}" if entrypoint.startswith("-") else entrypoint
    return (*(word.replace(ENTRYPOINT, path) for word in command), *args)
