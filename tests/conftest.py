"""Every test folder gets the real servers of crucible_testkit; workers that share the tests keep whole what is one."""

from __future__ import annotations

import signal

import pytest

pytest_plugins = ["crucible_testkit.pytest_plugin"]

WHOLE = frozenset({"e2e", "local"})
"""Folders whose tests share something that takes long to start: one worker runs all of one."""


def pytest_configure() -> None:
    """A run in the background of a shell begins with SIGINT ignored, and so would every process that it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tells `pytest -n` what belongs together."""
    for item in items:
        if (folder := item.path.parent.name) in WHOLE:
            item.add_marker(pytest.mark.xdist_group(folder))
