"""Whether this machine can run sandboxes, and what mends it: `python -m crucible_executor.doctor [--json]`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from crucible_executor.sandbox.cgroup import CgroupError
from crucible_executor.sandbox.cgroup_tree import open_cgroup_tree
from crucible_executor.sandbox.containment.alarm import Alarm
from crucible_executor.sandbox.containment.report import Found
from crucible_executor.sandbox.gvisor.driver import DEFAULT_CGROUP_PARENT, DEFAULT_STATE_ROOT, GvisorConfig, open_driver
from crucible_executor.sandbox.gvisor.runsc import Runsc, RunscError
from crucible_executor.sandbox.image import DEFAULT_IMAGES_DIR, ImageStore
from crucible_executor.sandbox.port import Offerable, SandboxFault

MIN_FREE_BYTES: Final = 1024**3
TMPFS_MAGIC: Final = "tmpfs"
BUILD: Final = "python -m crucible_executor.build_images --source deploy/runtimes --output"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding."""

    name: str
    passed: bool
    detail: str
    remedy: str = ""
    """What mends it; empty when nothing has to be."""
    required: bool = True
    """No program runs here without it."""


def run_checks(images_dir: Path | None = None, state_root: Path = DEFAULT_STATE_ROOT) -> list[Check]:
    """Every check, the last of them real programs in real sandboxes: seconds. Not from inside an event loop.

    `images_dir` is CRUCIBLE_RUNTIMES_DIR unless told, or its default.
    """
    folder = images_dir or Path(os.environ.get("CRUCIBLE_RUNTIMES_DIR", str(DEFAULT_IMAGES_DIR)))
    checks = [_user(), _machine(), _setpriv(), _runsc(), _cgroups(), _state(state_root), _images(folder), _disk(folder)]
    if all(check.passed for check in checks if check.required):
        checks += _sandboxes(GvisorConfig(images_dir=folder, state_root=state_root))
    return checks


def _user() -> Check:
    user = os.geteuid()
    return Check("root", user == 0, f"user id {user}", "" if user == 0 else "sandboxes need root: use sudo")


def _machine() -> Check:
    machine = f"{platform.system()} {platform.release()} on {platform.machine()}"
    fits = platform.system() == "Linux" and platform.machine() == "x86_64"
    return Check("machine", fits, machine, "" if fits else "gVisor's images here are for Linux on x86_64")


def _setpriv() -> Check:
    found = shutil.which("setpriv")
    return Check("setpriv", found is not None, found or "not found", "" if found else "apt-get install util-linux")


def _runsc() -> Check:
    try:
        runsc = Runsc.probe()
    except RunscError as error:
        remedy = "install gVisor: https://gvisor.dev/docs/user_guide/install, or apt-get install runsc"
        return Check("runsc", passed=False, detail=str(error), remedy=remedy)
    return Check("runsc", passed=True, detail=f"{runsc.path}, {runsc.version}")


def _cgroups() -> Check:
    probe = f"doctor-{os.getpid()}"
    try:
        tree = open_cgroup_tree(DEFAULT_CGROUP_PARENT, probe)
        try:
            tree.prepare()
        finally:
            tree.remove()
    except CgroupError as error:
        remedy = "run as root with control groups mounted writable; in a container: --privileged --cgroupns=private"
        return Check("control groups", passed=False, detail=str(error), remedy=remedy)
    return Check("control groups", passed=True, detail=f"version {tree.version}, writable")


def _state(state_root: Path) -> Check:
    place = next(folder for folder in (state_root, *state_root.parents) if folder.exists())
    kind = _file_system(place)
    mount = f"mkdir -p {state_root} && mount -t tmpfs -o mode=0700 tmpfs {state_root}"
    remedy = "" if kind == TMPFS_MAGIC else f"on tmpfs sandboxes boot a little faster and wear no disk: {mount}"
    return Check("state folder", kind == TMPFS_MAGIC, f"{state_root} lies on {kind}", remedy, required=False)


def _file_system(path: Path) -> str:
    mounts: dict[Path, str] = {}
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        mounted, _, kind = line.partition(" - ")
        mounts[Path(mounted.split()[4])] = kind.split()[0]
    resolved = path.resolve()
    return next(mounts[folder] for folder in (resolved, *resolved.parents) if folder in mounts)


def _images(folder: Path) -> Check:
    store = ImageStore(folder)
    try:
        names = list(store.index().runtimes)
        for name in names:
            store.find(name)
    except SandboxFault as fault:
        return Check("images", passed=False, detail=fault.detail, remedy=f"{BUILD} {folder}")
    return Check("images", passed=bool(names), detail=f"{', '.join(names) or 'none'} in {folder}")


def _disk(folder: Path) -> Check:
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(place).free
    enough = free >= MIN_FREE_BYTES
    detail = f"{free / 1024**3:.1f} GiB free for {folder}"
    return Check("disk", enough, detail, "" if enough else "make room: 1 GiB", required=False)


def _sandboxes(config: GvisorConfig) -> list[Check]:
    async def offerable() -> tuple[Offerable, Alarm]:
        async with open_driver(config) as driver:
            return await driver.offerable_runtimes(), driver.alarm

    try:
        found, alarm = asyncio.run(offerable())
    except (SandboxFault, ExceptionGroup, OSError) as error:
        return [Check("sandbox", passed=False, detail=str(error), remedy="see docs/operations.md")]
    passed = [Check(f"runtime {each.name}", passed=True, detail=f"{each.version}, tested") for each in found.offers]
    rebuild = f"{BUILD} {config.images_dir}"
    passed.append(_containment(alarm))
    return [*passed, *(Check(f"runtime {name}", False, why, rebuild) for name, why in found.refused.items())]


def _containment(alarm: Alarm) -> Check:
    if alarm.breach is not None:
        remedy = "run no program here: see docs/operations.md, A sandbox that is not tight"
        return Check("containment", passed=False, detail=str(alarm.breach), remedy=remedy)
    findings = [each for known in alarm.latest.values() for each in (*known.inside.findings, *known.before.findings)]
    held = sum(each.found is Found.HELD for each in findings)
    missed = sorted({each.check.value for each in findings if each.found is not Found.HELD})
    detail = f"{held} checks held in {len(alarm.latest)} runtimes"
    return Check("containment", passed=True, detail=f"{detail}; not checked: {', '.join(missed)}" if missed else detail)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the findings; 0 when programs can run here."""
    parser = argparse.ArgumentParser(prog="python -m crucible_executor.doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON array")
    chosen = parser.parse_args(arguments)
    checks = run_checks()
    if chosen.json:
        sys.stdout.write(json.dumps([asdict(check) for check in checks], indent=2) + "\n")
    for check in () if chosen.json else checks:
        mark = "ok" if check.passed else "FAIL" if check.required else "note"
        remedy = f" - {check.remedy}" if check.remedy and not check.passed else ""
        sys.stdout.write(f"{mark:5} {check.name}: {check.detail}{remedy}\n")
    return 0 if all(check.passed for check in checks if check.required) else 1


if __name__ == "__main__":
    raise SystemExit(main())
