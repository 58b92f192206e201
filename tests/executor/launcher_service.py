"""A service with a launcher, for tests that stop or kill it: runs a program that sleeps, and says when it is up.

Run by its path with one JSON argument: `config` (fields of GvisorConfig), `wall_time`, and `heir` (a child gets the
line to the launcher as well; its process id is said first).
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from crucible_executor.sandbox.gvisor.driver import GvisorConfig, open_driver
from crucible_executor.sandbox.launcher.process import LauncherProcess, start_launcher
from crucible_executor.sandbox.port import Program, ProgramFile, SandboxLimits, Stream

SOURCE = b"print('up', flush=True)\nimport time\ntime.sleep(1000)"


class Said:
    """Passes on what the program writes."""

    def write(self, stream: Stream, data: bytes) -> None:
        """See `OutputSink`."""
        sys.stdout.write(data.decode())
        sys.stdout.flush()


async def serve(config: GvisorConfig, launcher: LauncherProcess, wall_time: float) -> None:
    """Until the program ends."""
    async with open_driver(config, launcher=launcher) as driver:
        limits = SandboxLimits(wall_time, 60, 1 << 28, 1 << 26, 1 << 20, 64, 256)
        sandbox = await driver.boot("python", disk_bytes=limits.disk_bytes)
        await sandbox.deliver(Program("python", (ProgramFile("main.py", SOURCE),)), limits, Said())
        await sandbox.observe()


def main(chosen: dict[str, Any]) -> None:
    """As the test chose."""
    raw = chosen["config"]
    config = GvisorConfig(**(raw | {name: Path(raw[name]) for name in ("images_dir", "state_root")}))
    launcher = start_launcher(config.for_launcher())
    if chosen["heir"]:
        line = launcher.socket.fileno()
        heir = subprocess.Popen(["sleep", "300"], pass_fds=(line,), stdout=subprocess.DEVNULL)
        sys.stdout.write(f"{heir.pid}\n")
        sys.stdout.flush()
    asyncio.run(serve(config, launcher, chosen["wall_time"]))


main(json.loads(sys.argv[1]))
