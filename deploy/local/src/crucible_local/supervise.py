"""The life of one stack's supervisor: a process that holds the stack's lock from start to end."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from crucible_local import kernel
from crucible_local.client_config import remove_client_config, write_client_config
from crucible_local.confinement import ConfinementError
from crucible_local.kernel import ProcessIdentity
from crucible_local.layout import Layout
from crucible_local.options import StackOptions, invoking_user, service_user
from crucible_local.specification import Stage
from crucible_local.stack import Stack
from crucible_local.state import Phase, ProcessState, StackState
from crucible_local.supervisor import Supervisor

log = logging.getLogger(__name__)


class Life:
    """Start, ready, stop; every step of it is in the state file at once."""

    def __init__(self, state_file: Path, addresses: dict[str, str], announce: Callable[[], None]) -> None:
        own = ProcessIdentity.of(os.getpid())
        assert own is not None
        self._file = state_file
        self._state = StackState(supervisor=own, addresses=addresses)
        self._announce = announce
        self._stop = asyncio.Event()

    async def run(self, stages: Sequence[Stage], *, logs: Path) -> bool:
        """Lives until SIGTERM or SIGINT, or until a start failed; whether it was ever ready."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        kernel.adopt_orphans()
        supervisor = Supervisor(stages, logs=logs, changed=self._processes_changed)
        housekeeping = asyncio.create_task(supervisor.watch(), name="housekeeping")
        stop = asyncio.create_task(self._stop.wait(), name="stop")
        start = asyncio.create_task(supervisor.start(), name="start")
        ready = False
        try:
            await asyncio.wait((start, stop), return_when=asyncio.FIRST_COMPLETED)
            if start.done() and not self._stop.is_set():
                await start
                ready = True
                self._announce()
                self._enter("ready")
                await asyncio.wait((stop, housekeeping), return_when=asyncio.FIRST_COMPLETED)
                if housekeeping.done():
                    await housekeeping
        except Exception as error:  # noqa: BLE001 - whatever it was, who waits for the start is told
            self._fail(error)
        finally:
            if self._state.phase != "failed":
                self._enter("stopping")
            start.cancel()
            housekeeping.cancel()
            await asyncio.gather(start, housekeeping, return_exceptions=True)
            await supervisor.stop()
            if left := kernel.end_descendants():
                log.error("cannot end %s", sorted(left))
            stop.cancel()
            if self._state.phase != "failed":
                self._enter("stopped")
        return ready

    def _fail(self, error: Exception) -> None:
        log.error("the stack fails: %s", error)
        self._state.failure = str(error) or repr(error)
        self._enter("failed")

    def fail_before_start(self, error: Exception) -> None:
        """Notes why nothing was started."""
        self._fail(error)

    def _enter(self, phase: Phase) -> None:
        log.info("phase %s", phase)
        self._state.phase = phase
        self._write()

    def _processes_changed(self, states: list[ProcessState]) -> None:
        self._state.processes = states
        self._write()

    def _write(self) -> None:
        self._state.write(self._file)


def supervise(options: StackOptions) -> int:
    """Runs the stack; the caller holds its lock. Gives the exit code."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, stream=sys.stderr)
    environment = dict(os.environ)
    layout = Layout(options.data)
    try:
        user = service_user(environment)
    except ConfinementError as error:
        log.error("the stack fails: %s", error)
        return 1
    return asyncio.run(_supervise(options, layout, Stack(options, environment, user)))


async def _supervise(options: StackOptions, layout: Layout, stack: Stack) -> int:
    def announce() -> None:
        if options.client_config is not None:
            write_client_config(options.client_config, stack.addresses, invoking_user(os.environ))

    life = Life(layout.state, stack.addresses, announce)
    try:
        stages = stack.stages()
    except Exception as error:  # noqa: BLE001 - whatever it was, who waits for the start is told
        life.fail_before_start(error)
        return 1
    try:
        return 0 if await life.run(stages, logs=layout.logs) else 1
    finally:
        if options.client_config is not None:
            remove_client_config(options.client_config)
