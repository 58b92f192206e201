"""Structured logs: one JSON object a line on stderr, with the ids of the current trace.

A line is a constant event name plus fields. What libraries log through `logging` takes the same form.
"""

import logging
import sys
from collections.abc import Callable, MutableMapping
from typing import Any, cast

from opentelemetry import trace

# With rich at hand structlog's console renderer, which no service uses, brings it and pygments: 5 MB in each process.
_WITHOUT_RICH = "rich" not in sys.modules
if _WITHOUT_RICH:
    sys.modules["rich"] = None  # type: ignore[assignment]  # None: "cannot be imported"

import structlog  # noqa: E402  after the lines above

if _WITHOUT_RICH:
    del sys.modules["rich"]

EventDict = MutableMapping[str, Any]


def configure_logging(service: str, level: str) -> None:
    """Sends every log line of this process to stderr as JSON.

    `level` is the least severe level written: debug, info, warning, error or critical, in any case.
    """
    shared = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        _add_identity(service),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        # Not cached: loggers made at import must follow a later configuration, and tests capture them.
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _order,
                structlog.processors.JSONRenderer(default=str),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger: `log.info("attempt.started", evaluation=..., attempt=1)`. May be made before `configure_logging`."""
    return cast("structlog.stdlib.BoundLogger", structlog.get_logger(name))


def _add_identity(service: str) -> Callable[[Any, str, EventDict], EventDict]:
    def add(_logger: object, _method: str, event: EventDict) -> EventDict:
        event["service"] = service
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            event["trace_id"] = trace.format_trace_id(span.trace_id)
            event["span_id"] = trace.format_span_id(span.span_id)
        return event

    return add


_FIRST = ("time", "level", "event", "service", "trace_id", "span_id")


def _order(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Puts what every line has first, so that a person finds it."""
    ordered: EventDict = {key: event[key] for key in _FIRST if key in event}
    ordered.update(event)
    return ordered
