"""From a click command into the event loop and back: the client, the trace of the command, failures, exit codes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import NoReturn

import click

from crucible_client.cli.exit_codes import INTERRUPTED, PIPE_CLOSED, PLATFORM_FAILED, REFUSED
from crucible_client.cli.spelling import as_typed, in_units
from crucible_client.cli.target import Target
from crucible_client.client import Client
from crucible_client.errors import (
    CrucibleError,
    FieldViolation,
    NotFoundError,
    PlatformError,
    PreconditionError,
    QuotaError,
    UnavailableError,
    UnsupportedError,
)
from crucible_client.trace import new_traceparent

LEAVING_SECONDS = 5.0
"""For calls under way to be cancelled after Ctrl-C."""


def run_session(
    target: Target,
    main: Callable[[Client], Awaitable[int]],
    *,
    one_trace: bool = True,
    patience: float = 30.0,
) -> NoReturn:
    """Opens the client, runs `main`, and exits with its code; a failure becomes a line on stderr and its code.

    Unless `one_trace` is off, all calls are of one trace, whose id failures name. `patience` is the client's.
    """
    traceparent = new_traceparent()

    async def session() -> int:
        _leave_at_ctrl_c()
        async with Client(
            scheduler=target.scheduler,
            store=target.store,
            patience=patience,
            traceparent=(lambda: traceparent) if one_trace else new_traceparent,
        ) as client:
            return await main(client)

    try:
        code = asyncio.run(session())
        sys.stdout.flush()
    except CrucibleError as error:
        click.echo(describe(error), err=True)
        code = PLATFORM_FAILED if isinstance(error, PlatformError) else REFUSED
    except (KeyboardInterrupt, asyncio.CancelledError):
        code = INTERRUPTED
    except BrokenPipeError:
        silence_stdout()
        code = PIPE_CLOSED
    except OSError as error:
        silence_stdout()
        click.echo(f"crucible: cannot write the output: {error.strerror or error}", err=True)
        code = PLATFORM_FAILED
    sys.exit(code)


def _leave_at_ctrl_c() -> None:
    """Cancels the session; what does not let itself be cancelled is left behind, at the second Ctrl-C at once."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def interrupted() -> None:
        if task.cancelling():
            os._exit(INTERRUPTED)
        task.cancel()
        loop.call_later(LEAVING_SECONDS, os._exit, INTERRUPTED)

    loop.add_signal_handler(signal.SIGINT, interrupted)


def describe(error: CrucibleError) -> str:
    """What happened and what to do next, for a person."""
    rules = [_rule(violation) for violation in error.violations]
    lines = [f"crucible: {rules[0] if len(rules) == 1 else error}"]
    if len(rules) > 1:
        lines = ["crucible: the request breaks several rules", *(f"  {rule}" for rule in rules)]
    if status := error.metadata.get("status", "") if isinstance(error, PreconditionError) else "":
        lines[0] += f"; it is {status}"
    next_step = _next_step(error)
    if next_step:
        lines[0] = lines[0] if lines[0].endswith("?") else lines[0].rstrip(".") + "."
        lines[0] += f" {next_step}"
    if isinstance(error, PlatformError) and not isinstance(error, UnavailableError) and error.trace_id:
        lines.append(f"  {error.code} {error.reason}".rstrip() + f", trace {error.trace_id}")
    return "\n".join(lines)


def _rule(violation: FieldViolation) -> str:
    description = in_units(violation.field, violation.description)
    return f"{as_typed(violation.field)}: {description}" if violation.field else description


def _next_step(error: CrucibleError) -> str:
    match error:
        case UnavailableError(reached=False):
            return "Is the stack up? Try: crucible up"
        case UnavailableError():
            return "Try again in a moment, or look with: crucible status"
        case NotFoundError():
            return "See: crucible list"
        case QuotaError():
            return "Try again later, or send less at once"
        case UnsupportedError():
            return "Client and platform are of different versions"
        case _:
            return _NEXT_STEP_OF_REASON.get(error.reason, "")


_NEXT_STEP_OF_REASON = {
    "UNKNOWN_RUNTIME": "See: crucible runtimes",
    "REQUEST_ID_REUSED": "Use another request id",
    "INVALID_FILTER": "A filter looks like: status = FAILED AND runtime = python AND labels.team = red",
}


def silence_stdout() -> None:
    """Nobody reads any more: what is still buffered must not fail when the interpreter flushes it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
