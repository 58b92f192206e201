"""`runtimes`: what programs can be written in."""

from __future__ import annotations

import click

from crucible_client.cli.render import json_text, one_line
from crucible_client.cli.session import run_session
from crucible_client.cli.target import Target
from crucible_client.cli.units import show_bytes, show_seconds
from crucible_client.client import Client
from crucible_client.views import Runtime


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print each runtime as a line of JSON.")
@click.pass_obj
def runtimes(target: Target, as_json: bool) -> None:
    """List the runtimes that programs can use, with their default limits.

    \b
    crucible runtimes
    crucible runtimes --json | jq .maximumLimits
    """

    async def main(client: Client) -> int:
        for runtime in await client.runtimes():
            click.echo(json_text(runtime.proto) if as_json else _line(runtime))
        return 0

    run_session(target, main)


def _line(runtime: Runtime) -> str:
    limits = runtime.proto.default_limits
    return "  ".join(
        [
            f"{one_line(runtime.name):<12}",
            f"{one_line(runtime.display_name):<16}",
            f"{runtime.entrypoint:<10}",
            f"wall {show_seconds(limits.wall_time.ToTimedelta().total_seconds())}",
            f"memory {show_bytes(limits.memory_bytes)}",
            "" if runtime.available else "not offered now: its evaluations wait",
        ]
    ).rstrip()
