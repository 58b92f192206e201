"""Alembic's entry: uses the connection it is handed, which holds the migration lock."""

from alembic import context
from sqlalchemy import Connection

from crucible_store.schema import metadata

connection: Connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
