"""What the store counts, what it forgets, and what it keeps."""

from prometheus_client import REGISTRY

from crucible_contracts.limits import LEASE_SECONDS
from crucible_store import housekeeping

from .conftest import Store
from .samples import an_executor, evaluation, heartbeat


async def test_what_is_of_long_ago_is_forgotten(store: Store) -> None:
    for _ in range(2):
        await store.ledger.heartbeat(heartbeat(an_executor()), seconds=LEASE_SECONDS)
    await store.execute(
        "UPDATE executors SET last_seen = now() - interval '2 hours' WHERE id = (SELECT min(id) FROM executors)"
    )
    await store.execute(
        "INSERT INTO parked_messages (park_time, subject, message_id, reason, message)"
        " SELECT now() - make_interval(days => age), 'crucible.attempts.x', 'x.1', 'for the test', '' "
        "FROM unnest(ARRAY[0, 29, 31, 400]) AS age"
    )
    await housekeeping.forget(store.database, parked_days=30)
    (counts,) = await store.execute(
        "SELECT (SELECT count(*) FROM executors) AS executors, (SELECT count(*) FROM parked_messages) AS parked,"
        " (SELECT min(park_time) > now() - interval '30 days' FROM parked_messages) AS young"
    )
    assert tuple(counts) == (1, 2, True)


async def test_a_lease_that_nobody_judges_is_counted_as_stray(store: Store) -> None:
    await store.ledger.create([evaluation() for _ in range(4)])
    leased = await store.lease(limit=3)
    await store.execute(
        "UPDATE evaluations SET lease_until = now() - interval '2 minutes' WHERE id = :id", id=leased[0].evaluation_id
    )
    await housekeeping.measure(store.database)
    counted = {
        standing: REGISTRY.get_sample_value("crucible_store_evaluations", {"standing": standing})
        for standing in ("queued", "leased", "stray")
    }
    assert counted == {"queued": 1, "leased": 3, "stray": 1}
