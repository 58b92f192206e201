"""The ledger: evaluations, their requests, history and results."""

from alembic import op

revision = "0001"
down_revision = None

_DDL = """
CREATE TABLE evaluations (
    id uuid PRIMARY KEY,
    tenant text NOT NULL,
    pool text NOT NULL,
    runtime text NOT NULL,
    priority smallint NOT NULL,
    status smallint NOT NULL,
    status_reason smallint,
    cause smallint,
    generation integer NOT NULL,
    attempt integer NOT NULL,
    attempt_base integer NOT NULL,
    token uuid,
    run uuid,
    executor text,
    run_events integer NOT NULL,
    lost integer NOT NULL,
    max_attempts integer NOT NULL,
    lease_until timestamptz,
    not_before timestamptz NOT NULL,
    last_sequence integer NOT NULL,
    create_time timestamptz NOT NULL,
    queue_time timestamptz NOT NULL,
    start_time timestamptz,
    end_time timestamptz
-- Room for the versions that messages and heartbeats write: they stay on the page, and touch no index (HOT).
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
CREATE INDEX evaluations_by_time ON evaluations (tenant, create_time, id);
CREATE INDEX evaluations_given_up ON evaluations (tenant, status, create_time, id) WHERE status IN (5, 6);
CREATE INDEX evaluations_queued ON evaluations (pool, runtime, priority DESC, queue_time, id) WHERE status = 1;
CREATE INDEX evaluations_leased ON evaluations (pool) WHERE status IN (2, 3);

CREATE TABLE requests (
    evaluation uuid PRIMARY KEY,
    summary bytea NOT NULL,
    bulk bytea NOT NULL,
    program bytea,
    program_sha256 text,
    traceparent text NOT NULL,
    CHECK ((program IS NULL) <> (program_sha256 IS NULL))
);

CREATE TABLE labels (
    tenant text,
    name text,
    value text,
    create_time timestamptz,
    evaluation uuid,
    PRIMARY KEY (tenant, name, value, create_time, evaluation)
);

CREATE TABLE attempts (
    evaluation uuid,
    attempt integer,
    generation integer NOT NULL,
    run uuid NOT NULL,
    executor text,
    host text,
    begin_time timestamptz,
    end_time timestamptz,
    cause smallint,
    stdout_object text NOT NULL,
    stderr_object text NOT NULL,
    PRIMARY KEY (evaluation, attempt)
);

CREATE TABLE events (
    evaluation uuid,
    sequence integer,
    attempt integer NOT NULL,
    stream smallint,
    stream_offset bigint,
    event bytea NOT NULL,
    PRIMARY KEY (evaluation, sequence)
);

CREATE TABLE results (
    evaluation uuid,
    generation integer,
    attempt integer NOT NULL,
    run uuid NOT NULL,
    outcome smallint NOT NULL,
    summary bytea NOT NULL,
    bulk bytea NOT NULL,
    PRIMARY KEY (evaluation, generation)
);

CREATE TABLE idempotency (
    tenant text,
    request_id text,
    request_hash text NOT NULL,
    evaluation uuid NOT NULL,
    PRIMARY KEY (tenant, request_id)
);

CREATE TABLE runtimes (
    name text PRIMARY KEY,
    runtime bytea NOT NULL
);

CREATE TABLE executors (
    id text PRIMARY KEY,
    host text NOT NULL,
    pool text NOT NULL,
    slots integer NOT NULL,
    runtimes text[] NOT NULL,
    last_seen timestamptz NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE parked_messages (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    park_time timestamptz NOT NULL,
    subject text NOT NULL,
    message_id text NOT NULL,
    reason text NOT NULL,
    message bytea NOT NULL
);
"""


def upgrade() -> None:
    """Makes every table."""
    op.execute(_DDL)
