"""What ends a run from our side: Ctrl-C, SIGTERM, --timeout, a reader that left. The platform is asked to cancel.

A second signal ends the command at once and says how to cancel by hand.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress

from crucible_client.cli.exit_codes import LIMIT, PIPE_CLOSED, PLATFORM_FAILED
from crucible_client.client import Client
from crucible_client.errors import CrucibleError, PreconditionError


class Stopping:
    """Whether and why to stop. Make it inside the event loop, before the evaluation is submitted."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._asked = asyncio.Event()
        self.exit_code: int | None = None
        self.evaluation_id = ""
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._signalled, number)

    def ask(self, exit_code: int, why: str) -> None:
        """The first reason counts."""
        if self.exit_code is None:
            self.exit_code = exit_code
            self._say(f"{why}: cancelling {self.evaluation_id}".rstrip())
            self._asked.set()

    def unwritable(self, error: OSError) -> None:
        """Our standard output takes no more."""
        if isinstance(error, BrokenPipeError):
            self.ask(PIPE_CLOSED, "nobody reads the output any more")
        else:
            self.ask(PLATFORM_FAILED, f"cannot write the output ({error.strerror})")

    def _signalled(self, number: signal.Signals) -> None:
        if self.exit_code is None:
            self.ask(128 + number, "interrupted" if number == signal.SIGINT else "told to stop")
            return
        if self.evaluation_id:
            self._say(f"leaving at once; it may still run: crucible cancel {self.evaluation_id}")
        os._exit(128 + number)  # a thread may hang in a write to a pipe that nobody reads

    @asynccontextmanager
    async def cancelling(self, client: Client, evaluation_id: str, timeout: float | None) -> AsyncGenerator[None]:
        """While inside: when asked to stop, or after `timeout` seconds, cancels the evaluation at the platform.

        When the platform does not answer, what runs inside is cancelled instead.
        """
        self.evaluation_id = evaluation_id
        inside = asyncio.current_task()
        assert inside is not None
        task = asyncio.create_task(self._cancel_when_asked(client, timeout, inside), name="cancel when asked")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _cancel_when_asked(self, client: Client, timeout: float | None, inside: asyncio.Task[object]) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._asked.wait()
        except TimeoutError:
            self.ask(LIMIT, "--timeout is over")
        try:
            await client.cancel(self.evaluation_id)
        except PreconditionError:
            return  # it was final before: the verdict is on its way
        except CrucibleError as error:
            self._say(f"could not cancel: {error}; it may still run: crucible cancel {self.evaluation_id}")
            inside.cancel()
