"""The soak's short form: runs of every kind in a row leave nothing, in the executor or on the machine."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from crucible_executor.sandbox.image import ImageStore

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(400)
async def test_runs_of_every_kind_leave_nothing(images: ImageStore) -> None:
    soak = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench", "soak", "--runs", "63", "--every", "21", "--images", str(images.folder)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await soak.communicate()
    assert soak.returncode == 0, said.decode()
    assert b"verdict: nothing grew over its bound" in said
