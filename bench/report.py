"""What a measurement found: tables of durations and single figures, each beside its baseline; printed, or as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.percentiles import HEADER, line


class Report:
    """Prints as it goes, unless it is to be JSON at the end."""

    def __init__(self, *, quiet: bool) -> None:
        self.durations: dict[str, dict[str, list[float]]] = {}
        """Seconds, run by run, by table and row."""
        self.figures: dict[str, float] = {}
        self._quiet = quiet

    def table(self, title: str, rows: Mapping[str, Sequence[float]]) -> None:
        """Durations in seconds, a row each."""
        self.durations[title] = {name: list(seconds) for name, seconds in rows.items()}
        self._say(f"\n{title:<44}{HEADER.strip():>36}")
        for name, seconds in rows.items():
            self._say(line(f"  {name}", seconds))

    def figure(self, name: str, value: float, words: str = "") -> None:
        """One number; `words` say what it is held against."""
        self.figures[name] = value
        self._say(f"{name:<58}{value:>12.2f}  {words}".rstrip())

    def heading(self, title: str) -> None:
        """Before figures that belong together."""
        self._say(f"\n{title}")

    @property
    def document(self) -> dict[str, object]:
        """Everything, for JSON."""
        return {"figures": self.figures, "seconds": self.durations}

    def _say(self, text: str) -> None:
        if not self._quiet:
            print(text, flush=True)
