"""Starting, following, stopping and removing a stack from outside its supervisor."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from crucible_local import kernel, logfiles
from crucible_local.kernel import ProcessIdentity
from crucible_local.layout import Layout, LayoutError, is_held, make_public, take_lock
from crucible_local.options import StackOptions
from crucible_local.state import ProcessState, StackState

POLL_SECONDS = 0.05
STOP_SECONDS = 90.0
"""For all processes of a stack to end: the sum of their grace periods at worst."""
KILL_SECONDS = 10.0


class LaunchError(RuntimeError):
    """A stack could not be started or stopped; the message says why."""


class InterruptedStartError(LaunchError):
    """The start was interrupted; what it had started is gone again."""


@dataclass(frozen=True)
class Launched:
    """A stack that is ready."""

    state: StackState
    was_running: bool


def launch(options: StackOptions, *, timeout: float, progress: Callable[[StackState], None]) -> Launched:
    """Starts a stack in the background and returns when it is ready; one that runs already is followed and returned.

    Raises PortTakenError before anything is started, LayoutError, and LaunchError after everything is stopped again.
    """
    layout = Layout(options.data)
    if not layout.lock.exists():
        options.ports.require_free(jaeger=options.jaeger)  # a start that cannot be leaves no folder behind
    layout.claim()
    lock = take_lock(layout.lock)
    if lock is None:
        return Launched(_follow(layout, None, timeout=timeout, progress=progress), was_running=True)
    try:
        end_leftovers(layout)
        options.ports.require_free(jaeger=options.jaeger)
        make_public(layout.runtime)
        with _interruptions_as_exceptions():
            supervisor = _start_supervisor(options, layout, lock)
            os.close(lock)  # the supervisor has it now, from this moment until its end
            lock = None
            try:
                state = _follow(layout, supervisor, timeout=timeout, progress=progress)
            except BaseException:
                _quietly(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
                supervisor.terminate()  # it may not have said yet who it is
                stop(layout)
                supervisor.wait()
                raise
        supervisor.returncode = 0  # it goes on without us: no warning that it was never waited for
        return Launched(state, was_running=False)
    finally:
        if lock is not None:
            os.close(lock)


def _start_supervisor(options: StackOptions, layout: Layout, lock: int) -> "subprocess.Popen[str]":
    log = layout.logs / "supervisor.log"
    logfiles.cap(log)
    with log.open("ab") as output:
        supervisor = subprocess.Popen(
            [sys.executable, "-P", "-m", "crucible_local"], stdin=subprocess.PIPE, stdout=output, stderr=output,
            text=True, cwd="/", start_new_session=True, pass_fds=[lock],
        )  # fmt: skip
    assert supervisor.stdin is not None
    supervisor.stdin.write(options.dump())
    supervisor.stdin.close()
    return supervisor


def _follow(
    layout: Layout,
    supervisor: "subprocess.Popen[str] | None",
    *,
    timeout: float,
    progress: Callable[[StackState], None],
) -> StackState:
    """Shows the start until it is over. `supervisor` None: another process started it."""
    deadline = time.monotonic() + timeout
    while True:
        over = supervisor.poll() is not None if supervisor else not is_held(layout.lock)  # before the state is read
        state = StackState.read(layout.state)
        if state is not None and (supervisor is None or state.supervisor.pid == supervisor.pid):
            if supervisor is not None or state.phase != "ready":
                progress(state)
            if state.phase == "ready" and not over:
                return state
            if state.phase == "failed":
                raise LaunchError(state.failure)
        if over:
            words = logfiles.tail(layout.logs / "supervisor.log")
            raise LaunchError(f"the supervisor ended while it started the stack; its last lines:\n{words}")
        if time.monotonic() > deadline:
            raise LaunchError(f"the stack was not ready within {timeout:.0f} s{_unready(state)}")
        time.sleep(POLL_SECONDS)


def _unready(state: StackState | None) -> str:
    if state is None:
        return ""
    behind = [process for process in state.processes if process.condition not in ("ready", "done", "waiting")]
    lines = [f"; {', '.join(process.name for process in behind)} did not become ready"]
    words = ((process.log, logfiles.tail(Path(process.log))) for process in behind if process.log)
    lines += [f"the last lines of {log}:\n{last}" for log, last in words if last]
    return "\n".join(lines)


@contextmanager
def _interruptions_as_exceptions() -> Generator[None]:
    """Ctrl-C, SIGTERM and a closed terminal raise InterruptedStartError in the main thread."""

    def interrupt(number: int, _: FrameType | None) -> None:
        raise InterruptedStartError(f"interrupted by {signal.Signals(number).name}; nothing is left running")

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _quietly(*numbers: signal.Signals) -> None:
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def stop(layout: Layout) -> bool:
    """Stops a stack if it runs, and ends whatever a dead supervisor left; whether there was anything. Idempotent.

    Raises LaunchError when a process cannot be ended.
    """
    if not layout.lock.exists():
        return False
    found = is_held(layout.lock)
    if found:
        _ask_to_stop(layout)
        if not kernel.wait_for(lambda: not is_held(layout.lock), STOP_SECONDS):
            state = StackState.read(layout.state)
            if state is not None:
                state.supervisor.send(signal.SIGKILL)
            if not kernel.wait_for(lambda: not is_held(layout.lock), KILL_SECONDS):
                raise LaunchError("the supervisor cannot be ended; see logs/supervisor.log in the data folder")
    lock = take_lock(layout.lock)
    if lock is None:
        raise LaunchError("the stack is being started again by somebody else")
    try:
        return end_leftovers(layout) or found
    finally:
        os.close(lock)


def _ask_to_stop(layout: Layout) -> None:
    """Signals the supervisor as soon as it has said who it is: a start may have only begun."""

    def ask() -> bool:
        state = StackState.read(layout.state)
        if state is not None and state.supervisor.alive:
            state.supervisor.send(signal.SIGTERM)
            return True
        return not is_held(layout.lock)

    kernel.wait_for(ask, KILL_SECONDS)


def end_leftovers(layout: Layout) -> bool:
    """Ends what a supervisor that died left behind, and forgets it; whether there was anything. Holds the lock."""
    state = StackState.read(layout.state)
    left = [process.identity for process in state.processes if process.identity] if state else []
    alive = [identity for identity in left if identity.alive]
    for identity in alive:  # they were signalled when their supervisor died: this is only the end of their grace
        if not kernel.wait_for(lambda identity=identity: not identity.alive, KILL_SECONDS):
            _kill_tree(identity)
    _sweep_sandboxes()
    shutil.rmtree(layout.runtime, ignore_errors=True)
    return bool(alive)


def _sweep_sandboxes() -> None:
    """A killed executor cannot have removed its control groups. Those of living executors are left alone."""
    from crucible_executor.sandbox import leftovers
    from crucible_executor.sandbox.gvisor import driver

    leftovers.sweep(driver.DEFAULT_STATE_ROOT, driver.DEFAULT_CGROUP_PARENT)


def _kill_tree(root: ProcessIdentity) -> None:
    tree = [identity for pid in kernel.descendants(root.pid) if (identity := ProcessIdentity.of(pid))]
    for identity in (root, *tree):
        identity.send(signal.SIGKILL)
    if not kernel.wait_for(lambda: not any(identity.alive for identity in (root, *tree)), KILL_SECONDS):
        raise LaunchError(f"process {root.pid} cannot be ended")


def purge(layout: Layout) -> bool:
    """Removes a stopped stack's data; whether there were any. Raises LayoutError for a folder that is no stack's."""
    if not layout.data.exists():
        return False
    if not layout.lock.exists():
        if any(layout.data.iterdir()):
            raise LayoutError(f"{layout.data} is not the data folder of a stack; nothing was removed")
        return False
    shutil.rmtree(layout.data)
    return True


def current_state(layout: Layout) -> tuple[StackState | None, list[ProcessState]]:
    """What runs: the state of a living stack, or None and what a dead one left running."""
    state = StackState.read(layout.state)
    if state is None:
        return None, []
    try:
        running = is_held(layout.lock)
    except PermissionError:  # the lock is root's
        running = state.supervisor.alive
    if running:
        return state, state.processes
    return None, [process for process in state.processes if process.identity and process.identity.alive]
