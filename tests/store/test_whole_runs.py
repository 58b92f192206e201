"""A run that says everything at once, in the store that leased it: written without a look at its row, or not at all."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

import pytest

from crucible.internal.v1 import job_pb2
from crucible.v1 import evaluation_pb2
from crucible_store.domain.folding import Fate
from crucible_store.transaction import Transaction
from crucible_testkit import NatsServer

from .conftest import Store, open_store
from .samples import LEASE_SECONDS, Run, an_executor, evaluation, heartbeat

Status = evaluation_pb2.Evaluation


@pytest.fixture
async def other(store_database_url: str, nats_server: NatsServer, tmp_path: Path) -> AsyncGenerator[Store]:
    """Another store of the same platform: what it does, the first one does not know."""
    async with open_store(store_database_url, nats_server.url, tmp_path / "objects") as opened:
        yield opened


async def leased(store: Store) -> job_pb2.Job:
    """Created and leased in one, as for every evaluation that need not wait."""
    await store.ledger.heartbeat(heartbeat(an_executor()), seconds=LEASE_SECONDS)
    answer = await store.ledger.create_and_lease([evaluation()], seconds=LEASE_SECONDS)
    (job,) = (each.job for each in answer.jobs)
    return job


@pytest.fixture
def round_trips(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry for each, whether it commits."""
    made: list[bool] = []
    send = Transaction._send  # pyright: ignore[reportPrivateUsage]  what is counted

    def counting(self: Transaction, *, last: bool) -> None:
        made.append(last)
        send(self, last=last)

    monkeypatch.setattr(Transaction, "_send", counting)
    return made


async def test_it_takes_one_round_trip(store: Store, other: Store, round_trips: list[bool]) -> None:
    run, by_another = Run(await leased(store)), Run(await leased(store))
    round_trips.clear()
    assert await store.apply(run.started(), run.output("one\n"), run.verdict(text="one\n")) == [Fate.APPLIED] * 3
    assert round_trips == [True]
    round_trips.clear()
    assert await other.apply(by_another.started(), by_another.output("one\n"), by_another.verdict(text="one\n"))
    assert round_trips == [False, True]
    seen = await store.histories.get(run.job.evaluation_id)
    read = await store.histories.get(by_another.job.evaluation_id)
    assert (seen.status, seen.attempt, seen.cause) == (read.status, read.attempt, read.cause)
    assert seen.create_time.ToNanoseconds() <= seen.end_time.ToNanoseconds() <= read.end_time.ToNanoseconds()
    histories = [await store.histories.page(each.id, after=0, size=0) for each in (seen, read)]
    assert len({tuple(event.WhichOneof("kind") for event in page.events) for page in histories}) == 1
    assert [event.sequence for event in histories[0].events] == [1, 2, 3, 4, 5]
    assert histories[0].final
    assert await store.execute("SELECT count(*) FROM attempts WHERE end_time IS NOT NULL") == [(2,)]


async def test_a_heartbeat_is_no_change(store: Store, other: Store, round_trips: list[bool]) -> None:
    run = Run(await leased(store))
    await other.ledger.heartbeat(heartbeat(an_executor(), runs=(run,)), seconds=2 * LEASE_SECONDS)
    round_trips.clear()
    assert await store.apply(run.started(), run.verdict()) == [Fate.APPLIED] * 2
    assert round_trips == [True]
    assert (await store.histories.get(run.job.evaluation_id)).status == Status.COMPLETED


async def _claimed(other: Store, run: Run) -> None:
    await other.apply(Run(run.job).started())


async def _begun(other: Store, run: Run) -> None:
    await other.apply(run.delivery(0))


async def _ended(other: Store, run: Run) -> None:
    await other.apply(run.delivery(0), run.delivery(1))


async def _cancelled(other: Store, run: Run) -> None:
    await other.ledger.cancel(run.job.evaluation_id)


async def _lapsed(other: Store, run: Run) -> None:
    await other.lapse(run.job.evaluation_id)


async def _leased_again(other: Store, run: Run) -> None:
    await other.lapse(run.job.evaluation_id)
    await other.wake(run.job.evaluation_id)
    await other.lease()


@pytest.mark.parametrize(
    ("change", "fates", "status"),
    [
        (_claimed, [Fate.DROPPED, Fate.DROPPED], Status.RUNNING),
        (_begun, [Fate.DROPPED, Fate.APPLIED], Status.COMPLETED),
        (_ended, [Fate.DROPPED, Fate.DROPPED], Status.COMPLETED),
        (_cancelled, [Fate.DROPPED, Fate.DROPPED], Status.CANCELLED),
        (_lapsed, [Fate.DROPPED, Fate.DROPPED], Status.QUEUED),
        (_leased_again, [Fate.DROPPED, Fate.DROPPED], Status.DISPATCHED),
    ],
)
async def test_what_changed_meanwhile_is_found(
    store: Store,
    other: Store,
    change: Callable[[Store, Run], Awaitable[None]],
    fates: list[Fate],
    status: evaluation_pb2.Evaluation.Status.ValueType,
) -> None:
    run = Run(await leased(store))
    said = run.started(), run.verdict()
    await change(other, run)
    assert await store.apply(*said) == fates
    assert (await store.histories.get(run.job.evaluation_id)).status == status
    page = await store.histories.page(run.job.evaluation_id, after=0, size=0)
    assert [event.sequence for event in page.events] == list(range(1, page.last_sequence + 1))
    results = await store.execute("SELECT count(*) FROM results")
    assert results == [(int(status == Status.COMPLETED),)]


async def test_a_verdict_that_the_database_refuses_is_parked(store: Store) -> None:
    run = Run(await leased(store))
    assert await store.apply(run.started(), run.refused_verdict()) == [Fate.APPLIED] * 2
    assert (await store.histories.get(run.job.evaluation_id)).status == Status.QUEUED
    assert await store.execute("SELECT count(*) FROM parked_messages") == [(1,)]
