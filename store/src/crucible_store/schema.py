"""The tables, as SQLAlchemy sees them. The migrations make them; a test compares the two.

No foreign keys: the ledger alone writes, in one transaction each, and a key check would lock the hot row once more for
every event.
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, TIMESTAMP, UUID

SCHEMA_REVISION = "0002"
"""The newest migration. Written here too, so that a serving store need not load Alembic; a test compares."""

metadata = sa.MetaData()

_ID = UUID(as_uuid=False)
_TIME = TIMESTAMP(timezone=True)


def _column(
    name: str, kind: sa.types.TypeEngine[Any] | type[sa.types.TypeEngine[Any]], **options: bool
) -> sa.Column[Any]:
    return sa.Column(name, kind, **{"nullable": False, **options})  # pyright: ignore[reportArgumentType]  bools alone


evaluations = sa.Table(
    "evaluations",
    metadata,
    _column("id", _ID, primary_key=True),
    _column("tenant", sa.Text),
    _column("pool", sa.Text),
    _column("runtime", sa.Text),
    _column("priority", sa.SmallInteger),
    _column("status", sa.SmallInteger),
    _column("status_reason", sa.SmallInteger, nullable=True),
    _column("cause", sa.SmallInteger, nullable=True),
    _column("generation", sa.Integer),
    _column("attempt", sa.Integer),
    _column("attempt_base", sa.Integer),
    _column("token", _ID, nullable=True),
    _column("run", _ID, nullable=True),
    _column("executor", sa.Text, nullable=True),
    _column("run_events", sa.Integer),
    _column("lost", sa.Integer),
    _column("max_attempts", sa.Integer),
    _column("lease_until", _TIME, nullable=True),
    _column("not_before", _TIME),
    _column("last_sequence", sa.Integer),
    _column("create_time", _TIME),
    _column("queue_time", _TIME),
    _column("start_time", _TIME, nullable=True),
    _column("end_time", _TIME, nullable=True),
    # Each list index is led by the tenant. None holds a column that a message or a heartbeat changes.
    sa.Index("evaluations_by_time", "tenant", "create_time", "id"),
    sa.Index(
        "evaluations_given_up", "tenant", "status", "create_time", "id", postgresql_where=sa.text("status IN (5, 6)")
    ),
    sa.Index(
        "evaluations_queued",
        "pool",
        "runtime",
        sa.text("priority DESC"),
        "queue_time",
        "id",
        postgresql_where=sa.text("status = 1"),
    ),
    sa.Index("evaluations_leased", "pool", postgresql_where=sa.text("status IN (2, 3)")),
)
"""The hot row: see `domain.rows.Row`."""

requests = sa.Table(
    "requests",
    metadata,
    _column("evaluation", _ID, primary_key=True),
    # Serialized crucible.v1.Evaluation in two halves whose concatenation is the whole: what lists show, and the rest.
    _column("summary", BYTEA),
    _column("bulk", BYTEA),
    # Serialized Program, or where it is large the name of its object.
    _column("program", BYTEA, nullable=True),
    _column("program_sha256", sa.Text, nullable=True),
    _column("traceparent", sa.Text),
)
"""What was asked for; never rewritten."""

labels = sa.Table(
    "labels",
    metadata,
    _column("tenant", sa.Text, primary_key=True),
    _column("name", sa.Text, primary_key=True),
    _column("value", sa.Text, primary_key=True),
    _column("create_time", _TIME, primary_key=True),
    _column("evaluation", _ID, primary_key=True),
)
"""Labels once more, in the order in which lists by label go."""

attempts = sa.Table(
    "attempts",
    metadata,
    _column("evaluation", _ID, primary_key=True),
    _column("attempt", sa.Integer, primary_key=True),
    _column("generation", sa.Integer),
    _column("run", _ID),
    _column("executor", sa.Text, nullable=True),
    _column("host", sa.Text, nullable=True),
    _column("begin_time", _TIME, nullable=True),
    _column("end_time", _TIME, nullable=True),
    _column("cause", sa.SmallInteger, nullable=True),
    _column("stdout_object", sa.Text),
    _column("stderr_object", sa.Text),
)
"""Attempts that a run claimed."""

events = sa.Table(
    "events",
    metadata,
    _column("evaluation", _ID, primary_key=True),
    _column("sequence", sa.Integer, primary_key=True),
    _column("attempt", sa.Integer),
    # crucible.v1.OutputChunk.Stream and the place of the bytes in it; null for an event that is no output.
    _column("stream", sa.SmallInteger, nullable=True),
    _column("stream_offset", sa.BigInteger, nullable=True),
    _column("event", BYTEA),
)
"""History: serialized crucible.v1.Event."""

results = sa.Table(
    "results",
    metadata,
    _column("evaluation", _ID, primary_key=True),
    _column("generation", sa.Integer, primary_key=True),
    _column("attempt", sa.Integer),
    _column("run", _ID),
    _column("outcome", sa.SmallInteger),
    # Serialized crucible.v1.ExecutionResult in parts, as in `requests`: what lists show, the rest, and what is told of
    # the sandbox once it is gone.
    _column("summary", BYTEA),
    _column("bulk", BYTEA),
    _column("afterwards", BYTEA, nullable=True),
)
"""Verdicts: one of an evaluation and generation, ever. Only `afterwards` comes later, once."""

idempotency = sa.Table(
    "idempotency",
    metadata,
    _column("tenant", sa.Text, primary_key=True),
    _column("request_id", sa.Text, primary_key=True),
    _column("request_hash", sa.Text),
    _column("evaluation", _ID),
)
"""Request ids, kept as long as their evaluations."""

runtimes = sa.Table("runtimes", metadata, _column("name", sa.Text, primary_key=True), _column("runtime", BYTEA))
"""Serialized crucible.v1.Runtime, as `migrate --runtimes` found them."""

executors = sa.Table(
    "executors",
    metadata,
    _column("id", sa.Text, primary_key=True),
    _column("host", sa.Text),
    _column("pool", sa.Text),
    _column("slots", sa.Integer),
    _column("runtimes", ARRAY(sa.Text)),
    _column("last_seen", _TIME),
)
"""What executors announced last: the capacity of their pools."""

parked_messages = sa.Table(
    "parked_messages",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    _column("park_time", _TIME),
    _column("subject", sa.Text),
    _column("message_id", sa.Text),
    _column("reason", sa.Text),
    _column("message", BYTEA),
)
"""Messages of executors that could not be stored, for the operator."""
