"""Reads of evaluations: one, many, and what their pools can take. Nothing here writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import BYTEA
from sqlalchemy.ext.asyncio import AsyncConnection

from crucible.v1 import evaluation_pb2
from crucible_contracts.limits import LEASE_SECONDS
from crucible_store import convert
from crucible_store.convert import Columns, PoolState
from crucible_store.domain.states import LEASED, Status
from crucible_store.schema import evaluations, requests, results

FULL = sa.select(
    evaluations,
    requests.c.summary,
    requests.c.bulk,
    results.c.summary.label("result_summary"),
    results.c.bulk.concat(sa.func.coalesce(results.c.afterwards, sa.literal(b"", BYTEA))).label("result_bulk"),
    sa.func.clock_timestamp().label("now"),
).select_from(
    evaluations.join(requests, requests.c.evaluation == evaluations.c.id).outerjoin(
        results,
        sa.and_(
            results.c.evaluation == evaluations.c.id,
            results.c.generation == evaluations.c.generation,
            evaluations.c.status == int(Status.COMPLETED),
        ),
    )
)
"""Everything of evaluations, for `convert.evaluation`."""

_BY_ID = FULL.where(evaluations.c.id == sa.bindparam("id"))
_BY_IDS = FULL.where(evaluations.c.id == sa.any_(sa.bindparam("ids", type_=sa.ARRAY(evaluations.c.id.type))))

LEASED_SQL = ", ".join(str(int(status)) for status in sorted(LEASED))
"""The states that hold a lease, as literals: a parameter would hide the partial index from the planner."""

LIVE_EXECUTORS = f"""
SELECT pool, slots, runtimes FROM executors
WHERE slots > 0 AND last_seen > clock_timestamp() - interval '{LEASE_SECONDS} s'
"""  # noqa: S608  a constant
"""Executors that can take something; one that drains announces no slot."""

_POOLS = sa.text(f"""
WITH live AS MATERIALIZED ({LIVE_EXECUTORS})
SELECT asked.name,
    (SELECT coalesce(sum(slots), 0) FROM live WHERE pool = asked.name) AS slots,
    ARRAY(SELECT DISTINCT unnest(runtimes) FROM live WHERE pool = asked.name) AS runtimes,
    (SELECT count(*) FROM evaluations
     WHERE pool = asked.name AND status IN ({LEASED_SQL}) AND lease_until > clock_timestamp()) AS leases
FROM unnest(CAST(:pools AS text[])) AS asked(name)
""")  # noqa: S608  constants


async def get(connection: AsyncConnection, evaluation: str) -> evaluation_pb2.Evaluation | None:
    """One evaluation whole."""
    row = await whole(connection, evaluation)
    return None if row is None else (await present(connection, [row]))[0]


async def whole(connection: AsyncConnection, evaluation: str) -> Mapping[str, Any] | None:
    """The row of FULL of one evaluation."""
    row = (await connection.execute(_BY_ID, {"id": evaluation})).mappings().one_or_none()
    return None if row is None else dict(row)


async def get_many(connection: AsyncConnection, ids: Sequence[str]) -> dict[str, evaluation_pb2.Evaluation]:
    """Those that exist, whole."""
    rows = (await connection.execute(_BY_IDS, {"ids": list(ids)})).mappings().all()
    return {proto.id: proto for proto in await present(connection, rows)}


async def present(connection: AsyncConnection, rows: Sequence[Columns]) -> list[evaluation_pb2.Evaluation]:
    """Rows of FULL as callers see them."""
    waiting = {row["pool"] for row in rows if row["status"] == Status.QUEUED and row["not_before"] <= row["now"]}
    pools = await pool_states(connection, waiting) if waiting else {}
    return [convert.evaluation(row, now=row["now"], pool=pools.get(row["pool"])) for row in rows]


async def pool_states(connection: AsyncConnection, pools: Iterable[str]) -> dict[str, PoolState]:
    """What pools can take now."""
    rows = (await connection.execute(_POOLS, {"pools": sorted(pools)})).mappings().all()
    return {row["name"]: PoolState(frozenset(row["runtimes"]), int(row["slots"]) - row["leases"]) for row in rows}
