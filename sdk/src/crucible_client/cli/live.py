"""The live output of a run: byte-exact, in order, each stream on its own; what is not sent live is read at the end.

One that waits in the queue for long says why.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import aclosing, suppress

from crucible_client.cli.session import silence_stdout
from crucible_client.client import Client
from crucible_client.errors import CrucibleError
from crucible_client.views import Evaluation, Event, Status, StatusReason, Stream

NOTICE_SECONDS = 2.0
"""In the queue, before a person is told what it waits for."""

_WAITS_FOR = {
    StatusReason.WAITING_FOR_CAPACITY: "every slot is taken; it runs when one is free",
    StatusReason.RUNTIME_NOT_OFFERED: "no executor offers its runtime now; see: crucible status",
    StatusReason.RETRY_BACKOFF: "an attempt was lost; the next one follows soon",
}


class LiveOutput:
    """Writes a program's streams to ours. `unwritable` is called when our standard output takes no more."""

    def __init__(self, say: Callable[[str], None], unwritable: Callable[[OSError], None]) -> None:
        self._say = say
        self._unwritable = unwritable
        self._attempt = 0
        self._written = dict.fromkeys(Stream, 0)
        self._anything = False

    async def follow(self, client: Client, evaluation_id: str) -> Evaluation:
        """Follows the evaluation to its end, and gives it whole."""
        notice = asyncio.create_task(self._tell_why_it_waits(client, evaluation_id), name="tell why it waits")
        try:
            async with aclosing(client.watch(evaluation_id)) as events:
                async for event in events:
                    if event.kind != "queued":
                        notice.cancel()
                    await self._take(event)
        finally:
            notice.cancel()
            with suppress(asyncio.CancelledError):
                await notice
        evaluation = await client.get(evaluation_id)
        await self._complete(client, evaluation)
        return evaluation

    async def _take(self, event: Event) -> None:
        match event.kind:
            case "output":
                await self._add(event)
            case "requeued":
                self._say(f"attempt {event.attempt} was lost; another one follows")
            case "finished":
                self._begin(event.attempt)
            case _:
                pass

    async def _tell_why_it_waits(self, client: Client, evaluation_id: str) -> None:
        await asyncio.sleep(NOTICE_SECONDS)
        with suppress(CrucibleError):  # who watches is told of those
            evaluation = await client.get(evaluation_id)
            if evaluation.status is Status.QUEUED:
                why = _WAITS_FOR.get(evaluation.status_reason) if evaluation.status_reason else None
                self._say(f"{evaluation_id} waits in the queue" + (f": {why}" if why else ""))

    def _begin(self, attempt: int) -> None:
        # Attempts are never mixed; the late output of a lost one still carries its own number.
        if attempt == self._attempt:
            return
        if self._anything:
            self._say(f"attempt {attempt} begins; its output starts anew")
        self._attempt = attempt
        self._written = dict.fromkeys(Stream, 0)

    async def _add(self, event: Event) -> None:
        self._begin(event.attempt)
        stream = event.stream
        # Behind a hole (a message that the platform had to set aside) nothing is written until the end, when the whole
        # is read.
        if stream is not None and event.proto.output.offset == self._written[stream]:
            await self._write(stream, event.data)

    async def _complete(self, client: Client, evaluation: Evaluation) -> None:
        if evaluation.result is None:
            return
        sizes = {
            Stream.STDOUT: evaluation.result.stdout.size_bytes,
            Stream.STDERR: evaluation.result.stderr.size_bytes,
        }
        for stream, size in sizes.items():
            if self._written[stream] >= size:
                continue
            async with aclosing(client.output_chunks(evaluation.id, stream, offset=self._written[stream])) as chunks:
                async for chunk in chunks:
                    await self._write(stream, chunk)

    async def _write(self, stream: Stream, data: bytes) -> None:
        self._anything = True
        self._written[stream] += len(data)
        try:
            # In a thread: a reader that is slow must not keep Ctrl-C from being heard.
            await asyncio.to_thread(_write, stream, data)
        except OSError as error:  # nobody reads any more, or the disk behind it is full
            if stream is Stream.STDOUT:
                silence_stdout()
                self._unwritable(error)


def _write(stream: Stream, data: bytes) -> None:
    target = sys.stdout.buffer if stream is Stream.STDOUT else sys.stderr.buffer
    target.write(data)
    target.flush()
