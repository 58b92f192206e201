"""How evaluations and events look: for people on a terminal, for pipes, as JSON.

What programs and callers wrote is shown without control characters: it must not drive the reader's terminal.
"""

from __future__ import annotations

import json
import os
import re
import sys
from datetime import UTC, datetime
from itertools import pairwise
from typing import IO

import click
from google.protobuf.message import Message

from crucible.v1.containment_pb2 import Containment
from crucible.v1.execution_pb2 import Pressure
from crucible_client.cli.units import show_bytes, show_seconds
from crucible_client.views import Evaluation, Event, Result, Status
from crucible_contracts.proto_json import write_value

OUTPUT_SHOWN = 200
"""Characters of a piece of output in the line of its event."""

_CHECKS: dict[int, str] = {number: name for name, number in Containment.Check.items()}
_VERDICTS: dict[int, str] = {number: name for name, number in Containment.Verdict.items()}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def json_text(message: Message, *, indent: int | None = None) -> str:
    """JSON as the REST gateway writes it."""
    return json.dumps(write_value(message), indent=indent)


def echo_json(message: Message) -> None:
    """JSON on stdout: indented for a person, one line for a pipe."""
    click.echo(json_text(message, indent=2 if sys.stdout.isatty() else None))


def coloured(stream: IO[str]) -> bool:
    """Colour is for terminals whose user did not refuse it (NO_COLOR)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def style(text: str, colour: str, stream: IO[str]) -> str:
    """Coloured where the stream takes it."""
    return click.style(text, fg=colour) if coloured(stream) else text


def clean(text: str) -> str:
    """Without control characters but newline and tab."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def one_line(text: str) -> str:
    """`clean`, and on one line."""
    return clean(text).replace("\n", "\\n").replace("\t", "\\t")


def verdict(evaluation: Evaluation) -> str:
    """The headline: the outcome, or the status where there is none."""
    return str(evaluation.result.outcome if evaluation.result else evaluation.status)


def colour_of(evaluation: Evaluation) -> str:
    """Green for success, red for failures, yellow for what is neither."""
    if evaluation.succeeded:
        return "green"
    return "red" if evaluation.status in (Status.COMPLETED, Status.FAILED) else "yellow"


def ending(result: Result) -> str:
    """`exit 3`, `SIGSEGV`, or empty."""
    if result.signal is not None:
        return result.signal
    return "" if result.exit_code is None else f"exit {result.exit_code}"


def closing_line(evaluation: Evaluation, stream: IO[str]) -> str:
    """All about a run in one line."""
    parts = [style(verdict(evaluation), colour_of(evaluation), stream)]
    result = evaluation.result
    if result is not None and ending(result):
        parts.append(ending(result))
    if evaluation.status_reason is not None:
        parts.append(str(evaluation.status_reason))
    if evaluation.cause is not None:
        parts.append(f"cause {evaluation.cause}")
    if result is not None:
        parts.append(f"wall {show_seconds(result.wall_time)}")
        parts.append(f"cpu {show_seconds(result.cpu_time)}")
        parts.append(f"memory {show_bytes(result.peak_memory_bytes)}")
    parts.append(f"id {evaluation.id}")
    if evaluation.trace_id:
        parts.append(f"trace {evaluation.trace_id}")
    return "  ".join(parts)


def findings(evaluation: Evaluation) -> list[str]:
    """The platform's words on what applied, where it has any."""
    if evaluation.result is None:
        return []
    return [one_line(finding.detail) for finding in evaluation.result.proto.findings if finding.detail]


def local_time(moment: datetime) -> str:
    """For people: their own time zone."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def page(evaluation: Evaluation) -> str:
    """One evaluation for a person."""
    proto = evaluation.proto
    shown = style(verdict(evaluation), colour_of(evaluation), sys.stdout)
    rows = [
        ("id", evaluation.id),
        ("name", one_line(proto.display_name)),
        ("status", str(evaluation.status) if evaluation.result else shown),
        ("verdict", shown if evaluation.result else ""),
        ("reason", str(evaluation.status_reason or "")),
        ("cause", str(evaluation.cause or "")),
        ("runtime", one_line(evaluation.runtime)),
        ("attempt", str(evaluation.attempt)),
        ("created", local_time(evaluation.create_time)),
        ("started", local_time(evaluation.start_time) if evaluation.start_time else ""),
        ("ended", local_time(evaluation.end_time) if evaluation.end_time else ""),
        ("labels", " ".join(f"{name}={one_line(value)}" for name, value in sorted(evaluation.labels.items()))),
        ("trace", evaluation.trace_id),
    ]
    result = evaluation.result
    outputs: list[str] = []
    if result is not None:
        rows += [
            ("ended by", ending(result) or "the platform"),
            ("findings", "; ".join(findings(evaluation))),
            ("wall", show_seconds(result.wall_time)),
            ("cpu", show_seconds(result.cpu_time)),
            ("memory", show_bytes(result.peak_memory_bytes)),
            ("waited", _waited(result)),
            ("executor", result.proto.executor.host),
            ("contained", _containment(result)),
            ("phases", _phases(result)),
        ]
        for name, output in (("stdout", result.stdout), ("stderr", result.stderr)):
            if output.size_bytes:
                outputs.append(f"\n--- {name}, {show_bytes(output.size_bytes)}{', cut' if output.truncated else ''}")
                outputs.append(clean(output.text).rstrip("\n"))
    return "\n".join([*(f"{name:<9} {value}" for name, value in rows if value), *outputs])


def _waited(result: Result) -> str:
    """What held the program up, as far as its machine's kernel counts it."""
    usage = result.proto.usage
    pressure = usage.pressure
    held = (
        ("throttled", usage.throttled_time),
        ("for cpu", pressure.cpu),
        ("for memory", pressure.memory),
        ("for disks", pressure.io),
    )
    shown = [f"{show_seconds(time.ToNanoseconds() / 1e9)} {what}" for what, time in held if time.ToNanoseconds()]
    if shown and pressure.scope == Pressure.MACHINE:
        shown[-1] += ", counted over the whole machine"
    return ", ".join(shown)


def _containment(result: Result) -> str:
    """How many checks of the sandbox's confinement held, and every one that did not."""
    if not result.proto.HasField("containment"):
        return ""
    evidence = result.proto.containment
    looks = [evidence.inside, evidence.before, evidence.after]
    held = sum(len(look.held) for look in looks)
    others = [
        f"{_CHECKS.get(each.check, each.check)} {_VERDICTS.get(each.verdict, each.verdict)}"
        for look in looks
        for each in look.exceptions
    ]
    return ", ".join([f"{held} checks held", *others])


def _phases(result: Result) -> str:
    timings = result.proto.timings
    steps = [
        (name, getattr(timings, name).ToDatetime(UTC))
        for name in ("queued", "dispatched", "started", "ready", "finished")
        if timings.HasField(name)
    ]
    shown = [
        f"{show_seconds((moment - before).total_seconds())} to {name}"
        for (_, before), (name, moment) in pairwise(steps)
    ]
    return ", ".join(shown)


def event_line(event: Event) -> str:
    """One event for a person."""
    moment = event.create_time.astimezone().strftime("%H:%M:%S.%f")[:-3]
    return f"{event.sequence:>5}  {moment}  {event.kind:<14} {_event_detail(event)}".rstrip()


def _event_detail(event: Event) -> str:
    proto = event.proto
    attempt = f"attempt {event.attempt}"
    match event.kind:
        case "dispatched":
            return f"{attempt}, pool {proto.dispatched.pool}"
        case "started":
            return f"{attempt} on {one_line(proto.started.executor.host)}"
        case "output":
            text = one_line(event.data.decode(errors="replace"))
            return f"{event.stream} {text if len(text) <= OUTPUT_SHOWN else text[:OUTPUT_SHOWN] + '…'}"
        case "output_elided":
            return f"{event.stream}: the rest is served by `crucible output`"
        case "usage":
            usage = proto.usage
            wall, cpu = usage.wall_time.ToTimedelta(), usage.cpu_time.ToTimedelta()
            return (
                f"wall {show_seconds(wall.total_seconds())}, cpu {show_seconds(cpu.total_seconds())}, "
                f"memory {show_bytes(usage.memory_bytes)}"
            )
        case "finished":
            result = Result(proto.finished.result)
            return f"{result.outcome} {ending(result)} cause {result.cause}"
        case "requeued":
            return f"{attempt} was lost"
        case _:
            return ""
