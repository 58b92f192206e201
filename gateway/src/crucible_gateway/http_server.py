"""uvicorn within the process's own life: no signal handlers, bounded heads, and no connection may stall for ever."""

from __future__ import annotations

import asyncio
import contextlib
import http
import resource
import socket
import sys
from collections.abc import Generator

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from crucible_chassis.errors import ServiceError
from crucible_gateway import json_writer
from crucible_gateway.problems import CONTENT_TYPE, fault, problem, too_large

MAX_HEAD_BYTES = 32 * 1024
"""Of request line and headers together."""
MAX_URL_BYTES = 16 * 1024
"""Of path and query."""
MAX_CONNECTIONS = 10_000
"""More are answered 503."""
HEAD_SECONDS = 10.0
"""A request's head is complete within this time after its first byte, or the connection is closed; so is one whose
client goes on sending a body that was already answered."""
LATE_SECONDS = 0.05
"""For what has come by then to be read, before that time is held to be over."""
IDLE_SECONDS = 30
"""A connection without a request is closed after this time."""
STALLED_MILLISECONDS = 60_000
"""A peer that acknowledges nothing for this long is gone."""
UNSENT_BYTES = 128 * 1024
"""The kernel takes no more of a connection than it has sent, and this: it would gather megabytes for a slow client, and
ask for more only when a third of them are gone."""
BACKLOG = 2048


class CannotListenError(Exception):
    """The address is in use, or does not belong to this machine."""


def bind(listen: str) -> socket.socket:
    """A socket that listens on `host:port`; the process may hold as many as `MAX_CONNECTIONS` from here on."""
    # A connection is a file, and the limit of a shell, 1024, is below what we take.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MAX_CONNECTIONS if hard == resource.RLIM_INFINITY else min(hard, 2 * MAX_CONNECTIONS)
    if resource.RLIM_INFINITY != soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, int(port)), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as exc:
        msg = f"cannot listen on {listen}: the address is in use or not of this machine"
        raise CannotListenError(msg) from exc
    # Connections inherit them.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_MILLISECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    return sock


def address_of(sock: socket.socket) -> str:
    """`host:port` that a socket listens on."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def head_too_large(url_bytes: int) -> ServiceError:
    """What to say of a head over its bounds, by what of it is the URL."""
    if url_bytes > MAX_URL_BYTES:
        return too_large("URL_TOO_LONG", "path and query are longer", MAX_URL_BYTES)
    return too_large("HEADERS_TOO_LARGE", "the request's headers are larger", MAX_HEAD_BYTES)


class HttpServer(uvicorn.Server):
    """Serves an ASGI application until `stop`; `serve` returns when the last answer is sent or the grace is over."""

    def __init__(self, app: ASGIApp, grace_seconds: float) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=PatientH11Protocol,
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                # What hostile clients can cause at will is no line of the log.
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=MAX_CONNECTIONS,
                timeout_keep_alive=IDLE_SECONDS,
                timeout_graceful_shutdown=max(1, int(grace_seconds)),
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Signals are the process's, not the server's."""
        yield

    def stop(self) -> None:
        """Takes no more connections; lets those there are finish."""
        self.should_exit = True


class PatientH11Protocol(H11Protocol):
    """uvicorn's HTTP/1.1, which by itself waits for ever for a head that never ends."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as its base has it
        """A connection: its first head has begun."""
        super().connection_made(transport)
        self._check()

    def data_received(self, data: bytes) -> None:
        """Bytes: they complete a head, or the clock goes on."""
        super().data_received(data)
        self._check()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        self._disarm()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What h11 could not read is a problem like any other, unless the request has its answer already."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        cause = sys.exception()
        error = fault("INVALID_FIELD", "the request is not valid HTTP/1.1")
        if isinstance(cause, h11.RemoteProtocolError) and cause.error_status_hint == http.HTTPStatus(431):
            seen, _ = self.conn.trailing_data
            error = head_too_large(len(seen.partition(b"\n")[0]))
        shown = problem(error)
        body = json_writer.encode(shown.document)
        headers = {"content-type": CONTENT_TYPE, "content-length": str(len(body)), "connection": "close"}
        response = h11.Response(
            status_code=shown.status,
            headers=list(headers.items()),
            reason=http.HTTPStatus(shown.status).phrase.encode(),
        )
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        if self.cycle:
            # The answer of a handler that does not read the body comes too late.
            self.cycle.disconnected = True
        self.transport.close()

    def _check(self) -> None:
        if not self._owes_us():
            self._disarm()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_SECONDS, self._look_again)

    def _owes_us(self) -> bool:
        """The client is in the middle of a head, or of a body that nobody reads any more."""
        if self.conn.their_state is h11.IDLE:
            return True
        return self.conn.their_state is h11.SEND_BODY and self.conn.our_state in (h11.DONE, h11.MUST_CLOSE)

    def _look_again(self) -> None:
        """A loop that is late itself may call this before it reads for the first time: all may have come long ago."""
        self._deadline = self.loop.call_later(LATE_SECONDS, self._expire)

    def _expire(self) -> None:
        self._deadline = None
        if self._owes_us() and not self.transport.is_closing():
            self.transport.close()

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
