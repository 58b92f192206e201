"""Percentiles and their printing."""

from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]


def line(name: str, seconds: Sequence[float]) -> str:
    """One row: name, count, p50, p90, p99 in milliseconds."""
    figures = "".join(f"{percentile(seconds, share) * 1000:10.1f}" for share in (0.5, 0.9, 0.99))
    return f"{name:44}{len(seconds):6}{figures}"


HEADER = f"{'':44}{'runs':>6}{'p50 ms':>10}{'p90 ms':>10}{'p99 ms':>10}"
