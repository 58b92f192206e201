"""Log lines: one JSON object each, with the ids of the trace, whoever logs."""

import logging
import warnings
from typing import Any

from crucible_chassis.logs import get_logger
from crucible_chassis.telemetry import start_telemetry

log = get_logger("early")  # made before any configuration, as modules do


def test_lines_carry_event_fields_and_trace(structured_logs: list[dict[str, Any]]) -> None:
    with start_telemetry("t").tracer.start_as_current_span("x") as span:
        log.bind(evaluation="17").info("attempt.started", attempt=1)
    ids = span.get_span_context()
    [line] = structured_logs
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "event": "attempt.started",
        "service": "test",
        "trace_id": f"{ids.trace_id:032x}",
        "span_id": f"{ids.span_id:016x}",
        "evaluation": "17",
        "attempt": 1,
    }


def test_the_level_is_obeyed(structured_logs: list[dict[str, Any]]) -> None:
    log.debug("not.written")
    log.warning("written", value={1, 2}.__class__)
    assert [line["event"] for line in structured_logs] == ["written"]


def test_libraries_take_the_same_form(structured_logs: list[dict[str, Any]]) -> None:
    try:
        raise ValueError("inner")
    except ValueError:
        logging.getLogger("library").exception("broke: %s", "this", extra={"more": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    first, second = structured_logs
    assert (first["event"], first["level"], first["service"], first["more"]) == ("broke: this", "error", "test", 1)
    assert "ValueError: inner" in first["exception"]
    assert "DeprecationWarning: old" in second["event"]
