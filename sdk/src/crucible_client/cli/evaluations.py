"""`get`, `list`, `cancel`, `requeue`: one evaluation, or many."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import aclosing
from datetime import UTC, datetime

import click

from crucible_client.cli.render import (
    closing_line,
    colour_of,
    coloured,
    echo_json,
    ending,
    json_text,
    local_time,
    one_line,
    page,
    verdict,
)
from crucible_client.cli.session import run_session
from crucible_client.cli.target import Target
from crucible_client.cli.units import moment, show_seconds
from crucible_client.client import Client
from crucible_client.views import Evaluation, Status

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@click.argument("evaluation_id", metavar="ID")
@_as_json
@click.pass_obj
def get(target: Target, evaluation_id: str, as_json: bool) -> None:
    """Show one evaluation: its verdict, the resources it used and its output.

    \b
    crucible get 01900000-0000-7000-8000-000000000000
    crucible get --json "$(crucible list -n 1 | cut -f 1)"
    """

    async def main(client: Client) -> int:
        evaluation = await client.get(evaluation_id)
        if as_json:
            echo_json(evaluation.proto)
        else:
            click.echo(page(evaluation))
        return 0

    run_session(target, main)


@click.command()
@click.argument("evaluation_id", metavar="ID")
@_as_json
@click.pass_obj
def cancel(target: Target, evaluation_id: str, as_json: bool) -> None:
    """Cancel an evaluation that is not final, and stop its program.

    \b
    crucible cancel 01900000-0000-7000-8000-000000000000
    """

    async def main(client: Client) -> int:
        _show_state(await client.cancel(evaluation_id), as_json=as_json)
        return 0

    run_session(target, main)


@click.command()
@click.argument("evaluation_id", metavar="ID")
@_as_json
@click.pass_obj
def requeue(target: Target, evaluation_id: str, as_json: bool) -> None:
    """Put a FAILED evaluation back into the queue, with a fresh set of attempts.

    FAILED means that the platform gave up; a program that failed is COMPLETED, with its verdict.

    \b
    crucible list --status failed
    crucible requeue 01900000-0000-7000-8000-000000000000
    """

    async def main(client: Client) -> int:
        _show_state(await client.requeue(evaluation_id), as_json=as_json)
        return 0

    run_session(target, main)


@click.command()
@click.option(
    "--status",
    type=click.Choice([s.value for s in Status if s is not Status.UNRECOGNIZED], case_sensitive=False),
    help="Only evaluations with this status.",
)
@click.option("--runtime", help="Only evaluations of this runtime.")
@click.option(
    "--label", "labels", multiple=True, metavar="NAME=VALUE", help="Only evaluations with this label; repeatable."
)
@click.option(
    "--since", type=moment, metavar="TIME", help="Only evaluations created since: 1h, 2d, 2026-01-31T09:00:00Z."
)
@click.option(
    "--filter",
    "raw_filter",
    metavar="FILTER",
    help='A filter, such as \'result.outcome = "SIGNALED" AND labels.team != "red"\'.',
)
@click.option(
    "-n",
    "--limit-count",
    type=click.IntRange(min=0),
    default=50,
    show_default=True,
    help="Show at most this many; 0 for all.",
)
@_as_json
@click.pass_obj
def list_(
    target: Target,
    status: str | None,
    runtime: str | None,
    labels: tuple[str, ...],
    since: datetime | None,
    raw_filter: str | None,
    limit_count: int,
    as_json: bool,
) -> None:
    """List evaluations, newest first: as a table on a terminal, as tab-separated lines in a pipe, as JSON with --json.

    \b
    crucible list --status failed --since 1h
    crucible list --label team=red --json | jq -r .id
    """
    conditions = [raw_filter] if raw_filter else []
    conditions += [f"status = {_quoted(status)}"] if status else []
    conditions += [f"runtime = {_quoted(runtime)}"] if runtime else []
    for label in labels:
        name, equals, value = label.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{label!r}: write NAME=VALUE", param_hint="--label")
        conditions.append(f"labels.{name} = {_quoted(value)}")
    conditions += [f'create_time >= "{since.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"'] if since else []

    async def main(client: Client) -> int:
        shown: list[Evaluation] = []
        count = 0
        page_size = min(limit_count, 500) or 500
        async with aclosing(client.list(" AND ".join(conditions), page_size=page_size)) as evaluations:
            async for evaluation in evaluations:
                if as_json:
                    click.echo(json_text(evaluation.proto))
                elif sys.stdout.isatty():
                    shown.append(evaluation)
                else:
                    click.echo("\t".join(_row(evaluation)))
                count += 1
                if count == limit_count:
                    break
        if not as_json and sys.stdout.isatty():
            _print_table(shown)
        return 0

    run_session(target, main)


_COLUMNS = ("ID", "STATUS", "VERDICT", "END", "RUNTIME", "WALL", "CREATED", "NAME")
_DISPENSABLE = ("NAME", "END", "STATUS", "RUNTIME", "WALL", "CREATED")
"""What a narrow terminal goes without, in this order; never the id, which has to be copied whole."""
_GAP = 2
"""Spaces between two columns."""


def _row(evaluation: Evaluation) -> list[str]:
    result = evaluation.result
    return [
        evaluation.id,
        str(evaluation.status),
        verdict(evaluation),
        ending(result) if result else "",
        one_line(evaluation.runtime),
        show_seconds(result.wall_time) if result else "",
        local_time(evaluation.create_time),
        one_line(evaluation.proto.display_name),
    ]


def _print_table(evaluations: Sequence[Evaluation]) -> None:
    from rich.console import Console  # a tenth of a second that only this table needs
    from rich.table import Table
    from rich.text import Text

    console = Console(no_color=not coloured(sys.stdout))
    rows = [_row(evaluation) for evaluation in evaluations]
    columns = _fitting(rows, console.width)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True, overflow="ignore")
    for evaluation, row in zip(evaluations, rows, strict=True):
        cells = {name: Text(cell) for name, cell in zip(_COLUMNS, row, strict=True)}
        cells["VERDICT"].stylize(colour_of(evaluation))
        table.add_row(*(cells[name] for name in columns))
    # Cut by the terminal at most, not by us.
    console.print(table, crop=False)


def _fitting(rows: Sequence[Sequence[str]], width: int) -> Sequence[str]:
    """The columns that a line of so many characters has room for."""
    widths = {name: max(len(cell) for cell in (name, *cells)) for name, *cells in zip(_COLUMNS, *rows, strict=True)}
    for name in _DISPENSABLE:
        if sum(widths.values()) + _GAP * (len(widths) - 1) <= width:
            break
        del widths[name]
    return tuple(widths)


def _show_state(evaluation: Evaluation, *, as_json: bool) -> None:
    if as_json:
        echo_json(evaluation.proto)
    else:
        click.echo(closing_line(evaluation, sys.stdout))


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if value.isprintable() else '"' + value.replace('"', '\\"') + '"'
