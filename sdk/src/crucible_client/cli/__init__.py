"""The `crucible` command. Each subcommand's module is loaded when it is called, so that `--help` costs nothing."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

import click

from crucible_client.cli.exit_codes import INTERRUPTED
from crucible_client.cli.target import Target

PLUGIN_GROUP = "crucible.commands"
"""Entry points that add subcommands: name -> a click.Command."""

OWN = {
    "run": "Run a program: streams its output, exits with its exit code.",
    "batch": "Run thousands of programs from a JSONL file; run it again to resume.",
    "get": "Show one evaluation.",
    "list": "List evaluations, newest first.",
    "watch": "Follow the events of an evaluation.",
    "output": "Write the exact bytes a program wrote.",
    "cancel": "Cancel an evaluation.",
    "requeue": "Put a FAILED evaluation back into the queue.",
    "runtimes": "List the runtimes that programs can use.",
}
_MODULES = {"get": "evaluations", "list": "evaluations", "cancel": "evaluations", "requeue": "evaluations"}
_FUNCTIONS = {"list": "list_"}

LOCAL = {
    "up": "Start the whole stack on this machine.",
    "down": "Stop the stack.",
    "status": "Show its processes, addresses and logs.",
    "doctor": "Check that this machine can run the stack.",
    "demo": "Start the stack and run one program in gVisor, end to end.",
}
"""Commands of the package crucible-local."""


class Commands(click.Group):
    """Our subcommands and those that other installed packages add."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, ours first."""
        return [*OWN, *sorted(_plugins())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Loads the subcommand."""
        if cmd_name in OWN:
            # gRPC's own lines about sockets are not for the person who runs a program.
            os.environ.setdefault("GRPC_VERBOSITY", "NONE")
            module = import_module(f"crucible_client.cli.{_MODULES.get(cmd_name, cmd_name)}")
            command = getattr(module, _FUNCTIONS.get(cmd_name, cmd_name))
            command.help = command.help or OWN[cmd_name]
            return command
        plugin = _plugins().get(cmd_name)
        if plugin is not None:
            return plugin.load()
        if cmd_name in LOCAL:
            raise click.UsageError(
                f"`crucible {cmd_name}` belongs to the local stack: install it with `pip install crucible-local`."
            )
        return None

    def invoke(self, ctx: click.Context) -> object:
        """Runs the subcommand; Ctrl-C before it listens to signals itself ends it quietly, with Ctrl-C's own code."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, click.Abort):
            ctx.exit(INTERRUPTED)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in --help, without loading any of them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(OWN.items()))
        plugins = sorted(_plugins())
        if plugins:
            with formatter.section("Commands of the local stack"):
                formatter.write_dl([(name, LOCAL.get(name, "")) for name in plugins])


def _plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=PLUGIN_GROUP) if point.name not in OWN}


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--scheduler", metavar="ADDRESS", help="gRPC address of the scheduler (CRUCIBLE_SCHEDULER_URL).")
@click.option("--store", metavar="ADDRESS", help="gRPC address of the store (CRUCIBLE_STORE_URL).")
@click.version_option(package_name="crucible-client", prog_name="crucible")
@click.pass_context
def cli(ctx: click.Context, scheduler: str | None, store: str | None) -> None:
    """Run untrusted programs in sandboxes and get a verdict you can trust.

    \b
    crucible run hello.py
    echo 'print(1)' | crucible run --runtime python -
    """
    ctx.obj = Target(scheduler=scheduler, store=store)


def main() -> None:
    """The entry point."""
    cli(prog_name="crucible")
