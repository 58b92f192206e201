"""What is told of a sandbox after its verdict."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Adds an empty column: no row is rewritten."""
    op.execute("ALTER TABLE results ADD COLUMN afterwards bytea")
