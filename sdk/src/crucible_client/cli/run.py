"""`run`: one program, as if it ran here."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from dataclasses import replace

import click

from crucible_client.cli.exit_codes import INTERRUPTED, LIMIT, PLATFORM_FAILED
from crucible_client.cli.live import LiveOutput
from crucible_client.cli.render import closing_line, echo_json, findings, one_line
from crucible_client.cli.session import run_session
from crucible_client.cli.stopping import Stopping
from crucible_client.cli.submission import guess_runtime, parse_pairs, read_program, read_stdin
from crucible_client.cli.target import Target
from crucible_client.cli.units import duration, parse_limits
from crucible_client.client import Client
from crucible_client.program import Priority, Program
from crucible_client.views import Evaluation, Status


@click.command(
    epilog="Exit code: the program's own; 128+n if signal n ended it; 124 for a limit or --timeout; 125 if the "
    "platform failed; 2 if an option or the program was refused and nothing ran; 130 after Ctrl-C."
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, readable=True, allow_dash=True))
@click.argument("arguments", nargs=-1, metavar="[-- ARGUMENT...]")
@click.option("--runtime", help="Runtime to use; guessed from the file's extension. See `crucible runtimes`.")
@click.option(
    "--stdin", "stdin", metavar="FILE", help="The program's standard input; - passes ours on. Default: empty."
)
@click.option(
    "--arg", "args", multiple=True, help="An argument for the program; repeatable. Comes before those after `--`."
)
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="An environment variable; repeatable.")
@click.option(
    "--file",
    "extra",
    multiple=True,
    metavar="PATH[=NAME]",
    help="Another file for the program, under this name in its working directory; repeatable.",
)
@click.option(
    "--limit",
    "limits",
    multiple=True,
    metavar="NAME=VALUE",
    help="wall_time=5s, cpu_time=5s, memory=512MiB, disk=64MiB, output=1MiB, processes=64, open_files=256; "
    "repeatable. For defaults and maxima see `crucible runtimes --json`.",
)
@click.option(
    "--priority", type=click.Choice([p.value for p in Priority], case_sensitive=False), help="Priority in the queue."
)
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="A label; repeatable.")
@click.option("--name", "display_name", help="A display name.")
@click.option("--request-id", help="Run it only once: the same id again gives the same evaluation.")
@click.option(
    "--timeout", type=duration, metavar="DURATION", help="Cancel it if it has not ended after this long, such as 30s."
)
@click.option("--json", "as_json", is_flag=True, help="Print the final evaluation as JSON instead of its output.")
@click.option("--quiet", is_flag=True, help="Print nothing but the program's output.")
@click.pass_obj
def run(
    target: Target,
    file: str,
    arguments: tuple[str, ...],
    runtime: str | None,
    stdin: str | None,
    args: tuple[str, ...],
    env: tuple[str, ...],
    extra: tuple[str, ...],
    limits: tuple[str, ...],
    priority: str | None,
    labels: tuple[str, ...],
    display_name: str | None,
    request_id: str | None,
    timeout: float | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run FILE (- for standard input) in a sandbox and stream its output, byte for byte.

    \b
    crucible run hello.py --limit wall_time=5s --limit memory=512MiB -- one two
    echo 'echo hi' | crucible run --runtime bash -
    """
    source, files, entrypoint = read_program(file, extra=extra)
    program = Program(
        source,
        runtime=runtime or "",
        files=files,
        entrypoint=entrypoint,
        args=(*args, *arguments),
        env=parse_pairs(env, "--env"),
        stdin=read_stdin(stdin, program=file),
        limits=parse_limits(limits),
        priority=Priority(priority) if priority else None,
        labels=parse_pairs(labels, "--label"),
        display_name=display_name,
    )

    def say(text: str) -> None:
        if not quiet:
            click.echo(f"crucible: {text}", err=True)

    async def main(client: Client) -> int:
        stopping = Stopping(say)
        chosen = program if runtime else replace(program, runtime=guess_runtime(file, await client.runtimes()))
        try:
            submitted = await client.create(chosen, request_id=request_id)
            async with stopping.cancelling(client, submitted.id, timeout):
                if as_json:
                    evaluation = await client.wait(submitted.id)
                else:
                    evaluation = await LiveOutput(say, stopping.unwritable).follow(client, submitted.id)
        except asyncio.CancelledError:
            if stopping.exit_code is None:
                raise
            return stopping.exit_code
        if as_json:
            echo_json(evaluation.proto)
        if not quiet:
            for line in _last_words(evaluation):
                click.echo(line, err=True)
        if stopping.exit_code == PLATFORM_FAILED:
            return PLATFORM_FAILED  # its output is lost, whatever its end
        if evaluation.status is Status.CANCELLED:
            return stopping.exit_code or INTERRUPTED
        return exit_code(evaluation)

    run_session(target, main)


def exit_code(evaluation: Evaluation) -> int:
    """What the program's end is as an exit code of ours."""
    result = evaluation.result
    if result is None:
        return PLATFORM_FAILED
    if result.outcome.limit:
        return LIMIT
    if result.signal is not None:
        return 128 + _signal_number(result.signal)
    return PLATFORM_FAILED if result.exit_code is None else result.exit_code


def _signal_number(name: str) -> int:
    if name in signal.Signals.__members__:
        return signal.Signals[name]
    real_time = re.fullmatch(r"SIGRTMIN\+(\d+)", name)
    return 34 + int(real_time[1]) if real_time else 0


def _last_words(evaluation: Evaluation) -> list[str]:
    ran_into_limit = evaluation.result is not None and evaluation.result.outcome.limit
    lines = [f"crucible: {detail}" for detail in findings(evaluation)] if ran_into_limit else []
    if evaluation.status is Status.FAILED:
        lines.append(
            f"crucible: the platform gave up ({one_line(str(evaluation.status_reason or evaluation.cause))}). "
            f"Try again with: crucible requeue {evaluation.id}"
        )
    return [*lines, f"crucible: {closing_line(evaluation, sys.stderr)}"]
