"""The life of a process: set-up, signals, the order of leaving, exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Generic, NoReturn, TypeVar

import uvloop

from crucible_chassis.logs import configure_logging, get_logger
from crucible_chassis.settings import EX_CONFIG, ServiceSettings
from crucible_chassis.tasks import TaskSupervisor
from crucible_chassis.telemetry import Telemetry, start_telemetry

EX_SOFTWARE = 70
"""Exit code of a process that ended for a fault of its own (sysexits.h)."""

LEAVING_SECONDS = 6.0
"""Seconds beyond the grace for closing what is left. Then `main` is cancelled, and given as long again; then the
process is ended hard."""

S = TypeVar("S", bound=ServiceSettings)

log = get_logger(__name__)


class Lifetime(Generic[S]):
    """What a service's `serve` is given.

    Resources enter `stack` in order and leave in reverse, after the tasks of `tasks` have been cancelled. `stopping` is
    set on SIGTERM, SIGINT or when a side task died.
    """

    def __init__(self, settings: S, telemetry: Telemetry, *, whole_process: bool = False) -> None:
        """`whole_process`: the process has no life but this."""
        self.settings = settings
        self.telemetry = telemetry
        self.stopping = asyncio.Event()
        self.stack = contextlib.AsyncExitStack()
        self.tasks = TaskSupervisor(self._task_died)
        self.failed = False
        self._serving = False
        self._whole_process = whole_process

    async def until_stopped(self) -> None:
        """Returns when the process shall stop. Before it is reached a stop cancels the start-up instead."""
        self._serving = True
        if self._whole_process:
            # What start-up made lasts as long as the process: no collection needs to walk through it and hold up calls.
            gc.collect()
            gc.freeze()
        await self.stopping.wait()

    @property
    def serving(self) -> bool:
        """Whether start-up is over: `until_stopped` was reached."""
        return self._serving

    def _task_died(self, _name: str) -> None:
        self.failed = True
        self.stopping.set()


def run(
    main: Callable[[Lifetime[S]], Awaitable[None]],
    *,
    service: str,
    settings: S,
    leaving_seconds: float = LEAVING_SECONDS,
) -> NoReturn:
    """Runs `main` as this process and exits.

    Exit code 0 after a stop by SIGTERM or SIGINT, 70 when `main` raised, returned unasked, a side task died, or leaving
    took longer than the grace (`settings.grace_seconds`) and `leaving_seconds`; 78 when the telemetry settings are
    wrong. A second signal ends it at once.
    """
    configure_logging(service, settings.log_level)
    try:
        telemetry = start_telemetry(service, instance=f"{os.uname().nodename}:{os.getpid()}")
    except ValueError as exc:
        log.critical("process.failed", error=str(exc))
        sys.exit(EX_CONFIG)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(_live(main, settings, telemetry, service, leaving_seconds))
    finally:
        telemetry.shutdown()
    sys.exit(code)


async def _live(
    main: Callable[[Lifetime[S]], Awaitable[None]],
    settings: S,
    telemetry: Telemetry,
    service: str,
    leaving_seconds: float,
) -> int:
    lifetime = Lifetime(settings, telemetry, whole_process=True)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _signalled, lifetime, number)
    log.info("process.starting", pid=os.getpid())
    body = asyncio.create_task(_serve(main, lifetime), name=f"{service}-main")
    stopping = asyncio.create_task(lifetime.stopping.wait(), name="stopping")
    try:
        await asyncio.wait({body, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not body.done():
            if not lifetime.serving:
                body.cancel()
            await _leave(body, lifetime, leaving_seconds)
    finally:
        stopping.cancel()
    return _exit_code(body, lifetime)


async def _serve(main: Callable[[Lifetime[S]], Awaitable[None]], lifetime: Lifetime[S]) -> None:
    async with lifetime.stack, lifetime.tasks:
        await main(lifetime)


async def _leave(body: asyncio.Task[None], lifetime: Lifetime[S], leaving: float) -> None:
    """Waits for `main` to drain, then cancels it. A watchdog stands behind all that may hang, event loop included."""
    grace = lifetime.settings.grace_seconds
    watchdog = threading.Timer(grace + 2 * leaving, _end_hard)
    watchdog.daemon = True
    watchdog.start()
    done, _ = await asyncio.wait({body}, timeout=grace + leaving)
    if not done:
        log.error("process.grace_exceeded", grace_seconds=grace)
        lifetime.failed = True
        body.cancel()
        await asyncio.wait({body})


def _end_hard() -> None:
    log.critical("process.stuck")
    os._exit(EX_SOFTWARE)


def _exit_code(body: asyncio.Task[None], lifetime: Lifetime[S]) -> int:
    if body.cancelled():
        asked = lifetime.stopping.is_set() and not lifetime.serving
    elif (error := body.exception()) is not None:
        log.critical("process.failed", error=f"{type(error).__name__}: {error}", exc_info=error)
        return EX_SOFTWARE
    else:
        asked = lifetime.stopping.is_set()
        if not asked:
            log.critical("process.failed", error="main returned before it was asked to stop")
    if lifetime.failed or not asked:
        return EX_SOFTWARE
    log.info("process.stopped")
    return 0


def _signalled(lifetime: Lifetime[S], number: signal.Signals) -> None:
    if lifetime.stopping.is_set():
        log.warning("process.killed", signal=number.name)
        os._exit(EX_SOFTWARE)
    log.info("process.stopping", signal=number.name)
    lifetime.stopping.set()
