"""What surrounds every call served: span, metrics, deadline, validation and the translation of failures.

One interceptor instead of a chain: each link of a chain costs a coroutine and a lookup on every call.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError
from opentelemetry import context as otel_context
from opentelemetry import trace

from crucible_chassis import metrics
from crucible_chassis.errors import STATUS_DETAILS_KEY, ServiceError, rich_status
from crucible_chassis.logs import get_logger
from crucible_chassis.telemetry import Telemetry, extract_context
from crucible_chassis.validation import RequestValidator

DEFAULT_UNARY_SECONDS = 60.0
"""Time given to a unary call whose client set no deadline."""
ANSWER_SECONDS = 1.0
"""Left of a call's deadline, for the answer to one that waited."""

# A client's own mistakes and refusals are no failures of this service (OpenTelemetry's rule for server spans).
_SERVER_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
_LOGGED = frozenset({grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS})

Context = grpc.aio.ServicerContext[Any, Any]

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Method:
    service: str
    name: str
    unary: bool
    watch: bool

    @property
    def full(self) -> str:
        return f"{self.service}/{self.name}"


@dataclass(slots=True)
class _Handler:
    """The attributes grpc.aio reads of a method handler."""

    request_streaming: bool
    response_streaming: bool
    request_deserializer: Callable[[bytes], Any] | None
    response_serializer: Callable[[Any], bytes] | None
    unary_unary: Callable[[Any, Context], Awaitable[Any]] | None = None
    unary_stream: Callable[[Any, Context], Awaitable[Any]] | None = None
    stream_unary: Callable[[Any, Context], Awaitable[Any]] | None = None
    stream_stream: Callable[[Any, Context], Awaitable[Any]] | None = None


def before_deadline(context: Context, seconds: float) -> float:
    """How long a servicer may wait that was asked to wait `seconds`, and still answer in time.

    A call that gRPC repeats at another server keeps the deadline that the first one had.
    """
    left = cast("float | None", context.time_remaining())
    return seconds if left is None else max(0.0, min(seconds, left - ANSWER_SECONDS))


class CallPipeline(grpc.aio.ServerInterceptor):
    """Surrounds the methods it is given; others (health, reflection) pass untouched.

    `watches` are the methods (`package.Service/Method`) whose streams end only when somebody leaves: `end_watches`
    ends them with UNAVAILABLE, so that their clients resume elsewhere.
    """

    def __init__(
        self,
        methods: Mapping[str, MethodDescriptor],
        *,
        watches: frozenset[str],
        most_watches: int,
        error_domain: str,
        telemetry: Telemetry,
        validator: RequestValidator,
        default_unary_seconds: float = DEFAULT_UNARY_SECONDS,
    ) -> None:
        self._methods = methods
        self._watches = watches
        self._most_watches = most_watches
        self._domain = error_domain
        self._tracer = telemetry.tracer
        self._validator = validator
        self._default_unary_seconds = default_unary_seconds
        self._wrapped: dict[str, Any] = {}
        self._watching: set[asyncio.Timeout] = set()
        self._draining = False

    async def intercept_service(  # noqa: D102  grpc's own
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        path: str = handler_call_details.method
        wrapped: Any = self._wrapped.get(path)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            descriptor = self._methods.get(path)
            if handler is None or descriptor is None:
                return handler
            self._wrapped[path] = wrapped = cast("Any", self._wrap(descriptor, handler))
        return wrapped

    def end_watches(self) -> None:
        """Ends the watches there are, and from now on each new one at once."""
        self._draining = True
        now = asyncio.get_running_loop().time()
        for scope in self._watching:
            scope.reschedule(now)

    def _wrap(self, descriptor: MethodDescriptor, handler: Any) -> _Handler:  # noqa: ANN401  grpc types it so
        service: str = descriptor.containing_service.full_name
        streaming = bool(handler.request_streaming or handler.response_streaming)
        watch = f"{service}/{descriptor.name}" in self._watches
        method = _Method(service=service, name=descriptor.name, unary=not streaming, watch=watch)
        # A unary message is decoded and encoded here, inside the boundary: where grpc itself fails to, it answers with
        # the exception's text.
        decode = None if handler.request_streaming else handler.request_deserializer
        encode = None if handler.response_streaming else handler.response_serializer
        wrapped = _Handler(
            handler.request_streaming,
            handler.response_streaming,
            None if decode else handler.request_deserializer,
            None if encode else handler.response_serializer,
        )
        if handler.unary_unary is not None:
            wrapped.unary_unary = self._unary(method, handler.unary_unary, decode, encode)
        elif handler.stream_unary is not None:
            wrapped.stream_unary = self._unary(method, handler.stream_unary, decode, encode)
        elif handler.unary_stream is not None:
            wrapped.unary_stream = self._stream(method, handler.unary_stream, decode)
        else:
            wrapped.stream_stream = self._stream(method, handler.stream_stream, decode)
        return wrapped

    def _unary(
        self,
        method: _Method,
        behaviour: Callable[[Any, Context], Awaitable[Any]],
        decode: Callable[[bytes], Any] | None,
        encode: Callable[[Any], bytes] | None,
    ) -> Callable[[Any, Context], Awaitable[Any]]:
        async def call(request: Any, context: Context) -> Any:  # noqa: ANN401  messages of any type
            answer = await behaviour(self._checked(request, decode), context)
            refused = cast("grpc.StatusCode | None", context.code()) not in (None, grpc.StatusCode.OK)
            # A servicer that sets a code instead of raising answers with nothing, and grpc sends nothing.
            return answer if refused or encode is None else encode(answer)

        async def handle(request: Any, context: Context) -> Any:  # noqa: ANN401  messages of any type
            return await self._surround(method, context, lambda: call(request, context))

        return handle

    def _stream(
        self, method: _Method, behaviour: Callable[[Any, Context], Any], decode: Callable[[bytes], Any] | None
    ) -> Callable[[Any, Context], Awaitable[Any]]:
        # A coroutine that writes, and never an async generator: span and deadline must be left in the task that serves
        # the call, whatever interrupts it, not when a generator is collected.
        generator = inspect.isasyncgenfunction(behaviour)

        async def call(request: Any, context: Context) -> None:  # noqa: ANN401  messages of any type
            request = self._checked(request, decode)
            if not generator:
                await behaviour(request, context)
                return
            async with contextlib.aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    await context.write(response)

        async def handle(request: Any, context: Context) -> None:  # noqa: ANN401  messages of any type
            await self._surround(method, context, lambda: call(request, context))

        return handle

    def _checked(self, request: Any, decode: Callable[[bytes], Any] | None) -> Any:  # noqa: ANN401  a message, or an iterator of them
        """The request, decoded and valid; for a stream of them, an iterator that checks each as it is read."""
        if decode is None:
            return self._checked_each(request)
        try:
            message = decode(request)
        except DecodeError as exc:
            raise _malformed() from exc
        self._validator.check(message)
        return message

    async def _checked_each(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        try:
            async for request in requests:
                self._validator.check(request)
                yield request
        except DecodeError as exc:
            raise _malformed() from exc

    async def _surround(self, method: _Method, context: Context, call: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401
        started = time.perf_counter()
        span = self._tracer.start_span(
            method.full,
            context=extract_context(_text_metadata(context)),
            kind=trace.SpanKind.SERVER,
            attributes={"rpc.system.name": "grpc", "rpc.method": method.full},
        )
        token = otel_context.attach(trace.set_span_in_context(span))
        in_flight = metrics.SERVER_IN_FLIGHT.labels(method.service, method.name)
        in_flight.inc()
        code = grpc.StatusCode.UNKNOWN
        scope = asyncio.timeout(self._seconds(method, context))
        try:
            async with scope:
                if method.watch:
                    if len(self._watching) >= self._most_watches:
                        raise _full()
                    self._watching.add(scope)
                try:
                    answer = await call()
                finally:
                    self._watching.discard(scope)  # before it is left: what is answered after that is not ended
            # A servicer may have set a code without raising; None is OK.
            code = cast("grpc.StatusCode | None", context.code()) or grpc.StatusCode.OK
        except asyncio.CancelledError:
            # The client left, or its deadline passed, or the server's grace did: no failure of the servicer.
            left = context.time_remaining()
            late = cast("float | None", left) is not None and left <= 0
            code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
            raise
        except grpc.aio.AbortError:
            code = context.code()
            raise
        except grpc.aio.InternalError as exc:
            # Core could not write: the client is gone, and its cancellation is on the way. The answer is for the rare
            # case that it was another connection, one the servicer was asking over.
            code = grpc.StatusCode.CANCELLED
            log.info("call.connection_lost", method=method.full)
            await self._refuse(context, self._translate(exc, method, scope))
        except Exception as exc:
            error = self._translate(exc, method, scope)
            code = error.code
            if code in _LOGGED:
                span.record_exception(exc)
                log.error("call.failed", method=method.full, reason=error.reason, exc_info=exc)
            await self._refuse(context, error)
        finally:
            in_flight.dec()
            metrics.SERVER_SECONDS.labels(method.service, method.name, code.name).observe(time.perf_counter() - started)
            span.set_attribute("rpc.response.status_code", code.name)
            if code in _SERVER_FAULTS:
                span.set_attribute("error.type", code.name)
                span.set_status(trace.StatusCode.ERROR)
            otel_context.detach(token)
            span.end()
        return answer

    def _seconds(self, method: _Method, context: Context) -> float | None:
        """The time the server itself sets: core keeps a deadline that the client set."""
        if method.watch and self._draining:
            return 0
        if method.unary and cast("float | None", context.time_remaining()) is None:
            return self._default_unary_seconds
        return None

    def _translate(self, exc: Exception, method: _Method, scope: asyncio.Timeout) -> ServiceError:
        if isinstance(exc, ServiceError):
            return exc
        if isinstance(exc, TimeoutError) and scope.expired():
            if method.watch:
                return ServiceError(
                    grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE", "the server is stopping: resume elsewhere"
                )
            return ServiceError(
                grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "the answer did not come in time"
            )
        if isinstance(exc, grpc.aio.AioRpcError) and exc.code() is grpc.StatusCode.UNAVAILABLE:
            # A servicer that has nothing better to say about a service it asked.
            return ServiceError(
                grpc.StatusCode.UNAVAILABLE,
                "DEPENDENCY_UNAVAILABLE",
                "a part of the platform is unavailable; try again",
                retry_after=1,
            )
        trace_id = trace.format_trace_id(trace.get_current_span().get_span_context().trace_id)
        return ServiceError(grpc.StatusCode.INTERNAL, "INTERNAL", "internal error", metadata={"trace_id": trace_id})

    async def _refuse(self, context: Context, error: ServiceError) -> NoReturn:
        status = rich_status(error, self._domain)
        await context.abort(error.code, status.message, ((STATUS_DETAILS_KEY, status.SerializeToString()),))


def is_worth_logging(record: logging.LogRecord) -> bool:
    """A filter for grpc's own log, which takes a status that finds its client gone for an error of the servicer."""
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or not issubclass(kind, grpc.aio.InternalError)


def _full() -> ServiceError:
    return ServiceError(
        grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE", "too many are waiting here; try again", retry_after=1
    )


def _malformed() -> ServiceError:
    return ServiceError(
        grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_BODY", "the request is not the message it should be"
    )


def _text_metadata(context: Context) -> dict[str, str]:
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
