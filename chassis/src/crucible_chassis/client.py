"""gRPC channels to other services: balanced, retried, bounded in time, traced and measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Self, cast

import grpc
import grpc.aio
from grpc.aio import Metadata
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from crucible_chassis import metrics
from crucible_chassis.telemetry import Telemetry, process_tracer
from crucible_chassis.transport import MAX_MESSAGE_BYTES, client_options

DEFAULT_UNARY_SECONDS = 30.0
"""Deadline of a unary call that states none."""

_PROPAGATOR = TraceContextTextMapPropagator()


def open_channel(
    target: str,
    *,
    service_names: Sequence[str] = (),
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    default_unary_seconds: float = DEFAULT_UNARY_SECONDS,
    telemetry: Telemetry | None = None,
) -> grpc.aio.Channel:
    """A channel to `target` (`host:port`, `dns:///name:port`, `ipv4:a:1,b:2`), which connects at the first call.

    Balances over all addresses that say SERVING; retries UNAVAILABLE for `service_names` (none given: for every
    service); a unary call without a timeout gets `default_unary_seconds`, a stream none. Spans go to `telemetry`, or to
    the process's tracer. Close it, or use it as an async context manager. Cancel a stream that you leave early
    (`call.cancel()` in a finally): grpc.aio neither collects nor cancels an abandoned call.
    """
    inner = grpc.aio.insecure_channel(target, options=client_options(max_message_bytes, service_names))
    return _InstrumentedChannel(inner, telemetry.tracer if telemetry else process_tracer(), default_unary_seconds)


class _InstrumentedChannel(grpc.aio.Channel):
    """A channel whose calls carry span, trace context, metrics and a deadline.

    It wraps the channel, and is no client interceptor: an intercepted call of grpc.aio runs in a task of its own, which
    costs a third of a local call, and loses `time_remaining` and the streams' cancellation on the way.
    """

    def __init__(self, inner: grpc.aio.Channel, tracer: trace.Tracer, default_unary_seconds: float) -> None:
        self._inner = inner
        self._tracer = tracer
        self._default_unary_seconds = default_unary_seconds

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  passed through to grpc
        return self._instrument(method, self._inner.unary_unary(method, *args, **kwargs), self._default_unary_seconds)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  passed through to grpc
        return self._instrument(method, self._inner.unary_stream(method, *args, **kwargs), None)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  passed through to grpc
        return self._instrument(method, self._inner.stream_unary(method, *args, **kwargs), None)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  passed through to grpc
        return self._instrument(method, self._inner.stream_stream(method, *args, **kwargs), None)

    def _instrument(self, method: str, call: Callable[..., Any], seconds: float | None) -> _InstrumentedCallable:
        return _InstrumentedCallable(method, call, self._tracer, seconds)

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self._inner.close()


class _InstrumentedCallable:
    def __init__(self, path: str, call: Callable[..., Any], tracer: trace.Tracer, seconds: float | None) -> None:
        self._full = path.removeprefix("/")
        self._service, _, self._method = self._full.partition("/")
        self._call = call
        self._tracer = tracer
        self._seconds = seconds

    def __call__(
        self,
        request: Any = None,  # noqa: ANN401  a message, an iterator of them, or nothing for a stream that is written
        timeout: float | None = None,
        metadata: Metadata | Sequence[tuple[str, str | bytes]] | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> grpc.aio.Call:
        span = self._tracer.start_span(
            self._full,
            kind=trace.SpanKind.CLIENT,
            attributes={"rpc.system.name": "grpc", "rpc.method": self._full},
        )
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, context=trace.set_span_in_context(span))
        started = time.perf_counter()

        def done(call: grpc.aio.Call) -> None:
            code = _final_code(call)
            metrics.CLIENT_SECONDS.labels(self._service, self._method, code.name).observe(time.perf_counter() - started)
            span.set_attribute("rpc.response.status_code", code.name)
            if code not in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED):
                span.set_attribute("error.type", code.name)
                span.set_status(trace.StatusCode.ERROR)
            span.end()

        call = self._call(
            request,
            timeout=self._seconds if timeout is None else timeout,
            metadata=Metadata(*(metadata or ()), *carrier.items()),
            credentials=credentials,
            wait_for_ready=wait_for_ready,
            compression=compression,
        )
        call.add_done_callback(done)
        return call


def _final_code(call: grpc.aio.Call) -> grpc.StatusCode:
    """The code of a call that is done.

    `code()` is a coroutine, but has nothing to wait for once the call is done: it is driven by hand, because a callback
    cannot await and a task for each call would cost more than the span.
    """
    coroutine = cast("Coroutine[Any, Any, grpc.StatusCode]", call.code())
    try:
        coroutine.send(None)
    except StopIteration as finished:
        return cast("grpc.StatusCode", finished.value)
    coroutine.close()
    return grpc.StatusCode.UNKNOWN
