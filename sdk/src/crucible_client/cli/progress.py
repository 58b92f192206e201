"""How far a batch is: a bar on a terminal, now and then a line elsewhere. On stderr."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import click

from crucible_client.cli.render import coloured

LINE_SECONDS = 5.0
"""Between two lines at least."""


class Progress(Protocol):
    """Told of each evaluation that is final."""

    def show(self, *, done: int, failed: int) -> None:
        """So many of all are final, so many of them without a verdict."""
        ...


class _Lines:
    def __init__(self, total: int) -> None:
        self._total = total
        self._next = time.monotonic() + LINE_SECONDS

    def show(self, *, done: int, failed: int) -> None:
        if time.monotonic() >= self._next or done == self._total:
            self._next = time.monotonic() + LINE_SECONDS
            click.echo(f"crucible: {done} of {self._total} done" + (f", {failed} failed" if failed else ""), err=True)


class _Silence:
    def show(self, *, done: int, failed: int) -> None:
        pass


class _Bar:
    def __init__(self, total: int) -> None:
        from rich.console import Console  # only a terminal needs it
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True, no_color=not coloured(sys.stderr)),
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("", total=total, failed="")

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, *, done: int, failed: int) -> None:
        self._bar.update(self._task, completed=done, failed=f"{failed} failed" if failed else "")


def show_progress(total: int, *, quiet: bool) -> AbstractContextManager[Progress]:
    """What fits where stderr goes."""
    if quiet:
        return nullcontext(_Silence())
    return _Bar(total) if sys.stderr.isatty() else nullcontext(_Lines(total))
