"""Rule 9: leases that lapsed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa

from crucible.internal.v1 import ledger_service_pb2
from crucible_store import convert
from crucible_store.domain.judging import judge
from crucible_store.domain.states import Cause, Status
from crucible_store.ledger.hot import Changes, arrays, row_of, unnest, write
from crucible_store.reading import LEASED_SQL
from crucible_store.transaction import Transaction

_LAPSED = f"status IN ({LEASED_SQL}) AND lease_until < clock_timestamp()"

_LIST = sa.text(
    f"SELECT id, attempt, token FROM evaluations WHERE {_LAPSED} ORDER BY lease_until LIMIT :limit"  # noqa: S608
)

_LEASE = {"id": "uuid", "attempt": "integer", "token": "uuid"}

# The lock tests the condition on the newest version of each row, and nothing can change what is locked: the judgement
# between this and the write is of that very lapse. A row somebody else holds locked is about to be extended or ended.
_TAKE = sa.text(f"""
WITH seen AS MATERIALIZED (
    SELECT * FROM {unnest("seen", _LEASE)}
)
SELECT e.*, clock_timestamp() AS now FROM evaluations e JOIN seen USING (id)
WHERE e.attempt = seen.attempt AND e.token = seen.token AND {_LAPSED}
ORDER BY id FOR NO KEY UPDATE OF e SKIP LOCKED
""")  # noqa: S608  constants


@dataclass(slots=True)
class Reaped:
    """What was judged."""

    requeued: int = 0
    failed: int = 0
    changes: Changes = field(default_factory=Changes)


def list_lapsed(transaction: Transaction, *, limit: int) -> list[ledger_service_pb2.LapsedLease]:
    """Leases that have lapsed, oldest first."""
    rows = transaction.later(_LIST, {"limit": limit})
    transaction.commit()
    return [
        ledger_service_pb2.LapsedLease(evaluation_id=row["id"], attempt=row["attempt"], token=row["token"])
        for row in rows.all()
    ]


def judge_lapsed(
    transaction: Transaction, leases: Sequence[ledger_service_pb2.LapsedLease], *, jitter: Callable[[], float]
) -> Reaped:
    """Judges those of the leases that are lapsed still."""
    # Each once: a lease that is named twice has lapsed once.
    seen = list(
        {
            (lease.evaluation_id, lease.attempt, lease.token)
            for lease in leases
            if convert.is_uuid(lease.evaluation_id) and convert.is_uuid(lease.token)
        }
    )
    reaped = Reaped()
    for columns in transaction.execute(_TAKE, arrays("seen", _LEASE, seen)).all():
        row = row_of(columns)
        entry = judge(row, cause=Cause.INFRASTRUCTURE, now=columns["now"], jitter=jitter(), keeps_run=True)
        if row.status is Status.FAILED:
            reaped.failed += 1
        else:
            reaped.requeued += 1
        reaped.changes.rows.append(row)
        reaped.changes.events.append(convert.event(row.id, row.tenant, entry))
        reaped.changes.pools.add(row.pool)
    write(transaction, reaped.changes)
    return reaped
