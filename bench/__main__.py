"""Measures Crucible beside bare runs of `runsc` of the same invocation, in turn with them.

Starts stacks of its own on free ports. Machines are noisy: read the ratios, not the milliseconds. About three minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from bench import latency, phases, rates, sandbox, soak, standing
from bench.baseline import COMMAND, BareRunsc, directory_root, executors_own, require_tools
from bench.latency import Client
from bench.report import Report
from crucible_executor.sandbox.image import DEFAULT_IMAGES_DIR, ImageStore
from crucible_testkit.otlp import OtlpReceiver
from crucible_testkit.stack import Stack

RUNTIME = "python"
SECTIONS = {
    "latency": "submit to verdict over REST: warm, with a cold boot, without a pause",
    "phases": "where the time of a warm run goes, from its trace",
    "standing": "memory and CPU time of each process, idle and at work",
    "rate": "evaluations a second of the whole stack, with submits kept in flight",
    "sandbox": "the executor's sandboxes alone: phases, rate, idle pool",
}


def main() -> int:
    """Runs the sections that were asked for and prints what they found."""
    if sys.argv[1:2] == ["soak"]:
        return soak.main(sys.argv[2:])
    chosen = arguments()
    require_tools()
    report = Report(quiet=chosen.json)
    sections: list[str] = chosen.sections or list(SECTIONS)
    began = time.monotonic()
    if {"latency", "standing", "rate"} & set(sections):
        whole(report, sections, chosen)
    if "phases" in sections:
        traced(report, chosen)
    if "sandbox" in sections:
        asyncio.run(sandbox.measure(report, chosen.images, chosen.runs // 2, chosen.parallel))
    if chosen.json:
        print(json.dumps(report.document))
    else:
        print(f"\ntook {time.monotonic() - began:.0f} s")
    return 0


def arguments() -> argparse.Namespace:
    """What was asked for."""
    lines = "\n".join(f"  {name:10}{words}" for name, words in SECTIONS.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        epilog=f"sections:\n{lines}\n\n`python -m bench soak --help`: what thousands of runs leave behind.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], metavar="section", help="all unless told")
    parser.add_argument("--runs", type=int, default=60, help="warm runs that count (default 60)")
    parser.add_argument(
        "--parallel", type=int, default=os.cpu_count() or 1, help="at once, for the rates (default: the cores)"
    )
    parser.add_argument("--images", type=Path, default=DEFAULT_IMAGES_DIR)
    parser.add_argument("--json", action="store_true", help="print every figure as one JSON document at the end")
    return parser.parse_args()


def whole(report: Report, sections: list[str], chosen: argparse.Namespace) -> None:
    """What is measured on a stack as users start it."""
    with Stack() as stack, directory_root(ImageStore(chosen.images).find(RUNTIME)[1]) as root:
        client = Client(stack, pool=pool_size(chosen.images))
        client.calm()
        if "standing" in sections:
            standing.measure_memory(report, client, "just started")
        if "latency" in sections:
            latency.measure(report, client, BareRunsc(root, COMMAND), chosen.runs)
        if "standing" in sections:
            standing.measure_idle(report, client)
            standing.measure_work(report, client, max(1, chosen.runs // 4))
        if "rate" in sections:
            bare = executors_own(root.parent, *ImageStore(chosen.images).find(RUNTIME))
            asyncio.run(rates.measure_stack(report, client, bare, count=chosen.runs, parallel=chosen.parallel))
        if "standing" in sections:
            standing.measure_memory(report, client, "after that work")
        client.submitter.close()


def traced(report: Report, chosen: argparse.Namespace) -> None:
    """What is measured on a stack that tells of every span, which costs it some of its speed."""
    with ExitStack() as stack:
        receiver = stack.enter_context(OtlpReceiver())
        running = stack.enter_context(Stack(receiver.environment))
        client = Client(running, pool=pool_size(chosen.images))
        phases.measure(report, client, receiver, max(1, chosen.runs // 2))
        client.submitter.close()


def pool_size(images: Path) -> int:
    """How many sandboxes a stack of this machine keeps ready: as many as cores, of each runtime."""
    return (os.cpu_count() or 1) * len(ImageStore(images).index().runtimes)


if __name__ == "__main__":
    raise SystemExit(main())
