"""Rpcs with one answer: a JSON document."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from crucible_chassis.errors import ServiceError
from crucible_gateway import json_writer
from crucible_gateway.bindings import Binder, Bound
from crucible_gateway.contract import TIMEOUT, Route
from crucible_gateway.exchange import LARGE_BYTES, ClientGoneError, Exchange, TaskScope
from crucible_gateway.problems import in_callers_words
from crucible_gateway.upstreams import Upstream

CALL_SECONDS = 30.0
"""Deadline of a call that says nothing of its own; also how long a wait is when the caller does not say."""
WAIT_MARGIN_SECONDS = 10.0
"""A call that waits gets its deadline this long after the time it asked for, so that the service answers and not the
deadline."""
LONGEST_WAIT_SECONDS = 3600.0
"""Above every wait that the contract allows: what is longer is refused by the contract, and waits for nothing."""


class Handler(Protocol):
    """Answers the requests of one route."""

    async def handle(self, exchange: Exchange, variables: Mapping[str, str]) -> None:
        """Answers, or raises `ServiceError` or `ClientGoneError`."""
        ...


class Transcoder:
    """The handler of a unary route."""

    def __init__(self, route: Route, upstream: Upstream) -> None:
        self._route = route
        self._binder = Binder(route)
        self._upstream = upstream
        self._call = upstream.unary(route.rpc)

    async def handle(self, exchange: Exchange, variables: Mapping[str, str]) -> None:
        """One call, one document."""
        bound = await self._binder.bind(exchange, variables)
        try:
            if self._route.waits:
                response = await self._wait(exchange, bound)
            else:
                response = await self._call(bound.message, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as exc:
            raise in_callers_words(self._upstream.failure(exc), self._route, bound.spoken) from exc
        if response.ByteSize() > LARGE_BYTES:
            document = await asyncio.to_thread(json_writer.write_json, response, self._route.response_body)
        else:
            document = json_writer.write_json(response, self._route.response_body)
        await exchange.answer(200, document)

    async def _wait(self, exchange: Exchange, bound: Bound) -> Message:
        """A call that may take minutes: it ends with the process, and, where it only reads, with its client."""
        async with TaskScope() as scope:
            call = scope.start(f"{self._route.path} call", self._ask(bound.message))
            ends: list[asyncio.Task[Any]] = [call, scope.start("drain", exchange.drain.last.wait())]
            if self._route.method == "GET":
                # A client that leaves cancels nothing: what may have an effect is let run.
                ends.append(scope.start("client", exchange.gone()))
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if call.done():
                return call.result()
            if ends[1].done():
                raise ServiceError(
                    grpc.StatusCode.UNAVAILABLE,
                    "DEPENDENCY_UNAVAILABLE",
                    "this gateway is stopping; try again",
                    metadata={"part": "gateway"},
                    retry_after=1,
                )
            raise ClientGoneError

    async def _ask(self, message: Message) -> Message:
        return await self._call(message, timeout=_seconds(message))


def _seconds(message: Message) -> float:
    asked = CALL_SECONDS
    if message.HasField(TIMEOUT):
        timeout: Duration = getattr(message, TIMEOUT)
        asked = min(max(timeout.seconds + timeout.nanos / 1e9, 0.0), LONGEST_WAIT_SECONDS)
    return asked + WAIT_MARGIN_SECONDS
