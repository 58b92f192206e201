"""The executor as users run it: two processes, what each may do, and how they end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from crucible_executor.sandbox.image import ImageStore
from crucible_executor.sandbox.launcher.privileges import Account, PrivilegeError, status
from crucible_executor.sandbox.launcher.server import kept
from crucible_local.confinement import first_closed
from crucible_local.options import NOBODY, closed_code
from crucible_testkit import NatsServer, children_of
from crucible_testkit.child import Child
from crucible_testkit.scratch import scratch_folder

from .conftest import ACCOUNT, SLOWNESS
from .service_harness import environment, job, platform_on

CAPABILITY_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def variables_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")


def instance_of(launcher: int) -> str:
    words = Path(f"/proc/{launcher}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    return f"executor-{json.loads(words[-1])['instance']}"


def python_for_all() -> tuple[str, str]:
    """A Python that any account may read, and its PYTHONPATH: our own where it can, else the distribution's."""
    if not closed_code():
        return sys.executable, ""
    release = f"{sys.version_info.major}.{sys.version_info.minor}"
    python = f"/usr/bin/python{release}"
    if not Path(python).exists():
        pytest.fail(f"install {python}, or move the checkout: {sys.executable} is closed to other users")
    folders = [folder for folder in sys.path if Path(folder).is_dir() and not first_closed([folder], NOBODY)]
    return python, os.pathsep.join(folders)


def an_executor(python: str, nats: NatsServer, images: ImageStore, folder: Path, **settings: str) -> Child:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("CRUCIBLE_", "OTEL_"))}
    env = inherited | environment(nats.url, folder) | {"CRUCIBLE_RUNTIMES_DIR": str(images.folder)} | settings
    return Child([python, "-P", "-m", "crucible_executor"], log=folder / "executor.log", env=env)


async def test_the_service_has_no_privilege_the_launcher_few_and_a_stop_lets_programs_end(
    images: ImageStore, fresh_nats: NatsServer
) -> None:
    python, path = python_for_all()
    settings = {"CRUCIBLE_USER": ACCOUNT, "CRUCIBLE_GRACE_SECONDS": str(20 * SLOWNESS), "PYTHONPATH": path}
    account = Account.named(ACCOUNT)
    with scratch_folder() as folder:
        (folder / "objects").mkdir()
        os.chown(folder / "objects", account.uid, account.gid)
        child = an_executor(python, fresh_nats, images, folder, **settings)
        await live_and_stop(child, account, fresh_nats)


async def live_and_stop(child: Child, account: Account, nats: NatsServer) -> None:
    """Its processes are looked at, a program runs, and ends after the executor was asked to stop."""
    async with platform_on(nats.url) as platform:
        child.start()
        try:
            await platform.until(lambda: len(platform.heartbeats) > 1)
            (launcher,) = children_of(child.pid)
            service, privileged = status(child.pid), status(launcher)
            assert set(service["Uid"].split()) == {str(account.uid)}
            assert {int(service[name], 16) for name in CAPABILITY_SETS} == {0}
            assert service["NoNewPrivs"] == "1"
            assert service["Groups"] == ""
            assert set(service["Gid"].split()) == {str(account.gid)}
            mask = sum(1 << number for number in kept())
            assert [int(privileged[name], 16) for name in CAPABILITY_SETS] == [0, mask, mask, mask, 0]
            assert (privileged["NoNewPrivs"], privileged["Uid"].split()[0]) == ("1", "0")
            assert not [name for name in variables_of(launcher) if name.startswith("CRUCIBLE_")]
            busy = job("print('up', flush=True)\nimport time\ntime.sleep(2)\nprint('done')")
            await platform.publish_job(busy)
            await platform.until(lambda: any(each.WhichOneof("kind") == "output" for each in platform.of(busy)))
            instance = instance_of(launcher)
            child.send(signal.SIGTERM)
            assert (await platform.finished(busy)).result.stdout.text == "up\ndone\n"
            assert await asyncio.to_thread(child.wait, 60 * SLOWNESS) == 0
            assert not (Path("/run/crucible") / instance).exists()
        finally:
            child.kill()


async def test_an_executor_that_lost_its_launcher_ends_with_a_clear_line_and_starts_again(
    images: ImageStore, fresh_nats: NatsServer, tmp_path: Path
) -> None:
    child = an_executor(sys.executable, fresh_nats, images, tmp_path)
    async with platform_on(fresh_nats.url) as platform:
        child.start()
        try:
            await platform.until(lambda: len(platform.heartbeats) > 1)
            (launcher,) = children_of(child.pid)
            instance = instance_of(launcher)
            os.kill(launcher, signal.SIGKILL)
            assert await asyncio.to_thread(child.wait, 60 * SLOWNESS) == 70
            lines = [json.loads(line) for line in child.log.read_text().splitlines()]
            (why,) = [line for line in lines if line["level"] not in ("debug", "info")]
            assert (why["event"], why["task"]) == ("task.died", "launcher")
            assert "the launcher of sandboxes is gone" in why["error"]
            before = len(platform.heartbeats)
            child.start()
            await platform.until(lambda: len(platform.heartbeats) > before + 1)
            assert not (Path("/run/crucible") / instance).exists()
            child.send(signal.SIGTERM)
            assert await asyncio.to_thread(child.wait, 60 * SLOWNESS) == 0
        finally:
            child.kill()


@pytest.mark.parametrize("name", ["root", "nobody", "nobody-has-this-name"])
def test_an_account_that_separates_nothing_is_refused(name: str) -> None:
    with pytest.raises(PrivilegeError, match=name):
        Account.named(name)
