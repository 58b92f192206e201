"""One HTTP request and its answer: the body read within bounds, the answer sent within bounds, and who left when."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import grpc
from opentelemetry import trace
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from crucible_chassis.errors import ServiceError
from crucible_gateway import json_writer
from crucible_gateway.problems import CONTENT_TYPE, fault, problem, too_large

MAX_BODY_BYTES = 8 * 1024 * 1024
MAX_HELD_BYTES = 256 * 1024 * 1024
"""Of all bodies at one time, until each has its answer: who sends many, or slowly, must not fill the memory."""
LARGE_BYTES = 128 * 1024
"""Documents over this size are read and written in a thread, so that nobody's stream stands still meanwhile."""
BODY_SECONDS = 60.0
"""A body is read within this time."""
SEND_SECONDS = 30.0
"""A client takes each slice of its answer within this time, or its connection is closed."""
SLICE_BYTES = 64 * 1024
"""Of an answer: the slowest client that is served takes so much in `SEND_SECONDS`."""

JSON = "application/json"
NO_STORE = ("cache-control", "no-store")

T = TypeVar("T")


class ClientGoneError(Exception):
    """Nobody is there to be answered any more."""


@dataclass(slots=True)
class Drain:
    """The two steps of a shutdown."""

    begun: asyncio.Event = field(default_factory=asyncio.Event)
    """The process stops: streams end."""
    last: asyncio.Event = field(default_factory=asyncio.Event)
    """The grace is nearly over: clients that still wait are told to retry."""


@dataclass(slots=True)
class Held:
    """What all requests share that have a body."""

    bytes: int = 0
    """Received so far for requests that have no whole answer yet."""


class Exchange:
    """A request, and the one answer to it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, drain: Drain, held: Held) -> None:
        self.method: str = scope["method"]
        self.raw_path: str = scope["raw_path"].decode("ascii", "replace")
        self.query: bytes = scope["query_string"]
        self.headers = Headers(scope=scope)
        client = scope.get("client")
        self.client: str = client[0] if client else ""
        self.drain = drain
        self._held = held
        self._body_bytes = 0
        self.route = ""
        """The template that matched: what spans, metrics and logs call this request."""
        self.status = 0
        """Status of the answer; 0 until it has begun."""
        self.sent_bytes = 0
        self._receive = receive
        self._send = send

    @property
    def head(self) -> bool:
        """Only the head of the answer is wanted."""
        return self.method == "HEAD"

    def single_header(self, name: str) -> str | None:
        """The value of a header that may be sent once; 400 if it is sent twice."""
        values = self.headers.getlist(name)
        if len(values) > 1:
            raise fault("INVALID_FIELD", "must be sent only once", field=name)
        return values[0].strip() if values else None

    async def read_body(self) -> bytes:
        """The whole body. 413 over `MAX_BODY_BYTES`, 408 when it comes too slowly, 503 when too much is held.

        `ClientGoneError`. It counts as held until `release`.
        """
        declared = self.headers.get("content-length", "")
        if declared.isdecimal() and (len(declared) > 19 or int(declared) > MAX_BODY_BYTES):
            raise _too_large()
        body = bytearray()
        more = True
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while more:
                    chunk, more = await self._next_chunk()
                    body += chunk
                    self._body_bytes += len(chunk)
                    self._held.bytes += len(chunk)
                    if len(body) > MAX_BODY_BYTES:
                        raise _too_large()
                    if self._held.bytes > MAX_HELD_BYTES:
                        raise _too_much_at_once()
        except TimeoutError as exc:
            raise _too_slow() from exc
        return bytes(body)

    def release(self) -> None:
        """The request is over: its body is held no more."""
        self._held.bytes -= self._body_bytes
        self._body_bytes = 0

    async def refuse_body(self) -> None:
        """400 when there is a body."""
        more = True
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while more:
                    chunk, more = await self._next_chunk()
                    if chunk:
                        raise fault("MALFORMED_BODY", "this method does not accept a body")
        except TimeoutError as exc:
            raise _too_slow() from exc

    async def gone(self) -> None:
        """Returns when the client has left. Only after the body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def answer(
        self, status: int, body: bytes, content_type: str = JSON, headers: Iterable[tuple[str, str]] = (NO_STORE,)
    ) -> None:
        """Sends a whole answer."""
        length = () if status == 204 else (("content-type", content_type), ("content-length", str(len(body))))
        await self.begin(status, (*length, *headers))
        await self.write(body, last=True)

    async def answer_problem(self, error: ServiceError) -> None:
        """Sends a failure as its problem document."""
        shown = problem(error)
        await self.answer(shown.status, json_writer.encode(shown.document), CONTENT_TYPE, (NO_STORE, *shown.headers))

    async def begin(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        """Sends the head of an answer whose body follows by `write`."""
        raw = [(name.encode("ascii"), value.encode("latin-1", "replace")) for name, value in headers]
        raw.append((b"x-content-type-options", b"nosniff"))
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            raw.append((b"crucible-trace-id", trace.format_trace_id(span.trace_id).encode()))
        self.status = status
        await self._bounded({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, data: bytes = b"", *, last: bool = False) -> None:
        """Sends a piece of the body; waits while the client is slow. `ClientGoneError`: it is too slow."""
        for start in range(0, len(data) or 1, SLICE_BYTES):
            end = start + SLICE_BYTES
            piece = data[start:end]
            self.sent_bytes += len(piece)
            more = not last or end < len(data)
            await self._bounded({"type": "http.response.body", "body": piece, "more_body": more})

    async def _bounded(self, message: Message) -> None:
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self._send(message)
        except TimeoutError as exc:
            raise ClientGoneError from exc

    async def _next_chunk(self) -> tuple[bytes, bool]:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        return message.get("body", b""), message.get("more_body", False)


class TaskScope:
    """Tasks that live no longer than a block: named, and cancelled and awaited when it is left."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, name: str, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Starts one; whoever needs its answer awaits it."""
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Seen, so that one which failed while nobody asked is no "exception was never retrieved".
            task.exception()


def _too_much_at_once() -> ServiceError:
    return ServiceError(
        grpc.StatusCode.UNAVAILABLE,
        "DEPENDENCY_UNAVAILABLE",
        "the gateway has too much to hold at once; try again",
        metadata={"part": "gateway"},
        retry_after=1,
    )


def _too_slow() -> ServiceError:
    return ServiceError(grpc.StatusCode.DEADLINE_EXCEEDED, "BODY_TOO_SLOW", "the body did not come in time")


def _too_large() -> ServiceError:
    return too_large("BODY_TOO_LARGE", "the body is larger", MAX_BODY_BYTES)
