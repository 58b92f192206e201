"""An idle stack is small."""

from crucible_testkit.stack import Stack

LIMIT_BYTES = 120 * 1024 * 1024


def test_each_service_is_under_120_megabytes(stack: Stack) -> None:
    sizes = {name: stack.resident_bytes(name) for name in ("gateway", "scheduler", "executor", "store")}
    assert all(size < LIMIT_BYTES for size in sizes.values()), sizes
