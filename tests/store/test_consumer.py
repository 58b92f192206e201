"""The messages of runs over a real JetStream: gaps, doubles, poison, and a database that goes away."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import nats.errors
import pytest

from crucible.v1 import evaluation_pb2
from crucible_chassis.messaging import Messaging
from crucible_chassis.telemetry import start_telemetry
from crucible_contracts import subjects
from crucible_store import attempts_consumer
from crucible_store.attempts_consumer import AttemptsConsumer, Book
from crucible_store.attempts_stream import ensure_stream
from crucible_store.ledger.attempts import Applied, Delivery
from crucible_testkit import NatsServer, PostgresServer

from .conftest import Store, open_store
from .samples import Run, evaluation

MAX_BYTES = 64 << 20
COMPLETED = evaluation_pb2.Evaluation.COMPLETED


@asynccontextmanager
async def consuming(store: Store, book: Book | None = None) -> AsyncGenerator[AttemptsConsumer]:
    """A consumer at work; stopped as a process stops it."""
    consumer = AttemptsConsumer(
        store.messaging, book or store.ledger, start_telemetry("store-test").tracer, stream_max_bytes=MAX_BYTES
    )
    tasks = [asyncio.create_task(consumer.run()), asyncio.create_task(consumer.keep())]
    try:
        await eventually(lambda: _true(consumer.ready))
        yield consumer
        assert not tasks[0].done()
    finally:
        await consumer.stop()
        tasks[1].cancel()
        await asyncio.wait(tasks)
        tasks[0].result()


async def _true(value: bool) -> bool:
    return value


async def eventually(condition: Callable[[], Awaitable[bool]], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110  what is waited for happens in a server
            await asyncio.sleep(0.02)


async def publish(messaging: Messaging, *deliveries: Delivery) -> None:
    for delivery in deliveries:
        message = delivery.message
        headers = {subjects.LEASE_HEADER: subjects.lease(message.attempt, message.token)} if message else {}
        while True:
            try:
                await messaging.jetstream_publish(
                    delivery.subject, delivery.data, message_id=delivery.message_id, headers=headers
                )
            except nats.errors.TimeoutError:  # a broker that has just begun, as an executor's outbox would have it
                continue
            break


class Commits:
    """The ledger, and how many messages each commit had."""

    def __init__(self, ledger: Book) -> None:
        self.sizes: list[int] = []
        self._ledger = ledger

    async def apply(self, deliveries: Sequence[Delivery]) -> list[Applied]:
        """See `Book`."""
        self.sizes.append(len(deliveries))
        return await self._ledger.apply(deliveries)

    async def announce(self, applied: Sequence[Applied]) -> None:
        """See `Book`."""
        await self._ledger.announce(applied)


async def left(messaging: Messaging) -> int:
    return (await messaging.js.stream_info(subjects.ATTEMPTS_STREAM)).state.messages


async def queued_run(store: Store) -> Run:
    await store.ledger.create([evaluation()])
    return await store.run()


async def completed(store: Store, run: Run) -> bool:
    found = await store.histories.get(run.job.evaluation_id)
    return found.status == COMPLETED


@pytest.fixture
async def own_store(store_database_url: str, fresh_nats: NatsServer, tmp_path: Path) -> AsyncGenerator[Store]:
    """On a NATS of its own: the stream has one name."""
    async with open_store(store_database_url, fresh_nats.url, tmp_path / "objects") as opened:
        yield opened


async def test_the_stream_is_made_as_the_protocol_says(own_store: Store) -> None:
    for _ in range(2):
        await ensure_stream(own_store.messaging, max_bytes=MAX_BYTES)
    await ensure_stream(own_store.messaging, max_bytes=2 * MAX_BYTES)
    stream = (await own_store.messaging.js.stream_info(subjects.ATTEMPTS_STREAM)).config
    consumer = (await own_store.messaging.js.consumer_info(subjects.ATTEMPTS_STREAM, subjects.ATTEMPTS_CONSUMER)).config
    assert (stream.retention, stream.discard, stream.max_age, stream.max_bytes) == (
        "workqueue", "new", 0, 2 * MAX_BYTES
    )  # fmt: skip
    assert (consumer.max_deliver, consumer.max_ack_pending, consumer.ack_wait) == (-1, -1, 2)


async def test_a_run_becomes_a_result_and_leaves_nothing_behind(own_store: Store) -> None:
    run = await queued_run(own_store)
    async with consuming(own_store):
        waiting = asyncio.create_task(own_store.histories.wait(run.job.evaluation_id, seconds=30))
        await publish(own_store.messaging, run.started(), run.output(), run.usage(), run.verdict(text="line\n"))
        answer = await waiting
        assert answer.status == COMPLETED
        assert answer.result.stdout.text == "line\n"
        await eventually(lambda: _is_empty(own_store))


async def _is_empty(store: Store) -> bool:
    return await left(store.messaging) == 0


@pytest.mark.parametrize("seconds", [0.2, 2.5])
async def test_a_gap_is_held_and_then_filled(own_store: Store, seconds: float) -> None:
    """Shorter than a message is held in memory, and longer, when it is handed back with a delay."""
    run, other = await queued_run(own_store), await queued_run(own_store)
    messages = [run.started(), run.output(), run.verdict()]
    async with consuming(own_store):
        await publish(own_store.messaging, messages[2], messages[1])
        await publish(own_store.messaging, other.started(), other.verdict())
        await eventually(lambda: completed(own_store, other))
        await asyncio.sleep(seconds)
        assert not await completed(own_store, run)
        await publish(own_store.messaging, messages[0])
        await eventually(lambda: completed(own_store, run))
        await eventually(lambda: _is_empty(own_store))


async def test_what_comes_twice_counts_once(own_store: Store) -> None:
    run = await queued_run(own_store)
    deliveries = [run.started(), run.output(), run.verdict()]
    async with consuming(own_store):
        for round_ in range(3):
            await publish(own_store.messaging, *(run.delivery(number, round_) for number in range(len(deliveries))))
        await eventually(lambda: completed(own_store, run))
        await eventually(lambda: _is_empty(own_store))
    page = await own_store.histories.page(run.job.evaluation_id, after=0, size=0)
    assert [event.WhichOneof("kind") for event in page.events] == [
        "queued", "dispatched", "started", "output", "finished"
    ]  # fmt: skip


async def test_poison_is_set_aside_and_the_rest_goes_on(own_store: Store) -> None:
    bad, worse, unread, never_read, good = [await queued_run(own_store) for _ in range(5)]
    deliveries = [bad.refused(), bad.unknown(), bad.verdict(), worse.started(), worse.refused_verdict()]
    deliveries += [unread.started(), unread.garbled(), never_read.garbled()]
    deliveries += [good.started(), good.output(), good.verdict()]
    deliveries.append(Delivery("crucible.attempts.nobody", "x.0", b"\xff", "", None))
    async with consuming(own_store):
        await publish(own_store.messaging, *deliveries)
        await eventually(lambda: completed(own_store, good))
        await eventually(lambda: completed(own_store, bad))
        await eventually(lambda: _is_empty(own_store))
    (parked,) = await own_store.execute("SELECT count(*) AS n FROM parked_messages")
    assert parked.n == 6
    kinds = [
        event.WhichOneof("kind")
        for event in (await own_store.histories.page(bad.job.evaluation_id, after=0, size=0)).events
    ]
    assert kinds == ["queued", "dispatched", "message_parked", "message_parked", "finished"]
    for judged in (worse, unread, never_read):
        found = await own_store.histories.get(judged.job.evaluation_id)
        assert found.status == evaluation_pb2.Evaluation.QUEUED
        page = await own_store.histories.page(judged.job.evaluation_id, after=2, size=0)
        kinds = [event.WhichOneof("kind") for event in page.events]
        assert kinds == (["requeued"] if judged is never_read else ["started", "requeued"])


async def test_a_database_that_was_away_gets_everything(fresh_nats: NatsServer, tmp_path: Path) -> None:
    with PostgresServer() as postgres, postgres.store_database() as url:
        async with open_store(url, fresh_nats.url, tmp_path / "objects") as store:
            runs = [await queued_run(store) for _ in range(5)]
            async with consuming(store):
                postgres.kill()
                for run in runs:
                    await publish(store.messaging, run.started(), run.output(), run.verdict())
                await asyncio.sleep(2.5)  # longer than the server waits for an acknowledgement
                info = await store.messaging.js.consumer_info(subjects.ATTEMPTS_STREAM, subjects.ATTEMPTS_CONSUMER)
                assert info.num_redelivered == 0, "what is in hand is neither handed back nor forgotten"
                postgres.start()
                for run in runs:
                    await eventually(lambda run=run: completed(store, run))


async def test_a_store_that_stops_hands_back_what_it_has(fresh_nats: NatsServer, tmp_path: Path) -> None:
    with PostgresServer() as postgres, postgres.store_database() as url:
        async with open_store(url, fresh_nats.url, tmp_path / "objects") as store:
            run = await queued_run(store)
            async with consuming(store):
                postgres.kill()
                await publish(store.messaging, run.started(), run.verdict())
                await asyncio.sleep(0.5)
            postgres.start()
            async with consuming(store):
                await eventually(lambda: completed(store, run))


async def test_a_store_stops_though_its_stream_cannot_be_made(own_store: Store, fresh_nats: NatsServer) -> None:
    await asyncio.to_thread(fresh_nats.kill)
    await eventually(lambda: _true(not own_store.messaging.is_connected))
    consumer = AttemptsConsumer(
        own_store.messaging, own_store.ledger, start_telemetry("store-test").tracer, stream_max_bytes=MAX_BYTES
    )
    running = asyncio.create_task(consumer.run(), name="consumer")
    await asyncio.sleep(0.2)
    assert not consumer.ready
    async with asyncio.timeout(20):
        await consumer.stop()
        await running


async def test_a_broker_that_was_restarted_is_pulled_from_again(own_store: Store, fresh_nats: NatsServer) -> None:
    run = await queued_run(own_store)
    async with consuming(own_store):
        await asyncio.to_thread(fresh_nats.kill)
        fresh_nats.start()
        await eventually(lambda: _true(own_store.messaging.is_connected))
        await publish(own_store.messaging, run.started(), run.verdict())
        await eventually(lambda: completed(own_store, run))


async def test_a_short_run_is_one_commit(own_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts_consumer, "GATHER_SECONDS", 20.0)
    run = await queued_run(own_store)
    commits = Commits(own_store.ledger)
    async with consuming(own_store, commits):
        await publish(own_store.messaging, run.started(), run.output(), run.verdict())
        await eventually(lambda: _is_empty(own_store), seconds=15)
    assert commits.sizes == [3]


async def test_a_run_that_goes_on_is_committed_without_its_end(
    own_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts_consumer, "GATHER_SECONDS", 0.2)
    run = await queued_run(own_store)
    commits = Commits(own_store.ledger)
    async with consuming(own_store, commits):
        await publish(own_store.messaging, run.started())
        await eventually(lambda: _true(commits.sizes == [1]))
        monkeypatch.setattr(attempts_consumer, "GATHER_SECONDS", 20.0)
        await publish(own_store.messaging, run.output())  # it has begun before, and waits for nothing
        await eventually(lambda: _is_empty(own_store), seconds=15)
    assert commits.sizes == [1, 1]
