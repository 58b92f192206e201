"""A tracer for a process that exports nothing: ids are made and passed on, nothing is recorded.

The SDK's spans cost a fifth of a local gRPC call, which nobody should pay for spans that are thrown away. Its own way
to drop them clears the sampled flag, and with it the traces of every service further down that does export.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.util import types

_SAMPLED = trace.TraceFlags(trace.TraceFlags.SAMPLED)


class IdTracer(trace.NoOpTracer):
    """Makes spans that have an identity and nothing else."""

    def start_span(
        self,
        name: str,
        context: otel_context.Context | None = None,
        kind: trace.SpanKind = trace.SpanKind.INTERNAL,
        attributes: types.Attributes = None,
        links: Sequence[trace.Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> trace.Span:
        """A child of the context's span with its sampling decision, or the sampled root of a new trace."""
        parent = trace.get_current_span(context).get_span_context()
        return trace.NonRecordingSpan(
            trace.SpanContext(
                trace_id=parent.trace_id if parent.is_valid else _random_id(128),
                span_id=_random_id(64),
                is_remote=False,
                trace_flags=parent.trace_flags if parent.is_valid else _SAMPLED,
                trace_state=parent.trace_state if parent.is_valid else None,
            )
        )


class IdTracerProvider(trace.TracerProvider):
    """Gives `IdTracer`s."""

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: types.Attributes = None,
    ) -> trace.Tracer:
        """The same kind for every library."""
        return IdTracer()


def _random_id(bits: int) -> int:
    """Never 0, which means no id. Identity, not secrecy, so the fast generator will do."""
    return random.getrandbits(bits) or 1
