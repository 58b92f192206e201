"""Waits for the end of evaluations, on the real database and NATS."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from crucible.v1 import evaluation_pb2
from crucible_chassis.errors import ServiceError
from crucible_store.database import DatabaseAwayError
from crucible_testkit import NatsServer

from .conftest import Store, open_store
from .samples import Run, evaluation, new_id
from .test_reads import finish, make

Status = evaluation_pb2.Evaluation


async def test_a_wait_ends_with_the_evaluation_or_its_time(store: Store) -> None:
    which = await make(store)
    assert (await store.histories.wait(which, seconds=0)).status == Status.QUEUED
    assert (await store.histories.wait(which, seconds=0.1)).status == Status.QUEUED
    waiting = [asyncio.create_task(store.histories.wait(which, seconds=60)) for _ in range(3)]
    await asyncio.sleep(0.1)
    await finish(store)
    for answer in await asyncio.wait_for(asyncio.gather(*waiting), 30):
        assert answer.status == Status.COMPLETED
    with pytest.raises(ServiceError, match="EVALUATION_NOT_FOUND"):
        await store.histories.wait(new_id(), seconds=1)


async def _give_verdict(store: Store, run: Run) -> None:
    await store.apply(run.output("one\n"), run.verdict(text="one\n"))


async def _cancel(store: Store, run: Run) -> None:
    await store.ledger.cancel(run.job.evaluation_id)


async def _lose(store: Store, run: Run) -> None:
    await store.apply(run.fault())


@pytest.mark.parametrize("end", [_give_verdict, _cancel, _lose])
async def test_a_wait_gives_what_a_read_gives(
    store: Store,
    store_database_url: str,
    nats_server: NatsServer,
    tmp_path: Path,
    end: Callable[[Store, Run], Awaitable[None]],
) -> None:
    """Whenever it began, in the store that commits the end or in another."""
    which = await make(store, max_attempts=2, labels={"team": "red"})
    async with open_store(store_database_url, nats_server.url, tmp_path / "objects") as other:
        waits: list[asyncio.Task[evaluation_pb2.Evaluation]] = []

        async def wait() -> None:
            both = (each.histories.wait(which, seconds=60) for each in (store, other))
            waits.extend(asyncio.create_task(each, name="wait") for each in both)
            await asyncio.sleep(0.2)

        await wait()
        lost = await store.run()
        await wait()
        await store.apply(lost.started(), lost.fault())
        await wait()
        await store.wake(which)
        run = await store.run()
        await store.apply(run.started())
        await wait()
        await end(store, run)
        answers = await asyncio.wait_for(asyncio.gather(*waits), 30)
    assert len(answers) == 8
    read = await store.histories.get(which)
    assert read.status in (Status.COMPLETED, Status.CANCELLED, Status.FAILED)
    assert answers == [read] * len(answers)


async def test_an_end_that_is_known_is_not_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    which = await make(store)
    run = await store.run()
    await store.apply(run.started())
    waiting = asyncio.create_task(store.histories.wait(which, seconds=60))
    await asyncio.sleep(0.2)

    async def away(_work: object) -> None:
        raise DatabaseAwayError

    with monkeypatch.context() as patched:
        patched.setattr(store.database, "read", away)
        await store.apply(run.verdict(text="one\n"))
        answer = await asyncio.wait_for(waiting, 30)
    assert answer == await store.histories.get(which)


async def test_many_wait_at_once(store: Store) -> None:
    # Far more than there are connections: nobody holds one while waiting.
    made = await store.ledger.create([evaluation() for _ in range(512)])
    waits = [asyncio.create_task(store.histories.wait(each.id, seconds=1.5), name=each.id) for each in made]
    await store.ledger.cancel(made[-1].id)
    async with asyncio.timeout(60):
        answers = await asyncio.gather(*waits)
    assert [answer.id for answer in answers] == [each.id for each in made]
    assert {answer.status for answer in answers[:-1]} == {Status.QUEUED}
    assert answers[-1].status == Status.CANCELLED
