"""Reads, waits, watches and outputs on the real database and NATS."""

import asyncio
import hashlib
from pathlib import Path

import pytest
import sqlalchemy as sa

from crucible.v1 import evaluation_pb2
from crucible_chassis.errors import ServiceError
from crucible_contracts import objects
from crucible_store import histories
from crucible_store.listing import Page, Query, list_page
from crucible_testkit import NatsServer

from .conftest import Store, open_store
from .samples import LEASE_SECONDS, Run, an_executor, evaluation, heartbeat, new_id

Status = evaluation_pb2.Evaluation


async def listed(store: Store, text: str = "", *, token: str = "", size: int = 0, descending: bool = True) -> Page:
    query = Query("default", text, descending, size, token)
    return await store.database.read(lambda c: list_page(c, query))


async def make(store: Store, **options: object) -> str:
    new = evaluation(**options)  # pyright: ignore[reportArgumentType]  what the test names
    await store.ledger.create([new])
    return new.evaluation.id


async def finish(store: Store, *, text: str = "") -> Run:
    run = await store.run()
    await store.apply(run.started(), run.output(text or "x"), run.verdict(text=text or "x"))
    return run


async def test_a_new_evaluation_reads_as_it_was_answered(store: Store) -> None:
    new = evaluation(labels={"team": "red"}, source="print('\u00e9')")
    (answer,) = await store.ledger.create([new])
    read = await store.histories.get(new.evaluation.id)
    assert read.status_reason == Status.RUNTIME_NOT_OFFERED
    read.ClearField("status_reason")
    assert read == answer
    assert (read.source, read.status, read.generation, read.attempt) == ("print('\u00e9')", Status.QUEUED, 1, 0)


async def test_why_it_waits(store: Store) -> None:
    which = await make(store)

    async def reason() -> int | None:
        found = await store.histories.get(which)
        return found.status_reason if found.HasField("status_reason") else None

    async def announce(slots: int, *runtimes: str) -> None:
        await store.ledger.heartbeat(heartbeat(executor, slots=slots, runtimes=runtimes), seconds=LEASE_SECONDS)

    executor = an_executor()
    await announce(2, "bash")
    assert await reason() == Status.RUNTIME_NOT_OFFERED
    await announce(0, "python")
    assert await reason() == Status.RUNTIME_NOT_OFFERED
    await announce(1, "python")
    assert await reason() is None
    other = await make(store, priority=Status.HIGH)
    (job,) = (await store.ledger.lease(pool="default", limit=5, seconds=15)).jobs
    assert job.job.evaluation_id == other
    assert await reason() == Status.WAITING_FOR_CAPACITY


async def test_leases_go_by_priority_then_age_within_what_is_offered(store: Store) -> None:
    low = await make(store, priority=Status.LOW)
    first, second = await make(store), await make(store)
    high = await make(store, priority=Status.HIGH)
    await make(store, runtime="bash", priority=Status.HIGH)
    await make(store, pool="other", priority=Status.HIGH)
    executors = [an_executor(), an_executor()]
    for executor in executors:
        await store.ledger.heartbeat(heartbeat(executor, slots=2), seconds=LEASE_SECONDS)
    # Two schedulers at once.
    answers = await asyncio.gather(*(store.ledger.lease(pool="default", limit=3, seconds=15) for _ in range(2)))
    jobs = [leased.job for answer in answers for leased in answer.jobs]
    assert {job.evaluation_id for job in jobs} == {high, first, second, low}
    assert len({job.token for job in jobs}) == 4
    longer = max(answers, key=lambda answer: len(answer.jobs))
    assert [leased.job.evaluation_id for leased in longer.jobs][:3] == [high, first, second]
    await make(store)
    assert not (await store.ledger.lease(pool="default", limit=3, seconds=15)).jobs, "every slot is taken"
    await store.execute("UPDATE executors SET last_seen = now() - interval '16 s'")
    await store.execute("UPDATE evaluations SET lease_until = now()")
    assert not (await store.ledger.lease(pool="default", limit=3, seconds=15)).jobs, "nobody is there"


async def test_more_tells_whether_to_ask_again(store: Store) -> None:
    for _ in range(3):
        await make(store)
    await store.ledger.heartbeat(heartbeat(an_executor(), slots=10), seconds=LEASE_SECONDS)
    assert (await store.ledger.lease(pool="default", limit=2, seconds=15)).more
    assert not (await store.ledger.lease(pool="default", limit=2, seconds=15)).more


async def test_a_request_id_makes_a_create_safe_to_repeat(store: Store) -> None:
    first = evaluation(request_id="once", request_hash="v1:a")
    (made,) = await store.ledger.create([first])
    again = evaluation(request_id="once", request_hash="v1:a")
    (known, fresh) = await store.ledger.create([again, evaluation(request_id="twice")])
    assert known.id == made.id
    assert fresh.id != made.id
    await store.ledger.cancel(made.id)
    (known,) = await store.ledger.create([evaluation(request_id="once", request_hash="v1:a")])
    assert known.status == Status.CANCELLED
    before = len((await listed(store)).evaluations)
    with pytest.raises(ServiceError, match="REQUEST_ID_REUSED") as caught:
        await store.ledger.create([evaluation(), evaluation(request_id="once", request_hash="v1:b")])
    assert caught.value.metadata == {"request_id": "once", "evaluation": made.id}
    assert len((await listed(store)).evaluations) == before, "all or none"


async def test_many_with_one_request_id_at_once_make_one(store: Store) -> None:
    news = [evaluation(request_id="same") for _ in range(8)]
    answers = await asyncio.gather(*(store.ledger.create([new]) for new in news))
    assert len({answer.id for (answer,) in answers}) == 1
    assert len((await listed(store)).evaluations) == 1


async def test_a_create_whose_answer_was_lost_is_not_made_twice(store: Store) -> None:
    new = evaluation()
    (first,) = await store.ledger.create([new])
    (second,) = await store.ledger.create([new])
    assert first.id == second.id
    assert len((await listed(store)).evaluations) == 1


async def test_pages_show_each_once_in_both_orders(store: Store) -> None:
    ids = [await make(store) for _ in range(4)]
    batch = [evaluation() for _ in range(9)]  # of one time: the id decides
    await store.ledger.create(batch)
    ids += sorted(new.evaluation.id for new in batch)
    for descending in (True, False):
        seen: list[str] = []
        page = await listed(store, size=5, descending=descending)
        while True:
            seen += [found.id for found in page.evaluations]
            if not page.next_token:
                break
            await make(store) if descending else None  # what is newer disturbs no page that goes back in time
            page = await listed(store, size=5, token=page.next_token, descending=descending)
        expected = ids[::-1] if descending else ids
        assert seen[: len(ids)] == expected
        assert len(set(seen)) == len(seen)
    token = (await listed(store, size=5)).next_token
    for text, damaged in (("runtime = a", token), ("", token[:-2]), ("", "?"), ("", "_" + token[1:])):
        with pytest.raises(ServiceError, match="INVALID_PAGE_TOKEN"):
            await listed(store, text, token=damaged)


async def test_filters(store: Store) -> None:
    red = await make(store, labels={"team": "red", "env": "ci"}, runtime="bash")
    blue = await make(store, labels={"team": "blue", "env": "ci"}, priority=Status.HIGH)
    bare = await make(store)
    await store.execute("UPDATE evaluations SET create_time = create_time - interval '1 h' WHERE id = :id", id=bare)
    done = (await finish(store)).job.evaluation_id
    assert done == blue
    await store.ledger.cancel(bare)
    time = "2000-01-01T00:00:00Z"
    for text, expected in (
        ("", [blue, red, bare]),
        ('labels.team = "red"', [red]),
        ('labels.env = "ci"', [blue, red]),
        ('labels.env = ci AND labels.team != "red"', [blue]),
        ('labels.team != "red"', [blue, bare]),
        ('labels.team = "red" AND labels.team = "blue"', []),
        ('runtime != "python"', [red]),
        ("status = COMPLETED", [blue]),
        ("status = CANCELLED AND cause = USER", [bare]),
        ("result.outcome = SUCCEEDED", [blue]),
        ("result.outcome != SUCCEEDED", [red, bare]),
        ("cause != USER", [blue, red]),
        ("priority = HIGH AND status = COMPLETED", [blue]),
        (f'create_time > "{time}"', [blue, red, bare]),
        (f'create_time <= "{time}"', []),
    ):
        found = [item.id for item in (await listed(store, text)).evaluations]
        assert found == expected, text
    with pytest.raises(ServiceError, match="INVALID_FILTER") as caught:
        await listed(store, "status = COMPLETED OR runtime = bash")
    assert caught.value.metadata == {"position": "19"}


async def test_lists_leave_out_what_may_be_large(store: Store) -> None:
    await make(store, source="x" * 5000, labels={"a": "b"})
    await finish(store, text="output")
    (found,) = (await listed(store)).evaluations
    assert not found.HasField("source")
    assert (found.result.stdout.HasField("text"), found.result.stdout.size_bytes) == (False, 6)
    assert dict(found.labels) == {"a": "b"}
    whole = await store.histories.get(found.id)
    assert (whole.source, whole.result.stdout.text) == ("x" * 5000, "output")


async def test_a_program_that_wrote_nothing_has_an_empty_text(store: Store) -> None:
    which = await make(store)
    run = await store.run()
    await store.apply(run.started(), run.verdict(text=""))
    whole = await store.histories.get(which)
    assert (whole.result.stdout.HasField("text"), whole.result.stdout.text) == (True, "")
    (found,) = (await listed(store)).evaluations
    assert not found.result.stdout.HasField("text")


async def test_a_watch_has_neither_gap_nor_repeat_while_others_write(store: Store) -> None:
    which = await make(store)
    seen: list[list[int]] = []

    async def watch(after: int) -> None:
        seen.append(events := [])
        async for event in store.histories.follow(which, after=after):
            events.append(event.sequence)
            if len(events) % 7 == 0:
                await asyncio.sleep(0.001)

    watchers = [asyncio.create_task(watch(0))]
    run = await store.run()
    await store.apply(run.started())
    for part in range(40):
        await store.apply(*(run.output() for _ in range(5)))
        if part % 10 == 0:
            watchers.append(asyncio.create_task(watch(part)))
    await store.apply(run.verdict())
    await asyncio.wait_for(asyncio.gather(*watchers), 30)
    last = 3 + 200 + 1
    assert seen[0] == list(range(1, last + 1))
    assert [events[-1] for events in seen] == [last] * len(seen)
    assert all(events == list(range(events[0], last + 1)) for events in seen)


async def test_a_watch_finds_what_was_never_announced(store: Store) -> None:
    """As when NATS lost it: a jump in the numbers, or silence, sends the watcher to the database."""
    which = await make(store)
    watching = asyncio.create_task(_kinds(store, which))
    run = await store.run()
    await store.ledger.apply([run.started()])
    await store.apply(run.output())
    await store.ledger.apply([run.verdict()])
    assert await asyncio.wait_for(watching, 30) == ["queued", "dispatched", "started", "output", "finished"]


async def test_a_watch_at_another_store_hears_what_is_announced(
    store: Store, store_database_url: str, nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(histories, "QUIET_SECONDS", 60.0)  # no look into the database instead
    which = await make(store)

    async def watch(at: Store, waits: asyncio.Event) -> list[int]:
        async def waiting() -> None:
            waits.set()

        return [event.sequence async for event in at.histories.follow(which, after=1, waiting=waiting)]

    async with open_store(store_database_url, nats_server.url, tmp_path / "others") as other, asyncio.timeout(30):
        waits = [asyncio.Event(), asyncio.Event()]
        watching = [asyncio.create_task(watch(*each)) for each in zip((store, other), waits, strict=True)]
        for each in waits:
            await each.wait()
        await finish(store)
        assert [await each for each in watching] == [[2, 3, 4, 5]] * 2


async def _kinds(store: Store, which: str, after: int = 0) -> list[str | None]:
    return [event.WhichOneof("kind") async for event in store.histories.follow(which, after=after)]


async def test_a_watch_says_once_that_it_waits_and_never_of_what_is_over(store: Store) -> None:
    which = await make(store)
    said = asyncio.Event()

    async def waiting() -> None:
        assert not said.is_set()
        said.set()

    async def follow(after: int) -> list[int]:
        return [event.sequence async for event in store.histories.follow(which, after=after, waiting=waiting)]

    watching = asyncio.create_task(follow(1))
    async with asyncio.timeout(30):
        await said.wait()
        await store.ledger.cancel(which)
        assert await watching == [2]
    said.clear()
    assert await follow(2) == []
    assert not said.is_set(), "a browser that resumes is told to stop"
    with pytest.raises(ServiceError, match="EVALUATION_NOT_FOUND"):
        _ = [event async for event in store.histories.follow(new_id(), after=0, waiting=waiting)]
    assert not said.is_set()


async def test_a_watch_of_what_is_over_ends(store: Store) -> None:
    which = await make(store)
    await store.ledger.cancel(which)
    assert await _kinds(store, which) == ["queued", "cancelled"]
    assert await _kinds(store, which, after=2) == []
    assert await _kinds(store, which, after=99) == []
    with pytest.raises(ServiceError, match="EVALUATION_NOT_FOUND"):
        await _kinds(store, new_id())


async def test_a_watch_goes_on_through_a_requeue(store: Store) -> None:
    which = await make(store, max_attempts=1)
    run = await store.run()
    await store.apply(run.started(), run.fault())
    assert await _kinds(store, which) == ["queued", "dispatched", "started", "failed"]
    await store.ledger.requeue(which)
    watching = asyncio.create_task(_kinds(store, which, after=3))
    await finish(store)
    assert await asyncio.wait_for(watching, 30) == [
        "failed", "queued", "dispatched", "started", "output", "finished"
    ]  # fmt: skip
    found = await store.histories.get(which)
    assert (found.generation, found.attempt, found.status) == (2, 2, Status.COMPLETED)


async def test_pages_of_events_end_at_their_bounds(store: Store) -> None:
    which = await make(store)
    run = await store.run()
    await store.apply(run.started(), *(run.output("x" * 128 * 1024) for _ in range(40)))
    page = await store.histories.page(which, after=0, size=0)
    assert sum(event.ByteSize() for event in page.events) <= 4 << 20
    assert [event.sequence for event in page.events] == list(range(1, len(page.events) + 1))
    assert 30 < len(page.events) < 40
    assert page.last_sequence == 43
    assert [event.sequence for event in (await store.histories.page(which, after=40, size=2)).events] == [41, 42]


async def read(store: Store, which: str, *, offset: int = 0, limit: int = 0) -> tuple[bytes, int, bool]:
    part = await store.outputs.read(which, "stdout", offset=offset, limit=limit)
    data = b"".join([piece async for piece in part.pieces])
    assert len(data) == part.length
    return data, part.size, part.complete


async def test_outputs_while_it_runs_and_after(store: Store) -> None:
    which = await make(store)
    assert await read(store, which) == (b"", 0, False)
    run = await store.run()
    await store.apply(run.started(), run.output("h\u00e9llo "))
    assert await read(store, which) == ("h\u00e9llo ".encode(), 7, False)
    await store.apply(run.output("world"), run.verdict())
    assert await read(store, which) == ("h\u00e9llo world".encode(), 12, True)
    assert await read(store, which, offset=7, limit=3) == (b"wor", 12, True)
    assert await read(store, which, offset=-5) == (b"world", 12, True)
    assert await read(store, which, offset=-50, limit=1) == (b"h", 12, True)
    assert await read(store, which, offset=12) == (b"", 12, True)
    with pytest.raises(ServiceError, match="RANGE_NOT_SATISFIABLE") as caught:
        await read(store, which, offset=13)
    assert caught.value.metadata == {"size": "12"}
    with pytest.raises(ServiceError, match="EVALUATION_NOT_FOUND"):
        await read(store, new_id())


async def test_outputs_are_of_the_attempt_the_verdict_is_about(store: Store) -> None:
    which = await make(store)
    lost = await store.run()
    await store.apply(lost.started(), lost.output("of the first"), lost.fault())
    assert await read(store, which) == (b"of the first", 12, False)
    await store.wake(which)
    run = await store.run()
    await store.apply(run.started())
    assert (await read(store, which))[0] == b"of the first"
    await store.apply(run.verdict())
    assert await read(store, which) == (b"", 0, True)


async def test_a_large_output_comes_from_its_object(store: Store) -> None:
    which = await make(store)
    run = await store.run()
    data = bytes(range(256)) * 12_000
    name = objects.output(which, run.id, "stdout")
    store.bucket.put(name, data)
    await store.apply(run.started(), run.output("only the beginning"), run.verdict(stdout_object=name))
    assert await read(store, which) == (data, len(data), True)
    assert (await read(store, which, offset=1_048_500, limit=200))[0] == data[1_048_500:1_048_700]
    store.bucket.delete(name)
    with pytest.raises(ServiceError, match="INTERNAL"):
        await read(store, which)


async def test_a_large_program_goes_by_its_hash(store: Store) -> None:
    new = evaluation()
    new.program.stdin = b"x" * 600_000
    await store.ledger.create([new])
    (job,) = await store.lease()
    assert not job.HasField("program")
    stored = bytes(store.bucket.get(objects.program(job.program_sha256)).bytes())
    assert hashlib.sha256(stored).hexdigest() == job.program_sha256
    assert new.program.FromString(stored) == new.program


async def test_bytes_that_text_refuses_are_kept(store: Store) -> None:
    await make(store)
    run = await store.run()
    await store.apply(run.started(), run.output("nul\0 \U0001f600"), run.verdict(text="nul\0"))
    found = await store.histories.get(run.job.evaluation_id)
    assert found.result.stdout.text == "nul\0"
    events = (await store.histories.page(found.id, after=0, size=0)).events
    assert [event.output.text for event in events if event.HasField("output")] == ["nul\0 \U0001f600"]


async def test_messages_and_heartbeats_touch_no_index(store: Store) -> None:
    """Updates of the hot row stay on its page (HOT) as long as no index holds what they change."""
    definitions = await store.execute(
        "SELECT pg_get_indexdef(i.indexrelid) AS text FROM pg_index i WHERE i.indrelid = 'evaluations'::regclass"
    )
    for column in ("lease_until", "run_events", "last_sequence", "executor", "token", "run,", "run)"):
        assert not [row.text for row in definitions if column in row.text]
    await make(store)
    run = await store.run()
    await store.apply(run.started())
    for _ in range(5):
        await store.apply(run.output())
        await store.ledger.heartbeat(heartbeat(run.executor, runs=(run,)), seconds=15)
    # Statistics are the connection's that made the updates until it is told to part with them.
    await store.database.write(
        lambda transaction: transaction.execute(sa.text("SELECT pg_stat_force_next_flush()"), {})
    )
    (updates,) = await store.execute(
        "SELECT n_tup_upd AS everything, n_tup_hot_upd AS hot FROM pg_stat_user_tables WHERE relname = 'evaluations'"
    )
    assert updates.everything >= 10
    assert updates.everything - updates.hot <= 2, "leased, and begun"
