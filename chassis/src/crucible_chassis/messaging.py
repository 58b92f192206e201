"""The connection to NATS: kept for ever, its troubles logged as events, trace context in its headers. Extra: `nats`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from typing import Any

import nats
import nats.aio.client
import nats.errors
import nats.js
import nats.js.api
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from crucible_chassis.logs import get_logger
from crucible_chassis.telemetry import inject_context

CONNECT_SECONDS = 2
"""Time for one attempt to connect to one server."""
RECONNECT_SECONDS = 0.25
"""Pause between attempts to connect to one server."""
PING_SECONDS = 10
"""A dead connection is noticed after at most three of these."""
DRAIN_SECONDS = 3
"""Time for subscriptions to finish what they hold and for publishes to leave, on exit."""
PENDING_MESSAGES = 65_536
"""Messages a subscription holds that its handler has not taken."""
COMPLAINT_SECONDS = 10.0
"""A server that cannot be reached is named in the log this often."""

MESSAGE_ID_HEADER = "Nats-Msg-Id"

log = get_logger(__name__)


class Messaging:
    """A connection to NATS."""

    def __init__(self, nc: nats.aio.client.Client) -> None:
        self.nc = nc
        self.js: nats.js.JetStreamContext = nc.jetstream()  # pyright: ignore[reportUnknownMemberType]  its options are untyped

    @property
    def is_connected(self) -> bool:
        """Whether a server answers now. Publishing meanwhile is buffered (2 MiB), and comes out after a reconnect."""
        return self.nc.is_connected

    async def publish(self, subject: str, message: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Publishes on core NATS: at most once, nobody confirms."""
        await self.nc.publish(subject, message, headers=_traced(headers))

    async def subscribe(
        self,
        subject: str,
        handler: Callable[[Msg], Awaitable[None]] | None = None,
        *,
        queue: str = "",
        pending_messages: int = PENDING_MESSAGES,
    ) -> Subscription:
        """Subscribes on core NATS: `handler` is awaited for one message after the other; without it, use `next_msg`.

        `queue` shares the messages among all of that name. More than `pending_messages` waiting: the newest are dropped
        and logged as `nats.messages_dropped`. What a handler raises is logged as `nats.error`.
        """
        # nats-py leaves one of its parameter types open.
        subscribe = self.nc.subscribe  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        return await subscribe(subject, queue=queue, cb=handler, pending_msgs_limit=pending_messages)

    async def request(
        self, subject: str, message: bytes, *, timeout: float = 5, headers: Mapping[str, str] | None = None
    ) -> Msg:
        """Asks and waits for one answer. `nats.errors.NoRespondersError` at once, `TimeoutError` after `timeout` s."""
        return await self.nc.request(subject, message, timeout=timeout, headers=_traced(headers))

    async def confirm(self, *, timeout: float = 5) -> None:
        """Waits until the server has taken what was sent before, subscriptions above all. `TimeoutError`.

        Asks a subject that nobody serves. nats-py's `flush` must not be interrupted, nor be late: the PONG for it then
        ends the client's reading, which nobody notices for half a minute (2.16.0, `_process_pong`).
        """
        with contextlib.suppress(nats.errors.NoRespondersError):
            await self.nc.request(self.nc.new_inbox(), timeout=timeout)

    async def jetstream_publish(
        self,
        subject: str,
        payload: bytes,
        *,
        message_id: str,
        headers: Mapping[str, str] | None = None,
        timeout: float = 5,
    ) -> nats.js.api.PubAck:
        """Publishes into a stream and waits for its acknowledgement.

        After a timeout the outcome is unknown (a publish made while disconnected is stored after the reconnect): repeat
        it under the same `message_id`, which the stream swallows if it was stored.
        """
        return await self.js.publish(
            subject, payload, timeout=timeout, headers={**_traced(headers), MESSAGE_ID_HEADER: message_id}
        )


@contextlib.asynccontextmanager
async def connect_messaging(url: str, *, name: str, echo: bool = True) -> AsyncGenerator[Messaging]:
    """A connection to one of the servers in `url` (a comma list), under this client name.

    Without `echo` its own subscriptions do not get what it publishes.

    Waits for the first connection as long as it takes, saying so in the log; reconnects for ever; on exit drains for at
    most `DRAIN_SECONDS` if connected.
    """
    servers = [server.strip() for server in url.split(",") if server.strip()]
    reporter = _Reporter(servers)
    nc = nats.aio.client.Client()
    try:
        await nc.connect(
            servers=servers,
            name=name,
            no_echo=not echo,
            connect_timeout=CONNECT_SECONDS,
            reconnect_time_wait=RECONNECT_SECONDS,  # pyright: ignore[reportArgumentType]  typed int, only compared and slept
            max_reconnect_attempts=-1,
            ping_interval=PING_SECONDS,
            max_outstanding_pings=2,
            drain_timeout=DRAIN_SECONDS,
            error_cb=reporter.error,
            disconnected_cb=reporter.disconnected,
            reconnected_cb=reporter.reconnected,
            closed_cb=reporter.closed,
        )
        reporter.connected = True
        log.info("nats.connected", servers=servers)
        yield Messaging(nc)
    finally:
        reporter.closing = True
        await _leave(nc)


async def _leave(nc: nats.aio.client.Client) -> None:
    """Drains if there is anybody to drain to, and closes; both bounded, since nats-py's own drain may hang."""
    if nc.is_connected:
        await _bounded("nats-drain", nc.drain(), DRAIN_SECONDS + 1)
    if not nc.is_closed:
        await _bounded("nats-close", nc.close(), 1)


async def _bounded(name: str, leaving: Coroutine[Any, Any, None], seconds: float) -> None:
    task = asyncio.create_task(leaving, name=name)
    done, _ = await asyncio.wait({task}, timeout=seconds)
    if not done:
        task.cancel()
        log.warning("nats.leaving_timed_out", step=name)
    elif not task.cancelled() and (error := task.exception()) is not None:
        log.warning("nats.leaving_failed", step=name, error=repr(error))


class _Reporter:
    """Turns nats-py's callbacks into log events. An unreachable server is a state, not logged at each attempt."""

    def __init__(self, servers: list[str]) -> None:
        self._servers = servers
        self._complained = -COMPLAINT_SECONDS
        self.connected = False
        self.closing = False

    async def error(self, error: Exception) -> None:
        if isinstance(error, nats.errors.SlowConsumerError):
            log.error("nats.messages_dropped", subject=error.subject)
        elif not self.connected:
            now = time.monotonic()
            if now - self._complained >= COMPLAINT_SECONDS:
                self._complained = now
                log.warning("nats.waiting", servers=self._servers, error=repr(error))
        else:
            log.warning("nats.error", error=repr(error))

    async def disconnected(self) -> None:
        if self.connected and not self.closing:
            self.connected = False
            log.warning("nats.disconnected", servers=self._servers)

    async def reconnected(self) -> None:
        self.connected = True
        log.info("nats.reconnected", servers=self._servers)

    async def closed(self) -> None:
        if not self.closing:
            log.error("nats.closed", servers=self._servers)


def _traced(headers: Mapping[str, str] | None) -> dict[str, str]:
    return {**inject_context(), **(headers or {})}
