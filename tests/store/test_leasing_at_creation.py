"""An evaluation that may run at once is leased by the write that stores it, by the rules of every other lease."""

from __future__ import annotations

import asyncio
import threading

import sqlalchemy as sa

from crucible.v1 import evaluation_pb2
from crucible_store.domain.states import Status
from crucible_store.transaction import Transaction

from .conftest import Store
from .samples import LEASE_SECONDS, Run, an_executor, evaluation, heartbeat


async def announce(store: Store, slots: int) -> None:
    await store.ledger.heartbeat(heartbeat(an_executor(), slots=slots), seconds=LEASE_SECONDS)


async def test_what_may_run_at_once_is_leased_as_it_is_stored(store: Store) -> None:
    await announce(store, slots=1)
    first, second = evaluation(), evaluation()
    answer = await store.ledger.create_and_lease([first], seconds=LEASE_SECONDS)
    (leased,) = answer.jobs
    assert (leased.job.evaluation_id, leased.job.attempt) == (first.evaluation.id, 1)
    assert leased.job.program.files[0].data == b"print(1)"
    assert answer.looked
    found = await store.histories.get(first.evaluation.id)
    assert (found.status, found.attempt) == (Status.DISPATCHED, 1)
    page = await store.histories.page(first.evaluation.id, after=0, size=10)
    assert [event.WhichOneof("kind") for event in page.events] == ["queued", "dispatched"]
    run = Run(leased.job)
    await store.apply(run.started(), run.verdict(text="1\n"))
    assert (await store.histories.get(first.evaluation.id)).status == Status.COMPLETED

    # The slot is free again, then taken: the next waits, and the queue was looked at.
    assert [job.job.evaluation_id for job in (await store.ledger.create_and_lease([second], seconds=15)).jobs]
    third = await store.ledger.create_and_lease([evaluation()], seconds=15)
    assert (list(third.jobs), third.looked) == ([], True)


async def test_who_waited_longer_or_matters_more_goes_first(store: Store) -> None:
    older, urgent = evaluation(), evaluation(priority=evaluation_pb2.Evaluation.HIGH)
    await store.ledger.create([older])
    await store.ledger.create([urgent])
    await announce(store, slots=2)
    new = evaluation()
    answer = await store.ledger.create_and_lease([new], seconds=LEASE_SECONDS)
    assert [item.job.evaluation_id for item in answer.jobs] == [urgent.evaluation.id, older.evaluation.id]
    assert (await store.histories.get(new.evaluation.id)).status == Status.QUEUED


async def test_a_request_id_that_is_known_leases_nothing(store: Store) -> None:
    await store.ledger.create([evaluation(request_id="once")])
    await announce(store, slots=2)
    answer = await store.ledger.create_and_lease([evaluation(request_id="once")], seconds=LEASE_SECONDS)
    assert (list(answer.jobs), answer.looked) == ([], False)


async def test_while_another_takes_leases_it_is_left_to_the_next_look(store: Store) -> None:
    await announce(store, slots=2)
    taken, release = threading.Event(), threading.Event()

    def hold(transaction: Transaction) -> None:
        transaction.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended('crucible.lease.default', 0))"), {})
        taken.set()
        release.wait()

    holding = asyncio.create_task(store.database.write(hold), name="another lease")
    await asyncio.to_thread(taken.wait)
    answer = await store.ledger.create_and_lease([evaluation()], seconds=LEASE_SECONDS)
    assert (list(answer.jobs), answer.looked) == ([], False)
    release.set()
    await holding
    assert len((await store.ledger.lease(pool="default", limit=10, seconds=15)).jobs) == 1


async def test_many_at_once_never_take_more_than_there_is(store: Store) -> None:
    await announce(store, slots=3)
    answers = await asyncio.gather(
        *(store.ledger.create_and_lease([evaluation()], seconds=LEASE_SECONDS) for _ in range(12))
    )
    taken = sum(len(answer.jobs) for answer in answers)
    rest = (await store.ledger.lease(pool="default", limit=10, seconds=15)).jobs
    assert taken + len(rest) == 3
