"""Rpcs that stream numbered messages: Server-Sent Events, or JSON lines where the caller prefers them.

Nothing is queued here: each message is read when the one before has been taken, so that a slow client slows its own
call by gRPC's flow control, and is dropped when it takes nothing at all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Protocol, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from crucible.v1.policy_pb2 import EventStream
from crucible_chassis.errors import ServiceError
from crucible_chassis.logs import get_logger
from crucible_contracts.policy import STREAM_OPEN
from crucible_gateway import json_writer
from crucible_gateway.bindings import Binder, Bound
from crucible_gateway.contract import Route
from crucible_gateway.exchange import NO_STORE, ClientGoneError, Exchange, TaskScope
from crucible_gateway.problems import in_callers_words, problem
from crucible_gateway.upstreams import Upstream

EVENT_STREAM = "text/event-stream"
JSON_LINES = "application/x-ndjson"

PING_SECONDS = 15.0
"""Between two signs of life; also how soon a client that left unseen is noticed."""
HEAD_SECONDS = 2.0
"""How long the head of an answer waits for the first message, so that a failure gets a status of its own."""
RETRY_MILLISECONDS = 1000
"""How long a browser waits before it connects again."""
RESUME_SECONDS = 15.0
"""How long a broken stream is taken up elsewhere before the client is told."""
RESUME_PAUSE_SECONDS = 0.25

log = get_logger(__name__)

StreamCall = grpc.aio.UnaryStreamCall[Any, Any]


class _Writer(Protocol):
    """The form of a stream's items."""

    content_type: str
    opening: bytes
    ping: bytes

    def event(self, message: Message) -> bytes:
        """A message."""
        ...

    def failure(self, error: ServiceError) -> bytes:
        """The last item of a stream that failed."""
        ...


class _SseWriter:
    content_type = EVENT_STREAM
    opening = f"retry: {RETRY_MILLISECONDS}\n\n".encode()
    ping = b": ping\n\n"

    def __init__(self, options: EventStream) -> None:
        self._options = options

    def event(self, message: Message) -> bytes:
        lines = b"id: %d\n" % getattr(message, self._options.cursor_field)
        kind = message.WhichOneof(self._options.kind_oneof)
        if kind is not None:
            lines += b"event: %s\n" % kind.encode()
        return b"%sdata: %s\n\n" % (lines, json_writer.write_json(message))

    def failure(self, error: ServiceError) -> bytes:
        return b"event: error\ndata: %s\n\n" % json_writer.encode(problem(error).document)


class _LinesWriter:
    content_type = JSON_LINES
    opening = b""
    # Not every reader of JSON lines skips empty ones.
    ping = b""

    def event(self, message: Message) -> bytes:
        return json_writer.write_json(message) + b"\n"

    def failure(self, error: ServiceError) -> bytes:
        return json_writer.encode({"error": problem(error).document}) + b"\n"


class EventStreamer:
    """The handler of a route that streams numbered messages."""

    def __init__(self, route: Route, upstream: Upstream) -> None:
        if route.event_stream is None:
            msg = f"{route.rpc.full_name} states no event_stream"
            raise ValueError(msg)
        self._route = route
        self._options = route.event_stream
        self._binder = Binder(route)
        self._upstream = upstream

    async def handle(self, exchange: Exchange, variables: Mapping[str, str]) -> None:
        """Streams until the call ends, the client leaves, or the process stops."""
        bound = await self._binder.bind(exchange, variables)
        writer = _LinesWriter() if _prefers_lines(exchange.headers.get("accept", "")) else _SseWriter(self._options)
        await _Stream(self._route, self._options, self._upstream, exchange, bound, writer).run()


class _Stream:
    """One request's stream, over as many calls as it takes."""

    def __init__(
        self,
        route: Route,
        options: EventStream,
        upstream: Upstream,
        exchange: Exchange,
        bound: Bound,
        writer: _Writer,
    ) -> None:
        self._route = route
        self._options = options
        self._upstream = upstream
        self._open = upstream.stream(route.rpc)
        self._exchange = exchange
        self._bound = bound
        self._request = bound.message
        self._writer = writer
        self._resuming_until = 0.0

    async def run(self) -> None:
        async with TaskScope() as scope:
            ends: list[asyncio.Task[Any]] = [
                scope.start("drain", self._exchange.drain.begun.wait()),
                scope.start("client", self._exchange.gone()),
            ]
            while True:
                call: StreamCall = self._open(self._request)
                try:
                    await self._relay(call, scope, ends)
                except grpc.aio.AioRpcError as exc:
                    error = in_callers_words(self._upstream.failure(exc), self._route, self._bound.spoken)
                    if await self._resumable(error):
                        continue
                    if not self._exchange.status:
                        raise error from exc
                    log.warning("stream.failed", route=self._exchange.route, code=error.code.name, reason=error.reason)
                    await self._exchange.write(self._writer.failure(error))
                finally:
                    # grpc.aio neither collects nor cancels a call that is left.
                    call.cancel()
                await self._exchange.write(last=True)
                return

    async def _relay(self, call: StreamCall, scope: TaskScope, ends: list[asyncio.Task[Any]]) -> None:
        """Passes messages on until the call is over."""
        drained, left = ends
        deadline = time.monotonic() + HEAD_SECONDS
        opened = scope.start("opened", _opened(call))
        while True:
            read = scope.start("read", _read(call))
            message = await self._next(read, opened, ends, deadline)
            if left.done():
                raise ClientGoneError
            if message is None:
                if not self._exchange.status:
                    await self._begin(ended=not drained.done())
                return
            await self._begin()
            if self._exchange.head:
                return
            await self._exchange.write(self._writer.event(message))
            setattr(self._request, self._options.resume_field, getattr(message, self._options.cursor_field))
            self._resuming_until = 0.0

    async def _next(
        self,
        read: asyncio.Task[Message | None],
        opened: asyncio.Task[bool],
        ends: list[asyncio.Task[Any]],
        deadline: float,
    ) -> Message | None:
        """The next message; None at the end of the stream, or when client or process leave. Pings while it waits."""
        while True:
            timeout = PING_SECONDS if self._exchange.status else max(0.0, deadline - time.monotonic())
            waits: set[asyncio.Task[Any]] = {read, *ends}
            if not opened.done():
                waits.add(opened)
            done, _ = await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if read in done:
                return read.result()
            if any(end in done for end in ends):
                return None
            if opened in done and (self._exchange.status or opened.exception() is not None or not opened.result()):
                continue
            if not self._exchange.status:
                await self._begin()
                if self._exchange.head:
                    return None
            elif self._writer.ping:
                await self._exchange.write(self._writer.ping)

    async def _begin(self, *, ended: bool = False) -> None:
        """Sends the head, once. `ended`: the stream is over and was empty."""
        if self._exchange.status:
            return
        if ended and self._bound.resumed and self._writer.content_type == EVENT_STREAM:
            # The one answer that tells a browser to stop connecting again.
            await self._exchange.begin(204, (NO_STORE,))
            return
        headers = (("content-type", self._writer.content_type), NO_STORE, ("x-accel-buffering", "no"))
        await self._exchange.begin(200, headers)
        if self._writer.opening and not self._exchange.head:
            await self._exchange.write(self._writer.opening)

    async def _resumable(self, error: ServiceError) -> bool:
        """Whether to open the call again, after a pause: a server that stops ends its streams with UNAVAILABLE."""
        if error.code is not grpc.StatusCode.UNAVAILABLE or not self._exchange.status:
            return False
        if self._exchange.drain.begun.is_set():
            return False
        now = time.monotonic()
        self._resuming_until = self._resuming_until or now + RESUME_SECONDS
        if now > self._resuming_until:
            return False
        await asyncio.sleep(RESUME_PAUSE_SECONDS)
        return True


async def _opened(call: StreamCall) -> bool:
    """Whether the server says that the stream is open though it has nothing to send yet."""
    key, value = STREAM_OPEN
    return (key, value) in tuple(await call.initial_metadata())


async def _read(call: StreamCall) -> Message | None:
    message = await call.read()
    return None if message is grpc.aio.EOF else cast("Message", message)


def _prefers_lines(accept: str) -> bool:
    """Whether JSON lines are asked for, and before Server-Sent Events."""
    kinds = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    if JSON_LINES not in kinds:
        return False
    return EVENT_STREAM not in kinds or kinds.index(JSON_LINES) < kinds.index(EVENT_STREAM)
