"""One program, from a POST to its verdict, for people who see Crucible for the first time."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import pairwise
from typing import Any, cast

from rich.console import Console
from rich.table import Table

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
    ("queued", "stored durably, answered to the caller"),
    ("dispatched", "chosen by the scheduler, leased"),
    ("started", "claimed by an executor"),
    ("ready", "the sandbox runs the program"),
    ("finished", "the verdict stands"),
)

Json = dict[str, Any]


class DemoError(RuntimeError):
    """The program was not answered with a verdict."""


def show(console: Console, addresses: Mapping[str, str]) -> None:
    """Runs the program over REST and prints its output, verdict and timeline. Raises DemoError."""
    gateway = addresses["gateway"]
    console.rule("POST /v1/evaluations:run", align="left")
    console.print(PROGRAM.rstrip(), style="dim", markup=False, highlight=False)
    evaluation = _call(
        f"{gateway}/v1/evaluations:run?timeout=60s", {"runtime": "python", "source": PROGRAM, "displayName": "demo"}
    )
    result = evaluation.get("result")
    if not isinstance(result, dict):
        raise DemoError(f"no verdict within a minute: {json.dumps(evaluation, indent=2)}")
    result = cast("Json", result)
    console.rule("output", align="left")
    console.print(result["stdout"]["text"].rstrip(), markup=False, highlight=False)
    console.rule("verdict", align="left")
    _verdict(console, evaluation, result)
    console.rule("timeline", align="left")
    _timeline(console, gateway, evaluation, result)
    console.rule("where to look next", align="left")
    _next(console, addresses, evaluation)


def _verdict(console: Console, evaluation: Json, result: Json) -> None:
    usage = result["usage"]
    termination = f"exit code {result['exitCode']}" if "exitCode" in result else f"signal {result.get('signal')}"
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("status", str(evaluation["status"]))
    table.add_row("outcome", f"{result['outcome']} ({termination}), cause {result['cause']}")
    peak = int(usage["peakMemoryBytes"]) / 1024**2
    table.add_row("usage", f"wall {usage['wallTime']}, CPU {usage['cpuTime']}, peak memory {peak:.1f} MiB")
    table.add_row("sandbox", f"gVisor on {result['executor'].get('host', '?')}, image {result['imageDigest'][:19]}…")
    console.print(table, highlight=False)


def _timeline(console: Console, gateway: str, evaluation: Json, result: Json) -> None:
    timings = {name: datetime.fromisoformat(result["timings"][name]) for name, _ in PHASES if name in result["timings"]}
    table = Table(box=None, pad_edge=False)
    for column in ("at", "phase", "took", "what"):
        table.add_column(column, justify="right" if column in ("at", "took") else "left")
    known = [(name, what, timings[name]) for name, what in PHASES if name in timings]
    first = known[0][2]
    ends = [*(f"{(b[2] - a[2]).total_seconds() * 1000:.1f} ms" for a, b in pairwise(known)), ""]
    for (name, what, moment), took in zip(known, ends, strict=True):
        table.add_row(f"{(moment - first).total_seconds() * 1000:.1f} ms", name, took, what)
    console.print(table, highlight=False)
    kinds = [
        next((kind for kind in event if isinstance(event[kind], dict)), "?")
        for event in _call(f"{gateway}/v1/evaluations/{evaluation['id']}/events")["events"]
    ]
    console.print(f"events: {' → '.join(_runs(kinds))}", highlight=False)
    console.print(f"trace:  {evaluation.get('traceId', '')}", highlight=False)


def _runs(kinds: list[str]) -> Iterator[str]:
    for index, kind in enumerate(kinds):
        if index == 0 or kinds[index - 1] != kind:
            yield kind


def _next(console: Console, addresses: Mapping[str, str], evaluation: Json) -> None:
    gateway = addresses["gateway"]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("this evaluation", f"curl -s {gateway}/v1/evaluations/{evaluation['id']}")
    table.add_row("one of your own", "crucible run --runtime python 'print(6 * 7)'")
    table.add_row("the API", f"{gateway}/docs")
    if "jaeger" in addresses:
        table.add_row("its trace", f"{addresses['jaeger']}/trace/{evaluation.get('traceId', '')}")
    else:
        table.add_row("its trace", "crucible down && crucible up --jaeger, then open the printed address")
    table.add_row("processes, logs", "crucible status")
    table.add_row("stop it", "make down")
    console.print(table, highlight=False)


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
