"""Scratch folders for servers under test, outside pytest's own: another system user must be able to enter them.

A folder is locked for as long as the process that made it lives, so a run that was killed leaves nothing that the
next run does not find and remove.
"""

import fcntl
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir, mkdtemp

PREFIX = "crucible-test-"
LOCK = ".lock"


@contextmanager
def scratch_folder() -> Generator[Path]:
    """A new folder of mode 0755 with a short path (unix sockets fit in it), removed at the end."""
    base = Path(gettempdir())
    _sweep(base)
    folder = Path(mkdtemp(prefix=PREFIX, dir=base))
    folder.chmod(0o755)
    lock = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _sweep(base: Path) -> None:
    for lock_file in base.glob(f"{PREFIX}*/{LOCK}"):  # a folder without its lock yet is being made: not ours to judge
        try:
            lock = os.open(lock_file, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            shutil.rmtree(lock_file.parent, ignore_errors=True)
        finally:
            os.close(lock)
