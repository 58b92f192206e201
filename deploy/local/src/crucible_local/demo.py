"""One program, from a POST to its verdict, for people who see Crucible for the first time."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import pairwise
from typing import Any, cast

from rich.console import Console

from crucible_local.display import show_table

TIMEOUT_SECONDS = 90
PROGRAM = """\
import platform, os
print(f"hello from {platform.python_implementation()} {platform.python_version()}")
print(f"kernel {platform.release()}, user {os.getuid()}, {len(os.listdir('/proc/self/fd'))} open files")
try:
    import socket
    socket.create_connection(("1.1.1.1", 53), timeout=1)
except OSError as error:
    print(f"network: {error}")
print(sum(n * n for n in range(1_000_000)))
"""
PHASES = (
    ("queued", "stored durably; the caller has its answer"),
    ("dispatched", "chosen by the scheduler, leased"),
    ("started", "claimed by an executor"),
    ("ready", "the sandbox runs the program"),
    ("finished", "there is a verdict"),
)

Json = dict[str, Any]


class DemoError(RuntimeError):
    """The program was not answered with a verdict."""


def run(addresses: Mapping[str, str]) -> Json:
    """Runs the program over REST: the evaluation with its verdict. Raises DemoError."""
    gateway = addresses["gateway"]
    evaluation = _call(
        f"{gateway}/v1/evaluations:run?timeout=60s", {"runtime": "python", "source": PROGRAM, "displayName": "demo"}
    )
    if not isinstance(evaluation.get("result"), dict):
        raise DemoError(f"no verdict within a minute: {json.dumps(evaluation, indent=2)}")
    return evaluation


def show(console: Console, addresses: Mapping[str, str]) -> None:
    """Runs the program and prints its output, verdict and timeline. Raises DemoError."""
    gateway = addresses["gateway"]
    console.rule("POST /v1/evaluations:run", align="left")
    console.print(PROGRAM.rstrip(), style="dim", markup=False, highlight=False, soft_wrap=True)
    evaluation = run(addresses)
    result = cast("Json", evaluation["result"])
    console.rule("output", align="left")
    console.print(result["stdout"]["text"].rstrip(), markup=False, highlight=False, soft_wrap=True)
    console.rule("verdict", align="left")
    _verdict(console, evaluation, result)
    console.rule("timeline", align="left")
    _timeline(console, gateway, evaluation, result)
    console.rule("where to look next", align="left")
    _next(console, addresses, evaluation)


def _verdict(console: Console, evaluation: Json, result: Json) -> None:
    usage = result["usage"]
    termination = f"exit code {result['exitCode']}" if "exitCode" in result else f"signal {result.get('signal')}"
    peak = int(usage["peakMemoryBytes"]) / 1024**2
    rows = [
        ("status", str(evaluation["status"])),
        ("outcome", f"{result['outcome']} ({termination}), cause {result['cause']}"),
        ("usage", f"wall {_rounded(usage['wallTime'])}, CPU {_rounded(usage['cpuTime'])}, peak memory {peak:.1f} MiB"),
        ("sandbox", f"gVisor on {result['executor']['host']}, image {result['imageDigest']}"),
    ]
    show_table(console, rows)


def _rounded(duration: str) -> str:
    """`0.120148693s` as `120 ms`."""
    return f"{float(duration.removesuffix('s')) * 1000:.0f} ms"


def _timeline(console: Console, gateway: str, evaluation: Json, result: Json) -> None:
    timings = result["timings"]
    moments = [(name, what, datetime.fromisoformat(timings[name])) for name, what in PHASES if timings.get(name)]
    first = moments[0][2]
    took = [*(_milliseconds(before[2], after[2]) for before, after in pairwise(moments)), ""]
    rows = [("at", "took", "phase", ""), *(
        (_milliseconds(first, moment), duration, name, what)
        for (name, what, moment), duration in zip(moments, took, strict=True)
    )]  # fmt: skip
    show_table(console, rows, right=(0, 1))
    kinds = [
        next((kind for kind, value in event.items() if isinstance(value, dict)), "?")
        for event in _call(f"{gateway}/v1/evaluations/{evaluation['id']}/events")["events"]
    ]
    console.print(f"events  {' → '.join(_runs(kinds))}", highlight=False, soft_wrap=True)
    console.print(f"trace   {evaluation.get('traceId', '')}", highlight=False, soft_wrap=True)


def _milliseconds(begin: datetime, end: datetime) -> str:
    return f"{(end - begin).total_seconds() * 1000:.1f} ms"


def _runs(kinds: list[str]) -> Iterator[str]:
    for index, kind in enumerate(kinds):
        if index == 0 or kinds[index - 1] != kind:
            yield kind


def _next(console: Console, addresses: Mapping[str, str], evaluation: Json) -> None:
    gateway = addresses["gateway"]
    ours = "uv run crucible" if "UV" in os.environ else "crucible"  # uv sets it for what it runs
    trace = f"{ours} down; {ours} up --jaeger; then open the address it prints"
    if "jaeger" in addresses:
        trace = f"{addresses['jaeger']}/trace/{evaluation.get('traceId', '')}"
    rows = [
        ("this evaluation", f"curl -s {gateway}/v1/evaluations/{evaluation['id']}"),
        ("one of your own", f"{ours} run --help"),
        ("the API", f"{gateway}/docs"),
        ("traces", trace),
        ("processes, logs", f"{ours} status"),
        ("stop it all", f"{ours} down"),
    ]
    show_table(console, rows)


def _call(url: str, body: Json | None = None) -> Json:
    request = urllib.request.Request(url)  # noqa: S310 - our own http address
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310 - our own http address
            return json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            raise DemoError(f"{url} answered {error.code}: {error.read().decode(errors='replace')}") from error
    except OSError as error:
        raise DemoError(f"{url} does not answer: {error}") from error
