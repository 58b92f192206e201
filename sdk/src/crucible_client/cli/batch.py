"""`batch`: thousands of programs from a file, bounded in flight, resumable."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import click

from crucible_client.cli.batch_file import BadLine, Line, read_batch
from crucible_client.cli.exit_codes import PIPE_CLOSED, PLATFORM_FAILED, REFUSED
from crucible_client.cli.progress import Progress, show_progress
from crucible_client.cli.session import run_session, silence_stdout
from crucible_client.cli.target import Target
from crucible_client.client import Client
from crucible_client.errors import CrucibleError, InvalidRequestError, UserError
from crucible_client.views import Evaluation, Status
from crucible_contracts.proto_json import write_value

SUBMIT_TOGETHER = 100
"""Lines in one call at most."""

BAD_LINES_SHOWN = 20

PATIENCE_SECONDS = 300.0
"""How long a platform that is away is waited for: a long batch should outlive its restart."""

_ECHOED = ("source", "files", "stdin", "stdin_bytes")
"""What the caller has already, and may be large, is not written back."""


@click.command(
    epilog="Exit code: 0 if every evaluation is COMPLETED, whatever its verdict; 2 if a line was refused; 125 if the "
    "platform failed at one, or one was cancelled."
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, readable=True, allow_dash=True))
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, writable=True),
    help="Write results to this file instead of stdout.",
)
@click.option(
    "--in-flight",
    type=click.IntRange(1, 5_000),
    default=256,
    show_default=True,
    help="How many may be queued or running at one time.",
)
@click.option(
    "--key", help="Derive request ids from this instead of the file's content; a new key runs every line again."
)
@click.option("--quiet", is_flag=True, help="Print no progress and no summary.")
@click.option("--json", is_flag=True, expose_value=False, help="Accepted for uniformity: results are always JSON.")
@click.pass_obj
def batch(target: Target, file: str, output: str | None, in_flight: int, key: str | None, quiet: bool) -> None:
    """Run the evaluations in FILE (- for standard input), one JSON object per line, and write a JSON line for each.

    \b
    crucible batch programs.jsonl -o results.jsonl

    A line is the body of POST /v1/evaluations, and may have a `requestId`:

    \b
    {"runtime": "python", "source": "print(1)"}
    {"runtime": "python", "source": "print(2)", "limits": {"wallTime": "5s"}, "requestId": "two"}

    A result has `line`, `requestId` and `evaluation`, or `error` for a line that was refused; results come in the
    order in which evaluations end. Running the same file again resumes where it stopped and runs nothing twice: a line
    without a `requestId` gets one derived from the file's content and the line's number.
    """
    content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()

    async def main(client: Client) -> int:
        runtimes = [runtime.name for runtime in await client.runtimes()]
        lines, bad = read_batch(content, runtimes=runtimes, key=key)
        if bad:
            _report(bad)
            return REFUSED
        with ExitStack() as stack:
            sink = stack.enter_context(_open(output))
            progress = stack.enter_context(show_progress(len(lines), quiet=quiet))
            run = _Batch(client, sink, progress, in_flight=in_flight)
            try:
                await run.all(lines)
            except (asyncio.CancelledError, CrucibleError):
                done = sum(run.statuses.values())
                click.echo(
                    f"crucible: stopped after {done} of {len(lines)}; what was submitted keeps running. To resume, run "
                    "the same command again",
                    err=True,
                )
                raise
            except BrokenPipeError:
                silence_stdout()
                return PIPE_CLOSED
        if run.refused:
            _report(run.refused)
        if not quiet:
            click.echo(f"crucible: {_summary(run.statuses, len(lines))}", err=True)
        if run.refused:
            return REFUSED
        return 0 if run.statuses[Status.COMPLETED] == len(lines) else PLATFORM_FAILED

    run_session(target, main, one_trace=False, patience=PATIENCE_SECONDS)


@dataclass
class _Batch:
    """Sends lines while fewer than `in_flight` are not final, and writes each one's end."""

    client: Client
    sink: TextIO
    progress: Progress
    in_flight: int
    statuses: Counter[Status] = field(default_factory=Counter[Status])
    refused: list[BadLine] = field(default_factory=list[BadLine])

    async def all(self, lines: Sequence[Line]) -> None:
        """Until every line is final. Raises the first error that is not of one line alone."""
        slots = asyncio.Semaphore(self.in_flight)
        together = min(SUBMIT_TOGETHER, self.in_flight)
        try:
            async with asyncio.TaskGroup() as group:
                for start in range(0, len(lines), together):
                    chunk = lines[start : start + together]
                    for _ in chunk:
                        await slots.acquire()
                    for line, evaluation in await self._submit(chunk):
                        if evaluation is None:
                            slots.release()
                        else:
                            group.create_task(self._finish(line, evaluation, slots.release), name=f"line {line.number}")
        except ExceptionGroup as failed:
            raise _first(failed.exceptions) from failed

    async def _submit(self, lines: Sequence[Line]) -> list[tuple[Line, Evaluation | None]]:
        try:
            accepted = await self.client.create_many(
                [line.evaluation for line in lines], request_ids=[line.request_id for line in lines]
            )
        except UserError as error:
            # All or none: to know which line is at fault, and to lose no other for it, they go one by one.
            if len(lines) > 1:
                return [pair for line in lines for pair in await self._submit([line])]
            self._refuse(lines[0], error)
            return [(lines[0], None)]
        return list(zip(lines, accepted, strict=True))

    def _refuse(self, line: Line, error: UserError) -> None:
        violations = error.violations if isinstance(error, InvalidRequestError) else ()
        for violation in violations:
            name = _as_in_file(violation.field)
            self.refused.append(BadLine(line.number, name, violation.description))
        if not violations:
            self.refused.append(BadLine(line.number, "", str(error)))
        message = "; ".join(bad.what for bad in self.refused if bad.number == line.number)
        self._write(line, {"error": {"code": error.code, "reason": error.reason, "message": message}})

    async def _finish(self, line: Line, evaluation: Evaluation, release: Callable[[], None]) -> None:
        if not evaluation.final:
            evaluation = await self.client.wait(evaluation.id)
        release()
        message = type(evaluation.proto)()
        message.CopyFrom(evaluation.proto)
        for name in _ECHOED:
            message.ClearField(name)
        self._write(line, {"evaluation": write_value(message)})
        self.statuses[evaluation.status] += 1
        done = sum(self.statuses.values()) + len({bad.number for bad in self.refused})
        self.progress.show(done=done, failed=done - self.statuses[Status.COMPLETED])

    def _write(self, line: Line, content: dict[str, object]) -> None:
        self.sink.write(json.dumps({"line": line.number, "requestId": line.request_id, **content}) + "\n")
        self.sink.flush()


def _open(path: str | None) -> AbstractContextManager[TextIO]:
    try:
        return Path(path).open("w") if path else nullcontext(sys.stdout)
    except OSError as exc:
        raise click.BadParameter(f"cannot write {path!r}: {exc.strerror}", param_hint="--output") from exc


def _as_in_file(field: str) -> str:
    """`requests[0].evaluation.limits.memory_bytes` as `limits.memoryBytes`, as the line writes it."""
    name = field.removeprefix("requests[0].").removeprefix("evaluation.")
    head, bracket, subscript = name.partition("[")  # a key in brackets may be anything
    return re.sub(r"_([a-z])", lambda found: found[1].upper(), head) + bracket + subscript


def _first(errors: Sequence[BaseException]) -> BaseException:
    """One error says it: the others are of the same outage."""
    return next((error for error in errors if isinstance(error, CrucibleError)), errors[0])


def _report(bad: Sequence[BadLine]) -> None:
    for line in bad[:BAD_LINES_SHOWN]:
        click.echo(f"crucible: {line}", err=True)
    if len(bad) > BAD_LINES_SHOWN:
        click.echo(f"crucible: and {len(bad) - BAD_LINES_SHOWN} more", err=True)


def _summary(statuses: Counter[Status], total: int) -> str:
    counts = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
    return f"{total} evaluations: {counts or 'none accepted'}"
