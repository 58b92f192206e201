"""Where the time of a warm run goes, phase by phase, from the spans that every process tells of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from bench.latency import Answer, Client
from bench.report import Report
from crucible_testkit.otlp import OtlpReceiver, ReceivedSpan

Spans = Mapping[str, ReceivedSpan]
Moment = Callable[[Spans], int]

COMPLETE_SECONDS = 20.0
"""For the last span of a run to be exported."""


def _starts(name: str) -> Moment:
    return lambda spans: spans[name].start_ns


def _ends(name: str) -> Moment:
    return lambda spans: spans[name].end_ns


CREATE = "CreateEvaluations SERVER"
PHASES: Sequence[tuple[str, Moment, Moment]] = (
    ("request to admission (gateway, HTTP to gRPC)", _starts("client"), _starts("RunEvaluation SERVER")),
    ("admission, and the way to the store", _starts("RunEvaluation SERVER"), _starts(CREATE)),
    ("create, and the lease, committed", _starts(CREATE), _ends(CREATE)),
    ("the way to the job's publication", _ends(CREATE), _starts("dispatch")),
    ("job delivered", _starts("dispatch"), _starts("attempt")),
    ("sandbox claimed, program delivered", _starts("attempt"), _ends("deliver")),
    ("program runs to its exit", _ends("deliver"), _ends("run")),
    ("verdict", _ends("run"), _ends("collect")),
    ("finished message to the store", _ends("collect"), _starts("commit verdict")),
    ("finished committed", _starts("commit verdict"), _ends("commit verdict")),
    ("answer", _ends("commit verdict"), _ends("client")),
)
"""From one moment to the next: together they are the whole."""


def measure(report: Report, client: Client, receiver: OtlpReceiver, runs: int) -> None:
    """Warm runs, traced."""
    for _ in range(3):
        client.submitter.run()
    receiver.clear()
    answers: list[Answer] = []
    for _ in range(runs):
        client.calm()
        answers.append(client.submitter.run())
    wanted = {moment for _, begin, end in PHASES for moment in (begin, end)}
    rows: dict[str, list[float]] = {name: [] for name, _, _ in PHASES}
    deadline = time.monotonic() + COMPLETE_SECONDS
    for answer in answers:
        spans = _of(receiver.spans, answer)
        while (lacking := _lacking(spans, wanted)) and time.monotonic() < deadline:
            time.sleep(0.1)
            spans = _of(receiver.spans, answer)
        if lacking:
            raise RuntimeError(f"the trace of a run lacks a span: it has {sorted(spans)}")
        for name, begin, end in PHASES:
            rows[name].append((end(spans) - begin(spans)) / 1e9)
    report.table("where the time of a warm run goes (traced)", {**rows, "whole": [each.seconds for each in answers]})


def _of(received: Sequence[ReceivedSpan], answer: Answer) -> dict[str, ReceivedSpan]:
    """The spans of one run, by the last part of their names, with the client's own."""
    found: dict[str, ReceivedSpan] = {}
    for span in received:
        if span.trace_id != answer.trace_id:
            continue
        name = span.name.rpartition("/")[2] if span.kind in ("SERVER", "CLIENT") else span.name
        if span.kind in ("SERVER", "CLIENT"):
            name = f"{name} {span.kind}"
        if span.name == "commit":
            name = f"commit {span.attributes['crucible.message']}"
        found[name] = span
    end = answer.began_ns + int(answer.seconds * 1e9)
    found["client"] = ReceivedSpan(
        "bench", "client", answer.trace_id, "", "", "CLIENT", {}, (), answer.began_ns, end, failed=False
    )
    return found


def _lacking(spans: Spans, moments: set[Moment]) -> bool:
    for moment in moments:
        try:
            moment(spans)
        except KeyError:
            return True
    return False
