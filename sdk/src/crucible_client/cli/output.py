"""`output`: the exact bytes a program wrote."""

from __future__ import annotations

import base64
import json
import sys
from contextlib import aclosing

import click

from crucible_client.cli.session import run_session
from crucible_client.cli.target import Target
from crucible_client.client import Client
from crucible_client.views import Stream


@click.command()
@click.argument("evaluation_id", metavar="ID")
@click.option(
    "--stream",
    type=click.Choice([s.value for s in Stream]),
    default=Stream.STDOUT.value,
    show_default=True,
    help="Which stream.",
)
@click.option("--offset", type=int, default=0, help="Offset of the first byte; negative counts from the end.")
@click.option("--limit", type=click.IntRange(min=0), default=0, help="How many bytes; 0 for all.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON: `text` if the bytes are UTF-8, else `data` (base64)."
)
@click.pass_obj
def output(target: Target, evaluation_id: str, stream: str, offset: int, limit: int, as_json: bool) -> None:
    """Write the exact bytes that a program wrote; while it runs, those stored so far.

    \b
    crucible output 01900000-0000-7000-8000-000000000000 > stdout.bin
    crucible output 01900000-0000-7000-8000-000000000000 --stream stderr --offset -1000
    """

    async def main(client: Client) -> int:
        if as_json:
            content = await client.read_output(evaluation_id, stream, offset=offset, limit=limit)
            click.echo(json.dumps({"evaluationId": evaluation_id, "stream": stream, **_content(content)}))
            return 0
        async with aclosing(client.output_chunks(evaluation_id, stream, offset=offset, limit=limit)) as chunks:
            async for chunk in chunks:
                sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        return 0

    run_session(target, main)


def _content(content: bytes) -> dict[str, str | int]:
    try:
        return {"sizeBytes": len(content), "text": content.decode()}
    except UnicodeDecodeError:
        return {"sizeBytes": len(content), "data": base64.b64encode(content).decode()}
