"""Whether this host can run the stack: what is missing, and how to fix it."""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from crucible_local.layout import Layout
from crucible_local.nats import NatsError, nats_program
from crucible_local.options import SERVICE_ACCOUNT, Ports, PortTakenError, closed_code, invoking_user
from crucible_local.postgres import PostgresError, wheel_root
from crucible_local.probes import get_json
from crucible_local.stack import runtimes_source

MIN_FREE_DISK = 2 * 1024**3
MIN_FREE_MEMORY = 1024**3
INSTALL = "run `sh deploy/install-host`"


@dataclass(frozen=True)
class Check:
    """One finding."""

    name: str
    passed: bool
    detail: str
    remedy: str = ""
    required: bool = True
    """The stack does not start without it."""


def quick_checks(data: Path) -> list[Check]:
    """What `up` asks before it starts anything: milliseconds."""
    return [
        _linux(),
        _root(),
        _program("setpriv", "util-linux"),
        *_services(),
        _postgres(),
        _nats(),
        _disk(data),
        _memory(),
        *_images(),
    ]


def sandbox_checks(data: Path) -> list[Check]:
    """The executor's own checks of gVisor, control groups and images: seconds, it runs programs in sandboxes."""
    from crucible_executor import doctor

    configured = os.environ.get("CRUCIBLE_RUNTIMES_DIR")
    found = doctor.run_checks(Path(configured) if configured else Layout(data).images)
    return [Check(check.name, check.passed, check.detail, check.remedy, check.required) for check in found]


def port_check(ports: Ports, *, jaeger: bool) -> Check:
    """Whether the ports are free; a stack of ours on them is fine."""
    try:
        ports.require_free(jaeger=jaeger)
    except PortTakenError as error:
        if get_json(f"http://127.0.0.1:{ports.gateway}/v1/runtimes") is not None:
            return Check("ports", passed=True, detail=f"a stack answers on port {ports.gateway}")
        return Check("ports", passed=False, detail=str(error), remedy="choose others with --port-base")
    return Check("ports", passed=True, detail=f"{ports.gateway} to {ports.executor_admin} are free")


def failures(checks: Sequence[Check]) -> list[Check]:
    """The findings that keep the stack from starting."""
    return [check for check in checks if not check.passed and check.required]


def _linux() -> Check:
    return Check("linux", sys.platform == "linux", sys.platform, "gVisor needs Linux")


def _root() -> Check:
    return Check("root", os.geteuid() == 0, f"user id {os.geteuid()}", "gVisor sandboxes need root: use sudo")


def _services() -> list[Check]:
    """Who the services, the executor's included, run as; only root can tell."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return []
    user = invoking_user(os.environ)
    if user is not None and not closed_code(user):
        return [Check("services", passed=True, detail=f"run as {user.name}, without privileges")]
    closed = closed_code()
    if not closed:
        return [Check("services", passed=True, detail=f"run as {SERVICE_ACCOUNT}, without privileges")]
    detail = f"run as root without capabilities: no other user can read {closed}"
    fix = "put the repository and its Python where every user may read them, such as under /opt"
    return [Check("services", passed=False, detail=detail, remedy=fix, required=False)]


def _program(name: str, package: str) -> Check:
    found = shutil.which(name)
    return Check(name, found is not None, found or "not found", f"install {package}, or {INSTALL}")


def _postgres() -> Check:
    try:
        return Check("postgresql", passed=True, detail=str(wheel_root()))
    except PostgresError as error:
        return Check("postgresql", passed=False, detail=str(error), remedy="run `uv sync`")


def _nats() -> Check:
    try:
        return Check("nats-server", passed=True, detail=str(nats_program()))
    except NatsError as error:
        return Check("nats-server", passed=False, detail=str(error), remedy="run `uv sync`")


def _disk(data: Path) -> Check:
    folder = next(parent for parent in (data, *data.parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1024**3:.1f} GiB free for {data}"
    return Check("disk", free >= MIN_FREE_DISK, detail, "make room (2 GiB), or name another folder with --data")


def _memory() -> Check:
    available = _meminfo().get("MemAvailable", 0)
    detail = f"{available / 1024**3:.1f} GiB available"
    return Check("memory", available >= MIN_FREE_MEMORY, detail, "1 GiB is little for a stack", required=False)


def _meminfo() -> Mapping[str, int]:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}


def _images() -> list[Check]:
    source = runtimes_source()
    there = Check("runtimes", source.is_dir(), str(source), "work in a checkout of the repository")
    return [there, *(_program(name, package) for name, package in (("runsc", "gVisor"),))]
