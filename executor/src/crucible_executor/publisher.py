"""What a run tells the store: numbered messages, one in flight, kept until the store has them. Rules 2 and 12."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import nats.errors
from google.protobuf.timestamp_pb2 import Timestamp

from crucible.internal.v1 import attempt_pb2
from crucible.v1 import event_pb2
from crucible_chassis.logs import get_logger
from crucible_chassis.messaging import Messaging
from crucible_contracts import subjects
from crucible_contracts.limits import HEARTBEAT_SECONDS
from crucible_executor import convert
from crucible_executor.outputs import RunOutput
from crucible_executor.sandbox.port import UsageSample

OUTPUT_BURST = 32
"""Output messages of a run that go out at once ..."""
OUTPUT_SECONDS = 0.05
"""... and then one in this time: a program that prints byte by byte for an hour shall not flood broker and store."""

STALLED_REPLIES = 2
"""Replies in which `next` did not move, after which acknowledged messages count as lost."""
MAX_PATIENCE = 8
"""How many times slower the last rounds of publishing again are: a store that is behind is not helped by repetition."""

FIRST_BACKOFF_SECONDS = 0.1
LAST_BACKOFF_SECONDS = 2.0
CONNECTED_POLL_SECONDS = 0.05

log = get_logger(__name__)


class Outbox(Protocol):
    """Where messages go."""

    async def publish(self, evaluation_id: str, payload: bytes, message_id: str, headers: Mapping[str, str]) -> None:
        """Returns once the broker has stored it, however long that takes."""
        ...


class AttemptsOutbox:
    """The stream ATTEMPTS. It may be full, away or not made yet: a publish is tried for ever, under one message id."""

    def __init__(self, messaging: Messaging) -> None:
        self._messaging = messaging

    async def publish(self, evaluation_id: str, payload: bytes, message_id: str, headers: Mapping[str, str]) -> None:
        """See `Outbox`."""
        backoff = FIRST_BACKOFF_SECONDS
        while True:
            # Never into the client's own buffer, which is small and would hold the same message many times.
            while not self._messaging.is_connected:  # noqa: ASYNC110  nats-py offers nothing to wait on
                await asyncio.sleep(CONNECTED_POLL_SECONDS)
            try:
                await self._messaging.jetstream_publish(
                    subjects.attempts(evaluation_id), payload, message_id=message_id, headers=headers
                )
            except nats.errors.Error as exc:
                log.warning("message.not_published", evaluation=evaluation_id, message=message_id, error=repr(exc))
                await asyncio.sleep(backoff)
                backoff = min(2 * backoff, LAST_BACKOFF_SECONDS)
            else:
                return


@dataclass(slots=True)
class _Held:
    payload: bytes
    acknowledged_at: float | None = None
    """Monotonic time of the broker's acknowledgement."""


@dataclass(slots=True)
class _Stall:
    next: int
    replies: int
    asked_at: float


class RunJournal:
    """The messages of one run.

    It is told what happens (`started`, `sample`, `finish`; output by `output_came`) and by each heartbeat's reply what
    is stored (`confirm`). `run` publishes until it is cancelled, which is how a run is forgotten. Memory is bounded:
    live output by its bound, the number of messages by their pace, and what is stored is dropped.
    """

    def __init__(
        self,
        envelope: attempt_pb2.AttemptMessage,
        output: RunOutput,
        outbox: Outbox,
        headers: Mapping[str, str],
        *,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self.flushed = asyncio.Event()
        """The broker has the run's last message."""
        self._envelope = envelope
        self._output = output
        self._outbox = outbox
        self._headers = {**headers, subjects.LEASE_HEADER: subjects.lease(envelope.attempt, envelope.token)}
        self._heartbeat_seconds = heartbeat_seconds
        self._begun: attempt_pb2.AttemptMessage | None = None
        self._sample: attempt_pb2.AttemptMessage | None = None
        self._end: attempt_pb2.AttemptMessage | None = None
        self._said_started = False
        self._said_finished = False
        self._held: deque[_Held] = deque()
        self._first = 0  # number of the first message held
        self._cursor = 0  # number of the next to be published
        self._round = 0
        self._repeated_below = 0  # numbers below this were published in an earlier round
        self._stall: _Stall | None = None
        self._latest = Timestamp()  # of the message built last
        self._paced_until = 0.0
        self._wake = asyncio.Event()

    def started(self, image_digest: str) -> None:
        """The program was delivered. Only now does output go out."""
        started = event_pb2.Started(executor=self._envelope.executor, image_digest=convert.digest(image_digest))
        self._begun = self._stamped(attempt_pb2.AttemptMessage(started=started))
        self._wake.set()

    def output_came(self) -> None:
        """There is more in the run's output."""
        self._wake.set()

    def sample(self, sample: UsageSample) -> None:
        """What the program has used so far; a sample that was not sent yet is replaced."""
        self._sample = self._stamped(convert.usage_sample(sample))
        self._wake.set()

    def finish(self, finished: attempt_pb2.RunFinished) -> None:
        """The run's end: it goes out after all output."""
        self._output.end()
        self._end = self._stamped(attempt_pb2.AttemptMessage(finished=finished))
        self._wake.set()

    def confirm(self, stored: int, asked_at: float) -> None:
        """The store has all messages below `stored`, says the reply to a heartbeat sent at `asked_at` (monotonic)."""
        while self._held and self._first < stored:
            self._held.popleft()
            self._first += 1
        self._cursor = max(self._cursor, self._first)
        if self._is_stalled(stored, asked_at):
            log.warning("messages.published_again", run=self._envelope.run, number=stored, round=self._round + 1)
            self._round += 1
            self._repeated_below = self._cursor
            self._cursor = stored
            self._stall = None
            self._wake.set()

    async def run(self) -> None:
        """Publishes, one message in flight, until it is cancelled."""
        while True:
            self._wake.clear()
            if self._cursor < self._first + len(self._held):
                await self._publish(self._cursor)
            elif (message := self._next()) is not None:
                message.number = self._cursor
                self._keep_times_in_order(message)
                message.MergeFrom(self._envelope)
                self._held.append(_Held(message.SerializeToString()))
            else:
                await self._wait()

    def _is_stalled(self, stored: int, asked_at: float) -> bool:
        """Counts replies in which `stored` stays where it is, though the broker has had that message all the while.

        A heartbeat goes out at each pull too, so only replies a full interval apart count.
        """
        if not self._first <= stored < self._cursor or stored - self._first >= len(self._held):
            self._stall = None
            return False
        since = self._held[stored - self._first].acknowledged_at
        if self._stall is not None and self._stall.next == stored:
            since = self._stall.asked_at
        else:
            self._stall = None
        interval = self._heartbeat_seconds * min(2**self._round, MAX_PATIENCE)
        if since is None or asked_at - since < interval:
            return False
        self._stall = _Stall(stored, self._stall.replies + 1 if self._stall else 1, asked_at)
        return self._stall.replies >= STALLED_REPLIES

    async def _publish(self, number: int) -> None:
        held = self._held[number - self._first]
        message_id = f"{self._envelope.run}.{number}"
        if number < self._repeated_below:
            message_id += f".{self._round}"  # the broker would swallow the same id
        await self._outbox.publish(self._envelope.evaluation_id, held.payload, message_id, self._headers)
        held.acknowledged_at = time.monotonic()
        if self._cursor == number:  # else a reply has moved it meanwhile
            self._cursor = number + 1
        if self._said_finished and self._cursor == self._first + len(self._held):
            self.flushed.set()

    def _next(self) -> attempt_pb2.AttemptMessage | None:
        """The next message to be built; None: there is nothing to say now."""
        if self._begun is not None:
            message, self._begun = self._begun, None
            self._said_started = True
            return message
        if self._said_started:
            if self._sample is not None and self._end is None:
                message, self._sample = self._sample, None
                return message
            if self._may_send_output() and (taken := self._output.take()) is not None:
                self._paced_until = max(self._paced_until, time.monotonic()) + OUTPUT_SECONDS
                return self._stamped(convert.output(taken))
            if self._output.ready:
                return None
        message, self._end = self._end, None
        if message is not None:
            self._said_finished = True
        return message

    def _may_send_output(self) -> bool:
        return self._end is not None or self._pause() <= 0

    def _pause(self) -> float:
        """Seconds until output may be sent again."""
        return self._paced_until - (OUTPUT_BURST - 1) * OUTPUT_SECONDS - time.monotonic()

    async def _wait(self) -> None:
        """For something to say; while output waits for its turn, no longer than that."""
        pause = self._pause() if self._said_started and self._output.ready else None
        try:
            async with asyncio.timeout(pause):
                await self._wake.wait()
        except TimeoutError:
            return

    def _keep_times_in_order(self, message: attempt_pb2.AttemptMessage) -> None:
        """A message is stamped when its thing happens, and may wait for others; and clocks are set back."""
        if (message.create_time.seconds, message.create_time.nanos) < (self._latest.seconds, self._latest.nanos):
            message.create_time.CopyFrom(self._latest)
        self._latest.CopyFrom(message.create_time)

    def _stamped(self, message: attempt_pb2.AttemptMessage) -> attempt_pb2.AttemptMessage:
        message.create_time.CopyFrom(convert.timestamp(datetime.now(UTC)))
        return message
