"""The commands that `crucible` gets when the stack is installed beside it: up, down, status, doctor, demo."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click
from rich.console import Console

from crucible_local import demo as demonstration
from crucible_local import display
from crucible_local import doctor as host
from crucible_local.client_config import client_config_path
from crucible_local.confinement import ConfinementError
from crucible_local.elevation import ElevationError, become_root
from crucible_local.jaeger import JaegerError, require_jaeger
from crucible_local.launch import InterruptedStartError, LaunchError, current_state, launch, purge, stop
from crucible_local.layout import DEFAULT_DATA, Layout, LayoutError, is_held
from crucible_local.options import Ports, PortTakenError, StackOptions, invoking_user
from crucible_local.state import StackState

START_SECONDS = 600
"""A first start builds root images."""
MISTAKES = (PortTakenError, LayoutError, JaegerError, ElevationError)
"""Another port, another folder, another user: the caller can fix it."""
EXPECTED = (*MISTAKES, LaunchError, ConfinementError)

Command = TypeVar("Command", bound=Callable[..., None])


class _Mistake(click.ClickException):
    exit_code = 2  # as of the client's commands


class _PlatformFailure(click.ClickException):
    exit_code = 125


def _failure(error: Exception) -> click.ClickException:
    return (_Mistake if isinstance(error, MISTAKES) else _PlatformFailure)(str(error))


def _data(command: Command) -> Command:
    return click.option(
        "--data", type=click.Path(path_type=Path), envvar="CRUCIBLE_DATA", default=DEFAULT_DATA, show_default=True,
        help="Data folder of the stack. Each folder is a stack of its own.",
    )(command)  # fmt: skip


def _start_options(command: Command) -> Command:
    for option in (
        click.option("--timeout", type=click.FloatRange(1), default=START_SECONDS, show_default=True,
                     help="How many seconds to wait until it is ready."),
        click.option("--write-config/--no-write-config", default=None,
                     help="Write the stack's addresses to ~/.config/crucible/client.toml, where the other commands and "
                          "the SDK look for them. Default: for the default data folder only."),
        click.option("--jaeger", is_flag=True, help="Also start Jaeger, from a `jaeger` binary or with Docker."),
        click.option("--port-base", type=click.IntRange(0, 65000), envvar="CRUCIBLE_PORT_BASE",
                     help="First port to use, 8080 by default; 0 picks free ports."),
        click.option("--port", type=click.IntRange(1, 65535), help="Port of the gateway; the others stay."),
    ):  # fmt: skip
        command = option(command)
    return _data(command)


@click.command()
@_start_options
@click.option("--json", "as_json", is_flag=True, help="Print the state as JSON once the stack is ready.")
@click.option("--foreground", is_flag=True, help="Stay in the foreground; Ctrl-C stops the stack.")
def up(
    data: Path, port: int | None, port_base: int | None, jaeger: bool, write_config: bool | None, timeout: float,
    as_json: bool, foreground: bool,
) -> None:  # fmt: skip
    """Start the whole stack on this machine. A stack that already runs on the data folder is left alone.

    Exit code: 2 for a port, folder or option that cannot be used; 125 if the stack did not start.

    \b
    crucible up
    crucible up --data /tmp/mine --port-base 0 --json
    """
    console = Console(stderr=True)
    options = _options(data, port, port_base, jaeger=jaeger, write_config=write_config)
    state = _start(console, options, timeout)
    if as_json:
        click.echo(display.status_json(state, state.processes))
    else:
        _announce(console, state, known=options.client_config is not None)
    if foreground:
        _stay(options)


@click.command()
@_data
@click.option("--purge", "with_data", is_flag=True, help="Also remove its data and images.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def down(data: Path, with_data: bool, as_json: bool) -> None:
    """Stop the stack. No process, mount or cgroup of it is left.

    \b
    crucible down
    crucible down --data /tmp/mine --purge
    """
    layout = Layout(data.resolve())
    try:
        if layout.lock.exists() or with_data:
            become_root(os.environ)
        click.echo(f"stopping the stack on {data}", err=True)
        found = stop(layout)
        removed = purge(layout) if with_data else False
    except EXPECTED as error:
        raise _failure(error) from error
    if as_json:
        click.echo(display.down_json(data, was_running=found, removed=removed))
        return
    click.echo(
        ("the stack is stopped" if found else "no stack is running") + (f"; {data} is removed" if removed else "")
    )


@click.command()
@_data
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(data: Path, as_json: bool) -> None:
    """Show each process: state, pid, address, restarts and log file. Exit code 3 if no stack is running.

    \b
    crucible status
    crucible status --json | jq -r .addresses.gateway
    """
    layout = Layout(data.resolve())
    state, processes = current_state(layout)
    if as_json:
        click.echo(display.status_json(state, processes))
    elif state is not None:
        display.show_status(Console(), state, processes)
    else:
        click.echo(f"no stack is running on {data}; start one with `crucible up`")
        for process in processes:
            click.echo(f"still running: {process.name}; `crucible down` ends it")
    if state is None:
        raise SystemExit(3)


@click.command()
@_data
@click.option("--port-base", type=click.IntRange(0, 65000), envvar="CRUCIBLE_PORT_BASE", help="As in `crucible up`.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(data: Path, port_base: int | None, as_json: bool) -> None:
    """Check that this machine can run the stack and its sandboxes, and say how to fix what is missing.

    Exit code 1 if something required is missing.

    \b
    crucible doctor
    crucible doctor --json | jq '.[] | select(.passed | not)'
    """
    data = data.resolve()
    sandbox = host.sandbox_checks(data)
    known = {check.name for check in sandbox}
    checks = [check for check in host.quick_checks(data) if check.name not in known]
    checks += [host.port_check(Ports.choose(port_base, None), jaeger=False), *sandbox]
    if as_json:
        click.echo(display.checks_json(checks))
    else:
        display.show_checks(Console(), checks)
    if host.failures(checks):
        raise SystemExit(1)


@click.command()
@_start_options
@click.option("--json", "as_json", is_flag=True, help="Print only the evaluation, as JSON.")
def demo(
    data: Path, port: int | None, port_base: int | None, jaeger: bool, write_config: bool | None, timeout: float,
    as_json: bool,
) -> None:  # fmt: skip
    """Start the stack, run one program in gVisor end to end, and show what happened step by step.

    \b
    crucible demo
    crucible demo --json | jq .result.timings
    """
    console = Console(stderr=as_json)
    options = _options(data, port, port_base, jaeger=jaeger, write_config=write_config)
    state = _start(console, options, timeout)
    try:
        if as_json:
            click.echo(json.dumps(demonstration.run(state.addresses), indent=2))
        else:
            demonstration.show(console, state.addresses)
    except demonstration.DemoError as error:
        raise _failure(error) from error


def _options(
    data: Path, port: int | None, port_base: int | None, *, jaeger: bool, write_config: bool | None
) -> StackOptions:
    try:
        become_root(os.environ)
        if jaeger:
            require_jaeger(os.environ)
    except EXPECTED as error:
        raise _failure(error) from error
    data = data.resolve()
    writes = data == DEFAULT_DATA if write_config is None else write_config
    config = client_config_path(os.environ, invoking_user(os.environ)) if writes else None
    return StackOptions(data=data, ports=Ports.choose(port_base, port), jaeger=jaeger, client_config=config)


def _start(console: Console, options: StackOptions, timeout: float) -> StackState:
    if failed := host.failures(host.quick_checks(options.data)):
        display.show_checks(console, failed)
        raise _failure(
            LaunchError(
                "this machine lacks what is marked above; nothing was started. `crucible doctor` checks everything"
            )
        )
    try:
        launched = launch(options, timeout=timeout, progress=display.Progress(console))
    except InterruptedStartError as error:
        click.echo(f"\n{error}", err=True)
        raise SystemExit(130) from None
    except EXPECTED as error:
        raise _failure(error) from error
    if launched.was_running:
        console.print(f"a stack is already running on {options.data}")
    return launched.state


def _announce(console: Console, state: StackState, *, known: bool) -> None:
    """`known`: the other commands find the stack by themselves."""
    gateway = state.addresses["gateway"]
    console.print(f"ready: {gateway} (API reference at {gateway}/docs)", highlight=False)
    if not known:
        urls = " ".join(f"CRUCIBLE_{name.upper()}_URL={state.addresses[name]}" for name in ("scheduler", "store"))
        console.print(f"for the other commands and the SDK: export {urls}", highlight=False, soft_wrap=True)
    if "jaeger" in state.addresses:
        console.print(f"traces: {state.addresses['jaeger']}", highlight=False)


def _stay(options: StackOptions) -> None:
    layout = Layout(options.data)
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: asked.append(number))
    while not asked and is_held(layout.lock):
        time.sleep(0.2)
    stop(layout)
