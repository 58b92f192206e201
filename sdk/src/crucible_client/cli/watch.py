"""`watch`: the events of an evaluation as they come."""

from __future__ import annotations

from contextlib import aclosing

import click

from crucible_client.cli.render import event_line, json_text
from crucible_client.cli.session import run_session
from crucible_client.cli.target import Target
from crucible_client.client import Client


@click.command()
@click.argument("evaluation_id", metavar="ID")
@click.option("--after", type=click.IntRange(min=0), default=0, help="Only events with a greater sequence number.")
@click.option("--json", "as_json", is_flag=True, help="Print each event as a line of JSON.")
@click.pass_obj
def watch(target: Target, evaluation_id: str, after: int, as_json: bool) -> None:
    """Follow the events of an evaluation, past and new, until it is final.

    \b
    crucible watch 01900000-0000-7000-8000-000000000000
    """

    async def main(client: Client) -> int:
        async with aclosing(client.watch(evaluation_id, after=after)) as events:
            async for event in events:
                click.echo(json_text(event.proto) if as_json else event_line(event))
        return 0

    run_session(target, main)
