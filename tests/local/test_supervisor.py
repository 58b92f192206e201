"""The supervisor, on real servers: order, restarts, failures, and an end that leaves nothing."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from crucible_local import kernel
from crucible_local.confinement import confined
from crucible_local.nats import Broker
from crucible_local.ports import free_port
from crucible_local.postgres import Cluster, install_programs, postgres_account
from crucible_local.specification import Daemon, Gate, Job, Stage
from crucible_local.state import ProcessState
from crucible_local.supervisor import StartError, Supervisor
from crucible_testkit import scratch_folder
from crucible_testkit.postgres import PROGRAMS

ENVIRONMENT = {"PATH": os.defpath}


@pytest.fixture
def folder() -> Generator[Path]:
    before = kernel.descendants(os.getpid())
    with scratch_folder() as path:
        yield path
    assert kernel.descendants(os.getpid()) <= before, "no child is left, of whatever test"


def nats_daemon(folder: Path) -> Daemon:
    broker = Broker(free_port(), folder / "streams")
    return Daemon("nats", broker.command(), ENVIRONMENT, broker.accepts_connections, broker.url)


def postgres_daemon(folder: Path) -> Daemon:
    programs = install_programs(PROGRAMS)
    cluster = Cluster(programs, folder / "data", folder / "sockets", postgres_account(), os.getegid())
    cluster.initialise(durable=False)
    return Daemon(
        "postgres", cluster.command(durable=False), cluster.environment, cluster.accepts_connections,
        str(cluster.socket), stop_signal=cluster.stop_signal,
    )  # fmt: skip


def python_job(name: str, program: str) -> Job:
    return Job(name, confined([sys.executable, "-c", program]), ENVIRONMENT, f"do {name}")


def python_daemon(name: str, program: str, *, ready: Callable[[], bool] = lambda: True, grace: float = 5) -> Daemon:
    return Daemon(name, confined([sys.executable, "-c", program]), ENVIRONMENT, ready, "-", grace_seconds=grace)


class Recorder:
    """Every state the supervisor told of."""

    def __init__(self) -> None:
        self.history: list[dict[str, str]] = []

    def __call__(self, states: list[ProcessState]) -> None:
        self.history.append({state.name: state.condition for state in states})


async def until(condition: Callable[[], bool], timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def supervisor_of(folder: Path, *stages: Stage) -> tuple[Supervisor, Recorder]:
    recorder = Recorder()
    return Supervisor(stages, logs=folder / "logs", changed=recorder), recorder


async def test_stages_start_in_order_and_a_killed_server_comes_back(folder: Path) -> None:
    job = python_job("migrate", "print('migrated')")
    postgres, nats = postgres_daemon(folder), nats_daemon(folder)
    supervisor, recorder = supervisor_of(folder, [postgres, nats], [job], [Gate("both", postgres.ready, "see both")])
    await supervisor.start()
    try:
        begun = next(states for states in recorder.history if states["migrate"] == "starting")
        assert begun["postgres"] == begun["nats"] == "ready"
        assert begun["both"] == "waiting"
        assert (folder / "logs/migrate.log").read_text() == "migrated\n"
        by_name = {state.name: state for state in supervisor.states}
        killed = {name: by_name[name].identity for name in ("postgres", "nats")}
        for identity in killed.values():
            assert identity is not None
            identity.send(signal.SIGKILL)
        await until(lambda: all(by_name[name].restarts == 1 for name in killed))
        await until(lambda: all(by_name[name].condition == "ready" for name in killed))
        assert all(by_name[name].identity != killed[name] for name in killed)
        assert postgres.ready()
        assert nats.ready()
    finally:
        await supervisor.stop()
    assert [state.condition for state in supervisor.states] == ["stopped", "stopped", "done", "done"]


async def test_a_daemon_that_cannot_start_is_named_with_its_last_words(folder: Path) -> None:
    broken = python_daemon("broken", "raise SystemExit('no such setting')", ready=lambda: False)
    supervisor, _ = supervisor_of(folder, [nats_daemon(folder)], [broken])
    with pytest.raises(StartError, match=r"(?s)broken cannot start: it ended with exit code 1.*no such setting"):
        await supervisor.start()
    await supervisor.stop()


async def test_a_failed_job_stops_the_start(folder: Path) -> None:
    later = python_job("later", "print('never')")
    supervisor, recorder = supervisor_of(folder, [python_job("first", "raise SystemExit('disk full')")], [later])
    with pytest.raises(StartError, match=r"(?s)do first: first ended with exit code 1.*disk full"):
        await supervisor.start()
    await supervisor.stop()
    assert recorder.history[-1] == {"first": "failed", "later": "stopped"}


async def test_a_stop_in_the_middle_of_a_start_leaves_nothing(folder: Path) -> None:
    slow = python_job("slow", "import time; time.sleep(60)")
    supervisor, recorder = supervisor_of(folder, [nats_daemon(folder)], [slow])
    start = asyncio.create_task(supervisor.start())
    await until(lambda: bool(recorder.history) and recorder.history[-1]["slow"] == "starting")
    start.cancel()
    await asyncio.gather(start, return_exceptions=True)
    await supervisor.stop()


async def test_who_ignores_the_stop_signal_is_killed(folder: Path) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    log = folder / "logs/deaf.log"
    daemon = python_daemon("deaf", deaf, ready=lambda: log.exists() and "deaf" in log.read_text(), grace=0.3)
    supervisor, _ = supervisor_of(folder, [daemon])
    await supervisor.start()
    await supervisor.stop()
