"""The protocol of an evaluation against the real ledger and database: crashes, doubled, reordered and lost messages,
redelivered jobs, lapsed leases, deaf reapers, cancels and requeues in any order, and every promise after each step.

`CRUCIBLE_TEST_PROFILE=nightly` looks for longer.
"""

import asyncio
import itertools
import os
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from crucible_chassis.errors import ServiceError
from crucible_contracts.limits import MAX_DISPATCHES
from crucible_store.domain.folding import Fate
from crucible_store.ledger.attempts import Delivery
from crucible_testkit import NatsServer
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,  # pyright: ignore[reportUnknownVariableType]  hypothesis leaves its factory untyped
)

from crucible.internal.v1 import heartbeat_pb2, job_pb2, ledger_service_pb2
from crucible.v1 import evaluation_pb2, event_pb2, execution_pb2

from .conftest import Store, open_store
from .samples import LEASE_SECONDS, Run, an_executor, evaluation, heartbeat

T = TypeVar("T")

NIGHTLY = os.environ.get("CRUCIBLE_TEST_PROFILE") == "nightly"
PROFILE = settings(
    max_examples=1500 if NIGHTLY else 40,
    stateful_step_count=80 if NIGHTLY else 40,
    deadline=None,
    derandomize=not NIGHTLY,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink) if NIGHTLY else (Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)

Status = evaluation_pb2.Evaluation
OPEN = {Status.QUEUED, Status.DISPATCHED, Status.RUNNING}
FINAL_EVENTS = {"finished", "failed", "cancelled"}


@dataclass
class Seen:
    """What was seen of an evaluation, and must not be taken back."""

    events: list[bytes] = field(default_factory=list[bytes])
    results: dict[int, bytes] = field(default_factory=dict[int, bytes])
    requeues: int = 0
    attempt: int = 0


class Protocol(RuleBasedStateMachine):
    """Schedulers, executors and the network between them, played against one store."""

    runner: ClassVar[asyncio.Runner]
    store: ClassVar[Store]
    pools: ClassVar[Iterator[int]] = itertools.count()

    evaluations = Bundle("evaluations")
    jobs = Bundle("jobs")
    runs = Bundle("runs")
    lapsed = Bundle("lapsed")

    def __init__(self) -> None:
        super().__init__()
        self.pool = f"pool-{next(self.pools)}"
        self.executor = an_executor()
        self.seen: dict[str, Seen] = {}
        self.all_runs: list[Run] = []
        self.in_flight: list[Delivery] = []
        self.rounds = itertools.count(1)

    def do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    # What callers do

    @initialize(target=evaluations, attempts=st.integers(1, 3))
    def first(self, attempts: int) -> str:
        return self._create(attempts)

    @precondition(lambda self: len(self.seen) < 3)
    @rule(target=evaluations, attempts=st.integers(1, 3))
    def create(self, attempts: int) -> str:
        return self._create(attempts)

    def _create(self, attempts: int) -> str:
        new = evaluation(pool=self.pool, max_attempts=attempts)
        self.do(self.store.ledger.create([new]))
        self.seen[new.evaluation.id] = Seen()
        return new.evaluation.id

    @rule(which=evaluations, sure=st.integers(0, 3))
    def cancel(self, which: str, sure: int) -> None:
        if sure:  # seldom, or nothing else is ever seen
            return
        before = self._status(which)
        try:
            asked = self.do(self.store.ledger.cancel(which))
        except ServiceError as exc:
            assert (exc.reason, before) in {
                ("EVALUATION_FINAL", Status.COMPLETED),
                ("EVALUATION_FINAL", Status.FAILED),
            }
        else:
            assert before in {*OPEN, Status.CANCELLED}
            assert asked.evaluation.status == Status.CANCELLED

    @rule(which=evaluations)
    def requeue(self, which: str) -> None:
        before = self._status(which)
        try:
            self.do(self.store.ledger.requeue(which))
        except ServiceError as exc:
            assert exc.reason == "EVALUATION_NOT_FAILED"
            assert before != Status.FAILED
        else:
            assert before == Status.FAILED
            self.seen[which].requeues += 1

    # What schedulers do

    @rule(target=jobs, limit=st.integers(1, 3))
    def lease(self, limit: int) -> Any:  # noqa: ANN401  hypothesis's own word for several values
        return multiple(*self._lease(limit))

    def _lease(self, limit: int) -> list[job_pb2.Job]:
        self.do(self.store.ledger.heartbeat(heartbeat(self.executor, pool=self.pool), seconds=LEASE_SECONDS))
        leased = self.do(self.store.ledger.lease(pool=self.pool, limit=limit, seconds=LEASE_SECONDS))
        return [item.job for item in leased.jobs]

    @rule()
    def wait(self) -> None:
        self.do(
            self.store.execute("UPDATE evaluations SET not_before = now() WHERE pool = :pool", pool=self.pool)
        )  # fmt: skip

    @rule(which=evaluations)
    def lapse(self, which: str) -> None:
        self.do(self._lapse(which))

    async def _lapse(self, which: str) -> None:
        await self.store.execute(
            "UPDATE evaluations SET lease_until = now() - interval '1 s' WHERE id = :id AND lease_until IS NOT NULL",
            id=which,
        )

    @rule(target=lapsed)
    def see_lapsed(self) -> Any:  # noqa: ANN401  hypothesis's own word for several values
        return multiple(*self._see_lapsed())

    def _see_lapsed(self) -> list[ledger_service_pb2.LapsedLease]:
        lapsed = self.do(self.store.ledger.list_lapsed(limit=1000))
        return [lease for lease in lapsed if lease.evaluation_id in self.seen]

    @rule(leases=st.lists(lapsed, min_size=1, max_size=4))
    def reap(self, leases: list[ledger_service_pb2.LapsedLease]) -> None:
        """Also by a reaper that was deaf since: what it saw may be long over."""
        self.do(self.store.ledger.judge_lapsed(leases))

    # What executors do

    @rule(target=runs, job=jobs)
    def pull(self, job: job_pb2.Job) -> Run:
        """JetStream may hand one job to several."""
        run = Run(job)
        self.all_runs.append(run)
        return run

    @rule(
        run=runs,
        kinds=st.lists(
            st.sampled_from(["progress", "progress", "unknown", "garbled", "refused"]), min_size=1, max_size=3
        ),
    )
    def go_on(self, run: Run, kinds: list[str]) -> None:
        for kind in kinds:
            if run.ended:
                return
            self.in_flight.append(self._next(run, kind))

    def _next(self, run: Run, kind: str) -> Delivery:
        match kind:
            case "unknown":
                return run.unknown()
            case "garbled" if run.sent:
                return run.garbled()
            case "refused" if not run.sent:
                return run.refused()
            case _ if not run.sent:
                return run.started()
            case _:
                return run.output() if len(run.sent) % 2 else run.usage()

    @rule(run=runs, how=st.sampled_from(["verdict", "verdict", "fault", "refused", "drain"]))
    def end(self, run: Run, how: str) -> None:
        if run.ended:
            return
        match how:
            case "fault":
                self.in_flight.append(run.fault())
            case "drain":
                self.in_flight.append(run.fault(execution_pb2.ExecutionResult.INFRASTRUCTURE))
            case "refused":
                self.in_flight.append(run.refused_verdict())
            case _:
                self.in_flight.append(run.verdict())

    @rule(run=runs)
    def beat(self, run: Run) -> None:
        """A heartbeat; what is not stored is published again, and an abandoned run publishes nothing."""
        reply = self._beat(run)
        if reply.abandon:
            run.ended = True
            return
        again = next(self.rounds)
        self.in_flight += [run.delivery(number, again) for number in range(reply.next, len(run.sent))]

    def _beat(self, run: Run) -> heartbeat_pb2.RunReply:
        beat = heartbeat(self.executor, pool=self.pool, runs=(run,))
        (reply,) = self.do(self.store.ledger.heartbeat(beat, seconds=LEASE_SECONDS)).runs
        assert reply.run == run.id
        return reply

    # What the network does

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        """Some messages in any order in one batch, some of them twice, and some once more later."""
        order = data.draw(st.permutations(range(len(self.in_flight))))
        count = data.draw(st.integers(1, len(order)))
        chosen = [self.in_flight[place] for place in order[:count]]
        doubled = data.draw(st.lists(st.sampled_from(chosen), max_size=3))
        kept = data.draw(st.lists(st.sampled_from(chosen), max_size=2))
        rest = [self.in_flight[place] for place in order[count:]]
        waiting = self._apply([*chosen, *doubled])
        self.in_flight = [*rest, *waiting, *kept][-200:]

    @precondition(lambda self: self.in_flight)
    @rule()
    def deliver_all_in_order(self) -> None:
        self.in_flight = self._apply(self.in_flight)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))

    def _apply(self, batch: Sequence[Delivery]) -> list[Delivery]:
        """What waits for its predecessors, and is not acknowledged."""
        fates = self.do(self.store.apply(*batch))
        return [delivery for delivery, fate in zip(batch, fates, strict=True) if fate is Fate.WAITING]

    # The promises

    @rule(which=evaluations, again=consumes(lapsed) | st.none())
    def a_healthy_run_ends_in_its_verdict(self, which: str, again: object) -> None:
        """A claimed run that reports all it has, however its lease stands, is never thrown away."""
        row = self._row(which)
        run = next((run for run in self.all_runs if run.id == row.run), None)
        if row.status not in OPEN or run is None or run.ended:
            return
        reply = self._beat(run)
        assert not reply.abandon
        run.verdict()
        batch = [run.delivery(number, next(self.rounds)) for number in range(reply.next, len(run.sent))]
        if any(delivery.message is None or delivery.message.parked for delivery in batch):
            return
        assert self._apply(batch) == []
        assert self._status(which) == Status.COMPLETED
        (result,) = self.do(
            self.store.execute(
                "SELECT r.run FROM results r JOIN evaluations e ON e.id = r.evaluation AND e.generation = r.generation"
                " WHERE e.id = :id",
                id=which,
            )
        )
        assert result.run == run.id

    @invariant()
    def promises_hold(self) -> None:
        if not self.seen:
            return
        self.do(self._promises_hold())

    async def _promises_hold(self) -> None:
        ids = {"ids": list(self.seen)}
        rows = await self.store.execute("SELECT * FROM evaluations WHERE id = ANY(CAST(:ids AS uuid[]))", **ids)
        events = await self.store.execute(
            "SELECT evaluation, sequence, event FROM events WHERE evaluation = ANY(CAST(:ids AS uuid[]))"
            " ORDER BY evaluation, sequence",
            **ids,
        )
        results = await self.store.execute(
            "SELECT evaluation, generation, run, summary FROM results WHERE evaluation = ANY(CAST(:ids AS uuid[]))",
            **ids,
        )
        attempts = await self.store.execute(
            "SELECT evaluation, generation, attempt, run FROM attempts WHERE evaluation = ANY(CAST(:ids AS uuid[]))",
            **ids,
        )
        assert len(rows) == len(self.seen)
        for row in rows:
            self._check(
                row,
                [event for event in events if event.evaluation == row.id],
                [result for result in results if result.evaluation == row.id],
                [attempt for attempt in attempts if attempt.evaluation == row.id],
            )

    def _check(self, row: Any, events: list[Any], results: list[Any], attempts: list[Any]) -> None:  # noqa: ANN401  rows
        seen = self.seen[row.id]
        # History is numbered without gap or repeat, never reset, and only ever grows.
        assert [event.sequence for event in events] == list(range(1, row.last_sequence + 1))
        assert [event.event for event in events[: len(seen.events)]] == seen.events
        seen.events = [event.event for event in events]
        history = [event_pb2.Event.FromString(event.event) for event in events]
        assert row.attempt >= seen.attempt
        seen.attempt = row.attempt
        # Only a requeue opens a generation.
        assert row.generation == 1 + seen.requeues
        assert self._replay(history) == row.status
        self._check_runs(history, {attempt.attempt: attempt.run for attempt in attempts})
        # One result an evaluation and generation, of the claimed run, never overwritten, with its one event at the end.
        for result in results:
            assert seen.results.setdefault(result.generation, result.summary) == result.summary
            verdict = execution_pb2.ExecutionResult.FromString(result.summary)
            assert verdict.image_digest == result.run
            assert any(attempt.run == result.run and attempt.generation == result.generation for attempt in attempts)
        for generation in range(1, row.generation + 1):
            kinds = [event.WhichOneof("kind") for event in history if event.generation == generation]
            assert [kind for kind in kinds[:-1] if kind in FINAL_EVENTS] == []
            assert kinds.count("finished") == sum(result.generation == generation for result in results)
            assert kinds[0] == "queued"
            assert generation == row.generation or kinds[-1] == "failed"
        # What is not final waits in the queue, or is leased and will be judged by a timer.
        if row.status == Status.QUEUED:
            assert row.lease_until is None
        elif row.status in OPEN:
            assert row.lease_until is not None
            assert row.token is not None
        else:
            assert row.lease_until is None
            assert row.end_time is not None
            assert history[-1].WhichOneof("kind") in FINAL_EVENTS
        # No FAILED before the allowed number of attempts was begun, or the cap of dispatches was reached.
        if row.status == Status.FAILED:
            begun = sum(attempt.generation == row.generation for attempt in attempts)
            if begun < row.max_attempts:
                assert row.attempt - row.attempt_base >= MAX_DISPATCHES
                assert row.cause == execution_pb2.ExecutionResult.INFRASTRUCTURE

    def _replay(self, history: list[event_pb2.Event]) -> int:
        """Each change of status has its event: the events alone tell the status."""
        status = 0
        moves: dict[str, tuple[set[int], int]] = {
            "queued": ({0, Status.FAILED}, Status.QUEUED),
            "dispatched": ({Status.QUEUED}, Status.DISPATCHED),
            "started": ({Status.DISPATCHED}, Status.RUNNING),
            "requeued": ({Status.DISPATCHED, Status.RUNNING}, Status.QUEUED),
            "failed": ({Status.DISPATCHED, Status.RUNNING}, Status.FAILED),
            "finished": (set(OPEN), Status.COMPLETED),
            "cancelled": (set(OPEN), Status.CANCELLED),
        }
        for event in history:
            kind = event.WhichOneof("kind")
            assert kind is not None
            if kind == "message_parked" and event.message_parked.number == 0:
                kind = "started"
            if kind in moves:
                before, after = moves[kind]
                assert status in before, (kind, status)
                status = after
            else:
                assert status in OPEN, (kind, status)
        return status

    def _check_runs(self, history: list[event_pb2.Event], claimed: dict[int, str]) -> None:
        """What an attempt wrote is what its one run said, in its order and from its start."""
        for attempt in {event.attempt for event in history}:
            told = [
                event
                for event in history
                if event.attempt == attempt
                and event.WhichOneof("kind") not in {"queued", "dispatched", "requeued", "failed", "cancelled"}
            ]
            if not told:
                continue
            run = next(run for run in self.all_runs if run.id == claimed[attempt])
            assert run.job.attempt == attempt
            for number, event in enumerate(told):
                message = run.delivery(number).message
                if event.WhichOneof("kind") == "message_parked":
                    assert event.message_parked.number == number
                    continue
                assert message is not None
                for kind in ("started", "output", "usage"):
                    if message.body.HasField(kind):
                        assert getattr(event, kind) == getattr(message.body, kind)
                if event.WhichOneof("kind") == "finished":
                    assert event.finished.result == message.body.finished.result

    def teardown(self) -> None:
        if not self.seen:
            return
        self._executors_hold_no_lost_runs()
        self._everything_ends()
        self.do(self._promises_hold())

    def _executors_hold_no_lost_runs(self) -> None:
        """Of all runs of an evaluation one at most goes on, unless none has claimed it yet."""
        for which in self.seen:
            row = self._row(which)
            for run in self.all_runs:
                if run.job.evaluation_id != which:
                    continue
                reply = self._beat(run)
                own = row.status in OPEN and (run.job.attempt, run.job.token) == (row.attempt, row.token)
                if own and (row.run == run.id or (row.run is None and row.status == Status.DISPATCHED)):
                    assert (reply.abandon, reply.next) == (heartbeat_pb2.RunReply.ABANDON_UNSPECIFIED, row.run_events)
                elif row.status == Status.CANCELLED:
                    assert reply.abandon == heartbeat_pb2.RunReply.CANCELLED
                elif row.status in OPEN:
                    assert reply.abandon == heartbeat_pb2.RunReply.FENCED
                else:
                    assert reply.abandon == heartbeat_pb2.RunReply.SETTLED

    def _everything_ends(self) -> None:
        """When all that happened is over, and executors work as they should, every evaluation becomes final."""
        for _ in range(3):
            for which in self.seen:
                self.lapse(which)
            lapsed = self._see_lapsed()
            if lapsed:
                self.do(self.store.ledger.judge_lapsed(lapsed))
            self.wait()
            for job in self._lease(10):
                run = Run(job)
                self.all_runs.append(run)
                assert self._apply([run.started(), run.output(), run.verdict()]) == []
        assert all(self._status(which) not in OPEN for which in self.seen)

    def _row(self, which: str) -> Any:  # noqa: ANN401  a row of columns
        (row,) = self.do(self.store.execute("SELECT * FROM evaluations WHERE id = :id", id=which))
        return row

    def _status(self, which: str) -> int:
        return self._row(which).status


@pytest.mark.timeout(7200 if NIGHTLY else 300)
def test_the_promises_hold(store_database_url: str, nats_server: NatsServer, tmp_path: Path) -> None:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        Protocol.runner = runner
        Protocol.store = runner.run(
            stack.enter_async_context(open_store(store_database_url, nats_server.url, tmp_path / "objects"))
        )
        try:
            run_state_machine_as_test(Protocol, settings=PROFILE)
        finally:
            runner.run(stack.aclose())
