"""Subjects and streams on NATS.

| subject | transport | who publishes | who receives |
|---|---|---|---|
| `crucible.jobs.<pool>` | stream JOBS | scheduler | executors of the pool |
| `crucible.attempts.<evaluation>` | stream ATTEMPTS | executors | stores |
| `crucible.events.<tenant>.<evaluation>` | core | stores | watchers |
| `crucible.queue.<pool>` | core | stores | schedulers: something waits, or a slot became free |
| `crucible.heartbeat` | request, queue group `schedulers` | executors, reapers | any scheduler |
| `crucible.executors.<executor>.nudge` | core | schedulers | that executor |
"""

JOBS_STREAM = "CRUCIBLE_JOBS"
JOBS_SUBJECTS = "crucible.jobs.*"

ATTEMPTS_STREAM = "CRUCIBLE_ATTEMPTS"
ATTEMPTS_SUBJECTS = "crucible.attempts.*"
ATTEMPTS_CONSUMER = "store"

HEARTBEAT = "crucible.heartbeat"
HEARTBEAT_QUEUE_GROUP = "schedulers"

MAX_ATTEMPT_DIGITS = 10
LEASE_HEADER = "Crucible-Lease"
"""On every message of a run, beside `Nats-Msg-Id`: what `lease` gives, so that one that cannot be read still counts."""


def jobs(pool: str) -> str:
    """Jobs of a pool."""
    return f"crucible.jobs.{pool}"


def jobs_consumer(pool: str) -> str:
    """Name of the durable consumer that the executors of a pool share."""
    return f"executors-{pool}"


def attempts(evaluation_id: str) -> str:
    """Messages of an evaluation's runs."""
    return f"crucible.attempts.{evaluation_id}"


def lease(attempt: int, token: str) -> str:
    """What `LEASE_HEADER` says of a run: `<attempt>.<token>`."""
    return f"{attempt}.{token}"


def read_lease(header: str) -> tuple[int, str] | None:
    """The attempt and the token in what `LEASE_HEADER` says; None where it names none."""
    attempt, _, token = header.partition(".")
    if not (attempt.isascii() and attempt.isdigit() and len(attempt) < MAX_ATTEMPT_DIGITS and token):
        return None
    return int(attempt), token


def events(tenant: str, evaluation_id: str) -> str:
    """Committed events of an evaluation, each a serialized `crucible.v1.Event`."""
    return f"crucible.events.{tenant}.{evaluation_id}"


def queue(pool: str) -> str:
    """Wakes the dispatch of a pool; the body is empty."""
    return f"crucible.queue.{pool}"


def nudge(executor_id: str) -> str:
    """A `Nudge` for one executor."""
    return f"crucible.executors.{executor_id}.nudge"
