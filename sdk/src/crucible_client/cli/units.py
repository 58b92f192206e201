"""Figures as people write and read them."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from datetime import UTC, datetime, timedelta

import click

from crucible_client.program import Limits

_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_DECIMAL_BYTES = {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9}
_BINARY_BYTES = {"kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30, "k": 2.0**10, "m": 2.0**20, "g": 2.0**30}
_FIGURE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)")

LIMITS = [field.name for field in fields(Limits)]
_SHORT = {name.removesuffix(end): name for name in LIMITS for end in ("_bytes", "_time") if name.endswith(end)}
"""`memory` for `memory_bytes`: the unit stands in the value."""


def parse_seconds(text: str) -> float:
    """`5`, `5s`, `500ms`, `2m`, `1h`, `1d`. Raises ValueError."""
    return _parse(text, _SECONDS, "a duration such as 5s, 500ms or 2m")


def parse_bytes(text: str) -> int:
    """`512MiB`, `1GiB`, `64k` (of 1,024), `1MB` (of 1,000), `4096`. Raises ValueError."""
    return int(_parse(text, _DECIMAL_BYTES | _BINARY_BYTES, "a size such as 512MiB, 1GiB or 4096"))


def _parse(text: str, units: dict[str, float], expected: str) -> float:
    match = _FIGURE.fullmatch(text.strip())
    if match is None or match[2].lower() not in units:
        raise ValueError(f"{text!r} is not {expected}")
    figure = float(match[1]) * units[match[2].lower()]
    if math.isinf(figure):
        raise ValueError("is too large a figure")
    return figure


def parse_limits(pairs: tuple[str, ...]) -> Limits:
    """`wall_time=5s`, `memory=512MiB`, ... Raises BadParameter."""
    values: dict[str, float] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        name = name.strip().replace("-", "_")
        name = _SHORT.get(name, name)
        if not equals or name not in LIMITS:
            raise click.BadParameter(
                f"{pair!r}: write NAME=VALUE with one of {', '.join(LIMITS)}", param_hint="--limit"
            )
        if name in values:
            raise click.BadParameter(f"{name!r} is given twice", param_hint="--limit")
        try:
            values[name] = _limit(name, value)
        except ValueError as exc:
            raise click.BadParameter(f"{name}: {exc}", param_hint="--limit") from exc
    return Limits(
        wall_time=values.get("wall_time"),
        cpu_time=values.get("cpu_time"),
        **{name: int(value) for name, value in values.items() if not name.endswith("_time")},
    )


def _limit(name: str, value: str) -> float:
    if name.endswith("_time"):
        return parse_seconds(value)
    if name.endswith("_bytes"):
        return parse_bytes(value)
    if not value.isascii() or not value.isdigit():
        raise ValueError(f"{value!r} is not a number")
    return int(value)


def duration(text: str) -> float:
    """The type of a click option in seconds, written `5s` or `2m`. Raises BadParameter."""
    try:
        return parse_seconds(text)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc


def moment(text: str) -> datetime:
    """The type of a click option that takes RFC 3339, or how long ago (`1h`). In UTC. Raises BadParameter."""
    try:
        return datetime.now(UTC) - timedelta(seconds=parse_seconds(text))
    except (ValueError, OverflowError):
        pass
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is neither how long ago (1h, 2d) nor a time such as 2026-01-31T09:00:00Z"
        ) from None


def show_seconds(seconds: float) -> str:
    """`12 ms`, `3.21 s`, `4 min 2 s`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(math.floor(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def show_bytes(size: float) -> str:
    """`12.3 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
