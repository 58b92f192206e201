"""Prometheus metrics of the RED kind for gRPC in and out, and the small HTTP server of an internal service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Self

import prometheus_client
from prometheus_client import exposition

from crucible_chassis.logs import get_logger

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

SERVER_SECONDS = prometheus_client.Histogram(
    "grpc_server_seconds",
    "Duration of calls served: its count is the rate, its codes are the errors",
    ["service", "method", "code"],
    buckets=_BUCKETS,
)
SERVER_IN_FLIGHT = prometheus_client.Gauge("grpc_server_in_flight", "Calls being served", ["service", "method"])
CLIENT_SECONDS = prometheus_client.Histogram(
    "grpc_client_seconds",
    "Duration of calls made: its count is the rate, its codes are the errors",
    ["service", "method", "code"],
    buckets=_BUCKETS,
)

MAX_REQUEST_BYTES = 8192
"""Of an HTTP request head that the admin server reads."""
REQUEST_SECONDS = 5.0
"""An admin request is answered within this time or dropped."""

log = get_logger(__name__)


def render_metrics(accept: str | None = None) -> tuple[bytes, str]:
    """All metrics of this process in the format the `Accept` header asks for: body and content type."""
    encode, content_type = exposition.choose_encoder(accept or "")
    return encode(prometheus_client.REGISTRY), content_type


class AdminServer:
    """Serves `/metrics`, `/healthz` (the process runs) and `/readyz` (`ready()`: 200, else 503) over plain HTTP/1.1.

    `why_not()` is one line for a person beside `not ready`, or empty. An async context manager. `listen` is
    `host:port`; port 0 picks a free one. One request a connection.
    """

    def __init__(self, listen: str, ready: Callable[[], bool], why_not: Callable[[], str] = str) -> None:
        host, _, port = listen.rpartition(":")
        self._host = host.strip("[]")
        self._port = int(port)
        self._ready = ready
        self._why_not = why_not
        self._server: asyncio.Server | None = None
        self.address = listen
        """`host:port` really bound, once entered."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, self._host, self._port, limit=MAX_REQUEST_BYTES)
        self.address = f"{self._host}:{self._server.sockets[0].getsockname()[1]}"
        log.info("admin.listening", address=self.address)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer(head.decode("latin-1")))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            # A peer that is slow, gone or no HTTP client.
            return
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _not_ready(self) -> bytes:
        why = self._why_not()
        return f"not ready: {why}\n".encode() if why else b"not ready\n"

    def _answer(self, head: str) -> bytes:
        request, *lines = head.split("\r\n")
        method, _, rest = request.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        status, content_type, body = "404 Not Found", "text/plain; charset=utf-8", b"not found\n"
        if method not in ("GET", "HEAD"):
            status, body = "405 Method Not Allowed", b"method not allowed\n"
        elif path == "/metrics":
            status = "200 OK"
            body, content_type = render_metrics(headers.get("accept"))
        elif path == "/healthz":
            status, body = "200 OK", b"ok\n"
        elif path == "/readyz":
            status, body = ("200 OK", b"ready\n") if self._ready() else ("503 Service Unavailable", self._not_ready())
        answer = (
            f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\nCache-Control: no-store\r\n\r\n"
        ).encode()
        return answer if method == "HEAD" else answer + body
