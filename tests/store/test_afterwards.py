"""What is told of a sandbox after its verdict joins the result, once, and changes nothing else."""

from __future__ import annotations

from crucible.v1 import evaluation_pb2
from crucible.v1.containment_pb2 import Containment
from crucible_store import reading
from crucible_store.domain.folding import Fate

from .conftest import Store
from .samples import evaluation

GONE, KEPT = Containment.PROCESSES_GONE, Containment.FOLDER_GONE


async def make(store: Store) -> str:
    new = evaluation()
    await store.ledger.create([new])
    return new.evaluation.id


async def look(store: Store, which: str) -> evaluation_pb2.Evaluation:
    found = await store.database.read(lambda connection: reading.get(connection, which))
    assert found is not None
    return found


async def test_it_joins_the_result_of_its_run(store: Store) -> None:
    which = await make(store)
    run = await store.run()
    # It overtook the verdict: it waits, in whatever order the two come.
    assert await store.apply(run.removed(GONE), run.started()) == [Fate.WAITING, Fate.APPLIED]
    assert await store.apply(run.removed(GONE), run.verdict()) == [Fate.APPLIED, Fate.APPLIED]
    first = await look(store, which)
    assert list(first.result.containment.before.held) == [Containment.SENTRY_USER]
    assert list(first.result.containment.after.held) == [GONE]
    # What is told again, or of another run, changes nothing.
    assert await store.apply(run.removed(KEPT)) == [Fate.APPLIED]
    assert await store.apply(type(run)(run.job).removed(KEPT)) == [Fate.APPLIED]
    assert await look(store, which) == first


async def test_without_it_the_result_says_nothing_of_afterwards(store: Store) -> None:
    which = await make(store)
    run = await store.run()
    await store.apply(run.started(), run.verdict())
    containment = (await look(store, which)).result.containment
    assert containment.HasField("before")
    assert not containment.HasField("after")


async def test_it_is_dropped_where_there_is_no_verdict(store: Store) -> None:
    which = await make(store)
    run = await store.run()
    await store.apply(run.started(), run.fault())
    assert await store.apply(run.removed(GONE)) == [Fate.DROPPED]
    await store.wake(which)
    again = await store.run()
    assert await store.apply(again.started(), run.removed(GONE)) == [Fate.APPLIED, Fate.DROPPED]
    await store.ledger.cancel(which)
    assert await store.apply(again.removed(GONE)) == [Fate.DROPPED]
