"""Rpcs that give `google.api.HttpBody`: bytes as they are, with range requests where the policy maps them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import grpc
import grpc.aio
from google.api import httpbody_pb2  # pyright: ignore[reportMissingTypeStubs]  its wheel has none
from google.protobuf.message import DecodeError, Message

from crucible.v1.evaluation_query_service_pb2 import OutputSlice
from crucible.v1.policy_pb2 import ByteRange
from crucible_chassis.errors import ServiceError
from crucible_chassis.logs import get_logger
from crucible_gateway.bindings import Binder
from crucible_gateway.contract import Route
from crucible_gateway.exchange import NO_STORE, ClientGoneError, Exchange, TaskScope
from crucible_gateway.problems import fault, in_callers_words
from crucible_gateway.transcode import CALL_SECONDS
from crucible_gateway.upstreams import Upstream

OCTETS = "application/octet-stream"
READ_SECONDS = CALL_SECONDS
"""Each message comes within this time after it was asked for: what is read is stored already."""

# What a program wrote is shown from the gateway's own origin: no browser may take it for a page with scripts.
_INERT = ("content-security-policy", "default-src 'none'; sandbox")

_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{1,18})?|-([0-9]{1,18}))", re.IGNORECASE)
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,64}/[A-Za-z0-9!#$&^_.+-]{1,64}(; ?charset=[A-Za-z0-9_-]{1,32})?")

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Part:
    """What a `Range` asks for: `offset` negative counts from the end, `limit` 0 is all from there."""

    offset: int
    limit: int


class ByteStreamer:
    """The handler of a route that gives bytes."""

    def __init__(self, route: Route, upstream: Upstream) -> None:
        self._route = route
        self._options = route.byte_range
        self._binder = Binder(route)
        self._upstream = upstream
        if route.rpc.server_streaming:
            self._stream = upstream.stream(route.rpc)
            self._unary = None
        else:
            self._stream = None
            self._unary = upstream.unary(route.rpc)

    async def handle(self, exchange: Exchange, variables: Mapping[str, str]) -> None:
        """Streams the bytes, or the part that `Range` asks for."""
        bound = await self._binder.bind(exchange, variables)
        part = _asked_part(exchange) if self._options is not None else None
        if part is not None and self._options is not None:
            _put(bound.message, self._options, part)
        try:
            if self._unary is not None:
                body: httpbody_pb2.HttpBody = await self._unary(bound.message, timeout=CALL_SECONDS)
                await exchange.answer(200, body.data, _media_type(body), (NO_STORE, _INERT))
            else:
                await self._relay(exchange, bound.message, part)
        except (grpc.aio.AioRpcError, TimeoutError) as exc:
            error = in_callers_words(self._upstream.failure(exc), self._route, bound.spoken)
            if not exchange.status:
                raise error from exc
            # The head has promised a length: only a broken connection tells the client that it does not come.
            log.warning("stream.failed", route=exchange.route, code=error.code.name, reason=error.reason)
            raise ClientGoneError from exc

    async def _relay(self, exchange: Exchange, request: Message, part: _Part | None) -> None:
        assert self._stream is not None
        call: grpc.aio.UnaryStreamCall[Any, Any] = self._stream(request)
        try:
            async with TaskScope() as scope:
                gone = scope.start("client", exchange.gone())
                gone.add_done_callback(lambda task: None if task.cancelled() else call.cancel())
                first = await _read(call, gone)
                left = await self._begin(exchange, first, part)
                chunk = first
                while chunk is not None and not exchange.head:
                    if chunk.data:
                        if left is not None:
                            left -= len(chunk.data)
                            if left < 0:
                                msg = "a stream of bytes is longer than it said"
                                raise RuntimeError(msg)
                        await exchange.write(chunk.data)
                    chunk = await _read(call, gone)
                if left and not exchange.head:
                    msg = "a stream of bytes is shorter than it said"
                    raise RuntimeError(msg)
                await exchange.write(last=True)
        finally:
            call.cancel()

    async def _begin(self, exchange: Exchange, first: httpbody_pb2.HttpBody | None, part: _Part | None) -> int | None:
        """Sends the head; gives the number of bytes it promised."""
        headers = [("content-type", _media_type(first)), NO_STORE, _INERT]
        if self._options is not None:
            headers.append(("accept-ranges", "bytes"))
        piece = _slice(first)
        if piece is None:
            await exchange.begin(200, headers)
            return None
        if part is not None:
            whole = str(piece.size_bytes) if piece.complete else "*"
            if piece.length == 0:
                raise _unsatisfiable(piece.size_bytes)
            last = piece.offset + piece.length - 1
            headers.append(("content-range", f"bytes {piece.offset}-{last}/{whole}"))
        headers.append(("content-length", str(piece.length)))
        await exchange.begin(200 if part is None else 206, headers)
        return piece.length


def _asked_part(exchange: Exchange) -> _Part | None:
    """The one range asked for. None, as HTTP has it, for several ranges, other units and what cannot be read."""
    asked = exchange.single_header("range")
    if asked is None or "if-range" in exchange.headers:
        # There are no validators that an If-Range could match.
        return None
    found = _RANGE.fullmatch(asked.replace(" ", ""))
    if found is None:
        return None
    first, last, suffix = found.groups()
    if suffix is not None:
        if int(suffix) == 0:
            raise _unsatisfiable(None)
        return _Part(-int(suffix), 0)
    if last is None:
        return _Part(int(first), 0)
    return _Part(int(first), int(last) - int(first) + 1) if int(last) >= int(first) else None


def _put(message: Message, options: ByteRange, part: _Part) -> None:
    for name, value in ((options.offset_field, part.offset), (options.limit_field, part.limit)):
        if getattr(message, name):
            raise fault("INVALID_FIELD", "cannot be combined with the Range header", field=name)
        setattr(message, name, value)


def _slice(first: httpbody_pb2.HttpBody | None) -> OutputSlice | None:
    for extension in first.extensions if first is not None else ():
        piece = OutputSlice()
        try:
            if extension.Unpack(piece):
                return piece
        except DecodeError:
            return None
    return None


def _media_type(body: httpbody_pb2.HttpBody | None) -> str:
    given = body.content_type if body is not None else ""
    return given if _MEDIA_TYPE.fullmatch(given) else OCTETS


def _unsatisfiable(size: int | None) -> ServiceError:
    metadata = {} if size is None else {"size": str(size)}
    words = "the range starts past the end of the output"
    return ServiceError(grpc.StatusCode.OUT_OF_RANGE, "RANGE_NOT_SATISFIABLE", words, metadata=metadata)


async def _read(call: grpc.aio.UnaryStreamCall[Any, Any], gone: asyncio.Task[None]) -> httpbody_pb2.HttpBody | None:
    try:
        async with asyncio.timeout(READ_SECONDS):
            message = await call.read()
    except asyncio.CancelledError:
        if gone.done():
            # It is the call that was cancelled, and not the task that reads it.
            raise ClientGoneError from None
        raise
    return None if message is grpc.aio.EOF else cast("httpbody_pb2.HttpBody", message)
