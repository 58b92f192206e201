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

_as_json = click.option("--json", "as_json", is_flag=True, help="Write JSON.")


@click.command()
@click.argument("evaluation_id", metavar="ID")
@_as_json
@click.pass_obj
def get(target: Target, evaluation_id: str, as_json: bool) -> None:
    """Show one evaluation: its verdict, what it used, what it wrote.

    \b
    crucible get 01900000-0000-7000-8000-000000000000
    crucible get --json "$(crucible list --limit-count 1 | cut -f 1)"
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
    """Cancel an evaluation that is not final; its program is stopped.

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
    """Put a FAILED evaluation back into the queue, with all its attempts.

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
    help="Only those that stand there.",
)
@click.option("--runtime", help="Only those of this runtime.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Only those with this label; repeatable.")
@click.option("--since", type=moment, metavar="TIME", help="Only those accepted since: 1h, 2d, 2026-01-31T09:00:00Z.")
@click.option(
    "--filter",
    "raw_filter",
    metavar="FILTER",
    help='More conditions, such as \'result.outcome = "SIGNALED" AND labels.team != "red"\'.',
)
@click.option(
    "--limit-count", type=click.IntRange(min=0), default=50, show_default=True, help="How many at most; 0: all."
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
    """List evaluations, newest first: a table on a terminal, tab-separated lines in a pipe, with --json JSON lines.

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

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in _COLUMNS:
        table.add_column(column, no_wrap=column != "NAME", overflow="fold" if column == "NAME" else "ellipsis")
    for evaluation in evaluations:
        row = [Text(cell) for cell in _row(evaluation)]
        row[2].stylize(colour_of(evaluation))
        table.add_row(*row)
    Console(no_color=not coloured(sys.stdout)).print(table)


def _show_state(evaluation: Evaluation, *, as_json: bool) -> None:
    if as_json:
        echo_json(evaluation.proto)
    else:
        click.echo(closing_line(evaluation, sys.stdout))


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if value.isprintable() else '"' + value.replace('"', '\\"') + '"'
