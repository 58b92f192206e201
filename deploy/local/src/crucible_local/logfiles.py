"""Log files that processes write to by themselves: their last lines, and a bound on their size."""

import os
import shutil
from pathlib import Path

MAX_BYTES = 16 * 1024 * 1024
"""A log may grow to this size, and one older part of it is kept beside it."""
TAIL_BYTES = 16 * 1024


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, empty when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def cap(log: Path, limit: int = MAX_BYTES) -> None:
    """Moves a log's content beside it once it is too long.

    Its writer keeps its descriptor, opened for appending, so the content is copied and the file emptied. What is
    written in between, a few microseconds' worth, is lost: the price of no process standing between a service and
    its log.
    """
    try:
        if log.stat().st_size > limit:
            shutil.copyfile(log, log.with_suffix(log.suffix + ".1"))
            os.truncate(log, 0)
    except FileNotFoundError:
        return
