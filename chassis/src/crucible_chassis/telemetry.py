"""Traces: one tracer a process, W3C context in and out, and an OTLP exporter only where one is configured."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from crucible_chassis.trace_ids import IdTracerProvider

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

FLUSH_SECONDS = 5.0
"""Seconds that spans not yet exported are given when the process ends."""

_INSTRUMENTATION = "crucible_chassis"
_PROPAGATOR = TraceContextTextMapPropagator()


class Telemetry:
    """A process's tracer."""

    def __init__(self, provider: trace.TracerProvider, shutdown: Callable[[], None] | None = None) -> None:
        self.tracer: trace.Tracer = provider.get_tracer(_INSTRUMENTATION)
        self._shutdown = shutdown

    def shutdown(self, *, timeout: float = FLUSH_SECONDS) -> None:
        """Flushes and stops the exporter; gives up after `timeout` seconds, so that a dead collector delays no exit."""
        if self._shutdown is None:
            return
        # A daemon thread: the SDK's own shutdown has no bound, and must not hold the interpreter.
        worker = threading.Thread(target=self._shutdown, name="telemetry-shutdown", daemon=True)
        worker.start()
        worker.join(timeout)


def start_telemetry(service: str, *, instance: str = "", processor: SpanProcessor | None = None) -> Telemetry:
    """Tracing for this process.

    The exporter comes from `OTEL_EXPORTER_OTLP_ENDPOINT` (or `..._TRACES_ENDPOINT`) and `OTEL_EXPORTER_OTLP_PROTOCOL`
    (`http/protobuf` unless told `grpc`); with none set nothing is recorded, but ids are still made and passed on.
    `processor` receives the finished spans as well. `ValueError`: a protocol that is neither.
    """
    processors = [each for each in (_exporter(), processor) if each is not None]
    telemetry, provider = _recording(service, instance, processors) if processors else _ids_alone()
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        # Clients take their tracer from the process; the first one started is the process's.
        trace.set_tracer_provider(provider)
    return telemetry


def _ids_alone() -> tuple[Telemetry, trace.TracerProvider]:
    provider = IdTracerProvider()
    return Telemetry(provider), provider


def _recording(
    service: str, instance: str, processors: Sequence[SpanProcessor]
) -> tuple[Telemetry, trace.TracerProvider]:
    # Imported only here, like the exporters: an idle service without a collector need not pay for them.
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    attributes = {"service.name": service, "service.namespace": "crucible"}
    if instance:
        attributes["service.instance.id"] = instance
    # Not shut down by the SDK at interpreter exit: `process.run` does it, bounded.
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    for processor in processors:
        provider.add_span_processor(processor)
    return Telemetry(provider, provider.shutdown), provider


def process_tracer() -> trace.Tracer:
    """The tracer of the first `start_telemetry` of this process; makes no spans before."""
    return trace.get_tracer(_INSTRUMENTATION)


def inject_context() -> dict[str, str]:
    """`traceparent` and `tracestate` of the current span; empty without one."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier


def extract_context(headers: Mapping[str, str] | None) -> otel_context.Context:
    """The caller's context from headers, whatever their case; an empty one where there is none or it is malformed."""
    return _PROPAGATOR.extract(headers or {}, context=otel_context.Context(), getter=_GETTER)


class _CaseBlindGetter(Getter[Mapping[str, str]]):
    """NATS keeps the case a foreign publisher chose; HTTP/2 has lower case only."""

    def get(self, carrier: Mapping[str, str], key: str) -> list[str] | None:
        for name, value in carrier.items():
            if name.lower() == key:
                return [value]
        return None

    def keys(self, carrier: Mapping[str, str]) -> list[str]:
        return list(carrier)


_GETTER = _CaseBlindGetter()


def _exporter() -> SpanProcessor | None:
    environment = os.environ
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if environment.get("OTEL_TRACES_EXPORTER", "otlp") == "none":
        return None
    if not (environment.get("OTEL_EXPORTER_OTLP_ENDPOINT") or environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")):
        return None
    protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    match protocol or "http/protobuf":
        case "http/protobuf":
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

            return BatchSpanProcessor(HttpExporter())
        case "grpc":
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

            return BatchSpanProcessor(GrpcExporter())
        case other:
            msg = f"OTEL_EXPORTER_OTLP_PROTOCOL: {other!r} is neither http/protobuf nor grpc"
            raise ValueError(msg)
