"""The edge: host check, routing, span, metrics, access log, and the one place where failures become answers."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

import grpc
import prometheus_client
from opentelemetry import context as otel_context
from opentelemetry import trace
from starlette.types import Receive, Scope, Send

from crucible_chassis.errors import ServiceError
from crucible_chassis.logs import get_logger
from crucible_chassis.telemetry import Telemetry, extract_context
from crucible_gateway.exchange import ClientGoneError, Drain, Exchange, Held
from crucible_gateway.http_rule import Match, NoMatch, PathError, Router
from crucible_gateway.http_server import MAX_HEAD_BYTES, MAX_URL_BYTES, head_too_large
from crucible_gateway.problems import fault, internal
from crucible_gateway.transcode import Handler

_BUCKETS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 600)

REQUEST_SECONDS = prometheus_client.Histogram(
    "http_server_request_duration_seconds",
    "Duration of requests served, streams to their end",
    ["method", "route", "status"],
    buckets=_BUCKETS,
)
IN_FLIGHT = prometheus_client.Gauge("http_server_active_requests", "Requests being served", ["method", "route"])

MAX_LOGGED_CHARS = 256
CLIENT_GONE = 499
"""Status in logs and metrics of an answer that nobody waited for."""

PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked by machines under whatever name they know, such as a pod's address; they tell nothing of anybody's programs."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_HOST = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]{1,253})(:[0-9]{1,5})?", re.IGNORECASE)

log = get_logger(__name__)


class Edge:
    """The ASGI application."""

    def __init__(
        self, router: Router[Handler], *, allowed_hosts: frozenset[str], telemetry: Telemetry, drain: Drain
    ) -> None:
        self._router = router
        self._hosts = allowed_hosts
        self._tracer = telemetry.tracer
        self._drain = drain
        self._held = Held()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            return
        started = time.perf_counter()
        exchange = Exchange(scope, receive, send, self._drain, self._held)
        method = exchange.method if exchange.method in _METHODS else "OTHER"
        found = self._router.find(exchange.method, exchange.raw_path)
        exchange.route = "" if isinstance(found, NoMatch) else found.template.text
        span = self._tracer.start_span(
            f"{method} {exchange.route}".rstrip(),
            context=extract_context(exchange.headers),
            kind=trace.SpanKind.SERVER,
            attributes={
                "http.request.method": method,
                "http.route": exchange.route,
                "url.path": exchange.raw_path[:MAX_LOGGED_CHARS],
                "network.protocol.version": str(scope["http_version"]),
                "client.address": exchange.client,
            },
        )
        token = otel_context.attach(trace.set_span_in_context(span))
        in_flight = IN_FLIGHT.labels(method, exchange.route)
        in_flight.inc()
        gone = False
        try:
            try:
                self._check_host(exchange)
                _check_head(exchange)
                if isinstance(found, NoMatch):
                    raise _no_match(found)
                await found.target.handle(exchange, _variables(found))
            except ServiceError as error:
                await self._refuse(exchange, error)
            except ClientGoneError:
                # uvicorn closes a connection whose answer is left unfinished.
                gone = True
        except ClientGoneError:
            gone = True
        except Exception as exc:
            span.record_exception(exc)
            log.error("request.failed", route=exchange.route, exc_info=exc)
            if not exchange.status:
                await self._refuse(exchange, internal())
        finally:
            exchange.release()
            status = CLIENT_GONE if gone else exchange.status
            seconds = time.perf_counter() - started
            in_flight.dec()
            REQUEST_SECONDS.labels(method, exchange.route, str(status)).observe(seconds)
            span.set_attribute("http.response.status_code", status)
            if status >= 500:
                span.set_attribute("error.type", str(status))
                span.set_status(trace.StatusCode.ERROR)
            if exchange.route not in PROBES:
                log.info(
                    "http.request",
                    method=method,
                    path=exchange.raw_path[:MAX_LOGGED_CHARS],
                    route=exchange.route,
                    status=status,
                    seconds=round(seconds, 4),
                    bytes=exchange.sent_bytes,
                    client=exchange.client,
                )
            otel_context.detach(token)
            span.end()

    async def _refuse(self, exchange: Exchange, error: ServiceError) -> None:
        if exchange.status:
            msg = "a failure after the answer was begun"
            raise RuntimeError(msg) from error
        await exchange.answer_problem(error)

    def _check_host(self, exchange: Exchange) -> None:
        if exchange.raw_path in PROBES:
            return
        given = exchange.headers.getlist("host")
        found = _HOST.fullmatch(given[0]) if len(given) == 1 else None
        if found is None or found.group(1).lower().rstrip(".") not in self._hosts:
            raise _not_ours("the Host header is not one of the gateway's names, which CRUCIBLE_HOSTS sets")
        origin = exchange.headers.get("origin")
        if origin is not None and exchange.method not in _SAFE and not self._is_ours(origin):
            # A page of another site can send such a request to localhost; it only could not read the answer.
            raise _not_ours("the Origin header names another site; pages of other sites may not change anything here")

    def _is_ours(self, origin: str) -> bool:
        _, separator, rest = origin.partition("://")
        found = _HOST.fullmatch(rest)
        return bool(separator) and found is not None and found.group(1).lower().rstrip(".") in self._hosts


def _check_head(exchange: Exchange) -> None:
    if "content-length" in exchange.headers and "transfer-encoding" in exchange.headers:
        # Two readers of such a request may disagree on where it ends, and take its rest for another request.
        raise fault("INVALID_FIELD", "cannot be combined with Transfer-Encoding", field="Content-Length")
    # uvicorn bounds only a head that comes in pieces.
    url = len(exchange.raw_path) + len(exchange.query)
    headers = sum(len(name) + len(value) for name, value in exchange.headers.raw)
    if url + headers > MAX_HEAD_BYTES or url > MAX_URL_BYTES:
        raise head_too_large(url)


def _variables(found: Match[Handler]) -> Mapping[str, str]:
    try:
        return found.variables()
    except PathError as exc:
        raise fault("INVALID_FIELD", f"the path cannot be read: {exc}") from exc


def _not_ours(message: str) -> ServiceError:
    return ServiceError(grpc.StatusCode.PERMISSION_DENIED, "HOST_NOT_ALLOWED", message)


def _no_match(found: NoMatch) -> ServiceError:
    if not found.allowed:
        return ServiceError(grpc.StatusCode.NOT_FOUND, "ROUTE_NOT_FOUND", "there is no such route; see /docs")
    allowed = ", ".join(sorted(found.allowed))
    return ServiceError(
        grpc.StatusCode.UNIMPLEMENTED,
        "METHOD_NOT_ALLOWED",
        f"this path accepts {allowed}",
        metadata={"allowed": allowed},
    )
