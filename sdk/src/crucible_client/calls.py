"""How one service is called: deadlines, safe repetition, the trace, errors that are ours.

Every call states a deadline and is cancelled when it is left: grpc.aio neither collects nor cancels an abandoned one.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from crucible_client.errors import ConfigurationError, CrucibleError, DeadlineError, UnavailableError
from crucible_client.status import from_rpc_error
from crucible_client.trace import trace_id_of
from crucible_contracts.limits import MESSAGE_BYTES

CALL_SECONDS = 30.0
"""Deadline of a call that waits for nothing; each of its repetitions has it anew."""

FIRST_CONTACT_SECONDS = 2.0
"""How long a server is tried that was never reached: more likely its address is wrong than that it is away."""

FIRST_BACKOFF_SECONDS = 0.1
MAXIMUM_BACKOFF_SECONDS = 3.0
KEEPALIVE_SECONDS = 10
KEEPALIVE_TIMEOUT_SECONDS = 5

_LOOPBACK = re.compile(r"^(ipv4:|ipv6:|dns:///)?(127\.|localhost\b|\[?::1\b)")

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)


class Connection:
    """The channel to one service; connects at the first call. Close it."""

    def __init__(self, name: str, target: str, *, patience: float, traceparent: Callable[[], str]) -> None:
        self.name = name
        self.target = target
        self.patience = patience
        self.reached = False
        self._traceparent = traceparent
        self.channel = grpc.aio.insecure_channel(target, options=_channel_options(target))

    async def close(self) -> None:
        """Ends what is still under way."""
        await self.channel.close()

    async def unary(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT],
        request: RequestT,
        *,
        timeout: float = CALL_SECONDS,
        repeatable: bool = True,
    ) -> ResponseT:
        """Calls until there is an answer, a lasting error, or no patience left. Raises CrucibleError.

        Each try is bounded by `timeout`; after the first failure they go on for the patience.
        """
        traceparent = self._traceparent()
        backoff = Backoff(self)
        while True:
            try:
                return await self._call(method, request, timeout, traceparent)
            except CrucibleError as error:
                if not (repeatable and error.transient):
                    raise
                await backoff.pause(error)

    async def _call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT],
        request: RequestT,
        timeout: float,
        traceparent: str,
    ) -> ResponseT:
        await self._connect(timeout, traceparent)
        call = method(request, timeout=timeout, metadata=(("traceparent", traceparent),))
        try:
            return await call
        except grpc.aio.AioRpcError as exc:
            raise self._translate(exc, traceparent) from exc
        finally:
            call.cancel()

    async def stream(
        self, method: grpc.aio.UnaryStreamMultiCallable[RequestT, ResponseT], request: RequestT, *, timeout: float
    ) -> AsyncGenerator[ResponseT, None]:
        """The messages of one streaming call; close it (`aclosing`). Repeats nothing. Raises CrucibleError."""
        traceparent = self._traceparent()
        await self._connect(timeout, traceparent)
        call = method(request, timeout=timeout, metadata=(("traceparent", traceparent),))
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as exc:
            raise self._translate(exc, traceparent) from exc
        finally:
            call.cancel()

    async def _connect(self, timeout: float, traceparent: str) -> None:
        """Waits for the first connection, before anything is sent: a call that fails later may have been heard."""
        if self.reached:
            return
        state = self.channel.get_state(try_to_connect=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while state in (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING):
                    await self.channel.wait_for_state_change(state)
                    state = self.channel.get_state(try_to_connect=True)
        if state is not grpc.ChannelConnectivity.READY:
            error = UnavailableError(
                f"cannot reach the {self.name} at {self.target}",
                code=grpc.StatusCode.UNAVAILABLE.name,
                trace_id=trace_id_of(traceparent),
                transient=state is not grpc.ChannelConnectivity.SHUTDOWN,
            )
            error.reached = False
            raise error
        self.reached = True

    def _translate(self, exc: grpc.aio.AioRpcError, traceparent: str) -> CrucibleError:
        error = from_rpc_error(exc, trace_id=trace_id_of(traceparent))
        if error.reason:
            return error
        # The text of the transport is about sockets; who is away and where is what helps.
        if isinstance(error, UnavailableError):
            full = exc.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            error.message = f"{'no room at' if full else 'lost'} the {self.name} at {self.target}"
        if isinstance(error, DeadlineError):
            error.message = f"the {self.name} at {self.target} did not answer in time"
        return error


class Backoff:
    """The pauses between repetitions: they double, with jitter, until patience is over, from the first failure on."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._failing_since: float | None = None
        self._pause = FIRST_BACKOFF_SECONDS

    def reset(self) -> None:
        """There was progress: patience begins anew."""
        self._failing_since = None
        self._pause = FIRST_BACKOFF_SECONDS

    async def pause(self, error: CrucibleError) -> None:
        """Waits for the next repetition; raises `error` when there is none."""
        now = asyncio.get_running_loop().time()
        if self._failing_since is None:
            self._failing_since = now
        patience = self._connection.patience
        if not self._connection.reached:
            patience = min(patience, FIRST_CONTACT_SECONDS)
        wait = max(self._pause * random.uniform(0.5, 1.0), error.retry_after or 0)  # noqa: S311  jitter, no secret
        if now + wait >= self._failing_since + patience:
            raise error
        self._pause = min(self._pause * 2, MAXIMUM_BACKOFF_SECONDS)
        await asyncio.sleep(wait)


def _channel_options(target: str) -> list[tuple[str, str | int]]:
    if not target or " " in target or not target.isprintable():
        raise ConfigurationError(f"{target!r} is not an address such as 127.0.0.1:8081")
    options: list[tuple[str, str | int]] = [
        ("grpc.max_send_message_length", MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MESSAGE_BYTES),
        ("grpc.max_metadata_size", 32 * 1024),  # a status with all its field violations is larger than the default
        ("grpc.absolute_max_metadata_size", 64 * 1024),
        ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_SECONDS * 1000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
        ("grpc.service_config_disable_resolution", 1),
    ]
    if _LOOPBACK.match(target):
        options.append(("grpc.enable_http_proxy", 0))  # the shell's http_proxy has no part in this machine's own ports
    return options
