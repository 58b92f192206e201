"""The command line of the store."""

import argparse
from pathlib import Path


def main() -> None:
    """Serves, or migrates."""
    parser = argparse.ArgumentParser(prog="python -m crucible_store", description="The store of Crucible.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("serve", help="serve (the default)")
    migrating = commands.add_parser("migrate", help="bring the database to this version's schema")
    migrating.add_argument("--runtimes", type=Path, metavar="DIR", help="load the runtimes of DIR/*/runtime.toml too")
    arguments = parser.parse_args()
    # Imported late: neither needs what the other does.
    if arguments.command == "migrate":
        from crucible_store import migrate

        migrate.run(arguments)
        return
    from crucible_store import app

    app.run()
