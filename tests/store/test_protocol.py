"""The protocol of an evaluation against the real ledger and database: crashes, doubled, reordered and lost messages,
redelivered jobs, lapsed leases, deaf reapers, cancels and requeues in any order, and every promise after each step.

`CRUCIBLE_TEST_PROFILE=nightly` looks for longer.
"""

import asyncio
import itertools
import os
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,  # pyright: ignore[reportUnknownVariableType]  hypothesis leaves its factory untyped
)
from sqlalchemy.ext.asyncio import AsyncConnection

from crucible.internal.v1 import heartbeat_pb2, job_pb2, ledger_service_pb2
from crucible.v1 import evaluation_pb2, event_pb2, execution_pb2
from crucible_chassis.errors import ServiceError
from crucible_contracts.limits import MAX_DISPATCHES
from crucible_store.domain.folding import Fate
from crucible_store.ledger.attempts import Delivery
from crucible_testkit import NatsServer

from .conftest import Store, open_store
from .samples import LEASE_SECONDS, Run, an_executor, evaluation, heartbeat

T = TypeVar("T")

NIGHTLY = os.environ.get("CRUCIBLE_TEST_PROFILE") == "nightly"
PROFILE = settings(
    max_examples=1500 if NIGHTLY else 60,
    stateful_step_count=100 if NIGHTLY else 50,
    deadline=None,
    derandomize=not NIGHTLY,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink) if NIGHTLY else (Phase.generate,),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
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


class Named:
    """An action that hypothesis prints by its name."""

    def __init__(self, call: Callable[[st.DataObject], None]) -> None:
        self.call = call

    def __repr__(self) -> str:
        return self.call.__name__


class Protocol(RuleBasedStateMachine):
    """Schedulers, executors and the network between them, played against one store."""

    runner: ClassVar[asyncio.Runner]
    store: ClassVar[Store]
    pools: ClassVar[Iterator[int]] = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.pool = f"pool-{next(self.pools)}"
        self.executor = an_executor()
        self.seen: dict[str, Seen] = {}
        self.jobs: list[job_pb2.Job] = []
        self.lapsed: list[ledger_service_pb2.LapsedLease] = []
        self.all_runs: list[Run] = []
        self.rows: Sequence[Any] = []
        self.in_flight: list[Delivery] = []
        self.rounds = itertools.count(1)
        self.touched = False
        """Whether the last step may have changed the database."""

    def do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """One thing that happens, of those that can. (One rule: of many, most are switched off in most examples.)"""
        open_runs = [run for run in self.all_runs if not run.ended]
        standing = {row.status for row in self.rows}
        still_open = sum(row.status in OPEN for row in self.rows)
        queued, failed = Status.QUEUED in standing, Status.FAILED in standing
        leased = bool(standing & {Status.DISPATCHED, Status.RUNNING})
        resting = any(row.status == Status.QUEUED and row.not_before > row.queue_time for row in self.rows)
        actions: dict[Callable[[st.DataObject], None], int] = {
            self.create: 0 if still_open > 2 else 3 if still_open else 40,
            self.cancel: 1 if leased else 0,
            self.requeue: 8 if failed else 0,
            self.lease: 12 if queued else 0,
            self.wait: 8 if resting else 0,
            self.lapse: 2 if leased else 0,
            self.reap: 8 if self.lapsed else 0,
            self.pull: 6 if self.jobs else 0,
            self.go_on: 12 if open_runs else 0,
            self.end: 6 if open_runs else 0,
            self.beat: 5 if self.all_runs else 0,
            self.deliver: 12 if self.in_flight else 0,
            self.deliver_all_in_order: 6 if self.in_flight else 0,
            self.lose: 1 if self.in_flight else 0,
            self.fall_silent: 12 if self._silenced() else 0,
            self.finish_a_healthy_run: 12 if self._claimed() else 0,
        }
        if not self.seen:
            actions = {self.create: 1}
        weighted = [action for action, weight in actions.items() for _ in range(weight)]
        # Scattered over the list: Hypothesis likes small numbers and ends, and would see little but cancels.
        scattered = st.integers(0, 65535).map(lambda number: Named(weighted[number * 40503 % 65536 % len(weighted)]))
        action = data.draw(scattered, label="action").call
        action(data)
        # Bound methods are equal, never the same object.
        self.touched = action not in (self.pull, self.go_on, self.end, self.lose)

    def _one(self, data: st.DataObject) -> str:
        """Mostly one that is not over."""
        still_open = [row.id for row in self.rows if row.status in OPEN]
        return data.draw(st.sampled_from([*still_open, *still_open, *self.seen]))

    # What callers do

    def create(self, data: st.DataObject) -> None:
        new = evaluation(pool=self.pool, max_attempts=data.draw(st.sampled_from([1, 1, 2, 3])))
        seconds = data.draw(st.sampled_from([None, LEASE_SECONDS]))
        answer = self.do(self.store.ledger.create_and_lease([new], seconds=seconds))
        self.jobs += [item.job for item in answer.jobs]
        self.seen[new.evaluation.id] = Seen()

    def cancel(self, data: st.DataObject) -> None:
        which = self._one(data)
        if self._status(which) in {Status.COMPLETED, Status.FAILED}:
            with pytest.raises(ServiceError, match="EVALUATION_FINAL"):
                self.do(self.store.ledger.cancel(which))
        else:
            assert self.do(self.store.ledger.cancel(which)).evaluation.status == Status.CANCELLED

    def requeue(self, data: st.DataObject) -> None:
        failed = [row.id for row in self.rows if row.status == Status.FAILED]
        which = data.draw(st.sampled_from([*failed, *failed, *self.seen]))
        if self._status(which) != Status.FAILED:
            with pytest.raises(ServiceError, match="EVALUATION_NOT_FAILED"):
                self.do(self.store.ledger.requeue(which))
        else:
            self.do(self.store.ledger.requeue(which))
            self.seen[which].requeues += 1

    # What schedulers do

    def lease(self, data: st.DataObject) -> None:
        self._lease(data.draw(st.integers(1, 3)))

    def _lease(self, limit: int) -> list[job_pb2.Job]:
        self.do(self.store.ledger.heartbeat(heartbeat(self.executor, pool=self.pool), seconds=LEASE_SECONDS))
        leased = self.do(self.store.ledger.lease(pool=self.pool, limit=limit, seconds=LEASE_SECONDS))
        jobs = [item.job for item in leased.jobs]
        self.jobs += jobs
        return jobs

    def wait(self, _data: st.DataObject) -> None:
        self._wait()

    def _wait(self) -> None:
        self.do(self.store.execute("UPDATE evaluations SET not_before = queue_time WHERE pool = :pool", pool=self.pool))

    def lapse(self, data: st.DataObject) -> None:
        """A lease lapses, and a reaper may see it."""
        leased = [row.id for row in self.rows if row.lease_until is not None]
        self._lapse(data.draw(st.sampled_from(leased)))
        seen = data.draw(st.sampled_from(["judged", "seen", "not", "judged"]))
        if seen != "not":
            self.lapsed += (lapsed := self._see_lapsed())
            if seen == "judged":
                self.do(self.store.ledger.judge_lapsed(lapsed))

    def fall_silent(self, data: st.DataObject) -> None:
        """An executor is cut off in the middle of a run; its lease is judged, but until the next one its run counts."""
        which = data.draw(st.sampled_from(self._silenced()))
        (run,) = [run for row, run in self._claimed() if row.id == which]
        self._lapse(which)
        self.do(self.store.ledger.judge_lapsed(self._see_lapsed()))
        assert bool(self._beat(run).abandon) == (self._status(which) == Status.FAILED)

    def _silenced(self) -> list[str]:
        return [row.id for row, _ in self._claimed() if row.lease_until is not None]

    def _lapse(self, which: str) -> None:
        self.do(
            self.store.execute(
                "UPDATE evaluations SET lease_until = now() - interval '1 s'"
                " WHERE id = :id AND lease_until IS NOT NULL",
                id=which,
            )
        )

    def _see_lapsed(self) -> list[ledger_service_pb2.LapsedLease]:
        lapsed = self.do(self.store.ledger.list_lapsed(limit=1000))
        return [lease for lease in lapsed if lease.evaluation_id in self.seen]

    def reap(self, data: st.DataObject) -> None:
        """Also by a reaper that was deaf since: what it saw may be long over."""
        self.do(self.store.ledger.judge_lapsed(data.draw(st.lists(st.sampled_from(self.lapsed), max_size=4))))

    # What executors do

    def pull(self, data: st.DataObject) -> None:
        """Of the newest jobs, mostly. JetStream may hand one to several."""
        job = data.draw(st.sampled_from([*self.jobs, *self.jobs[-3:], *self.jobs[-3:]]))
        self.all_runs.append(Run(job))

    def _open_run(self, data: st.DataObject) -> Run:
        runs = [run for run in self.all_runs if not run.ended]
        return data.draw(st.sampled_from([*runs, *runs[-2:]]))

    def go_on(self, data: st.DataObject) -> None:
        run = self._open_run(data)
        kinds = ["progress", "progress", "progress", "unknown", "garbled", "refused"]
        for kind in data.draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=3)):
            self.in_flight.append(self._next(run, kind))

    def _next(self, run: Run, kind: str) -> Delivery:
        match kind:
            case "unknown":
                return run.unknown()
            case "garbled":
                return run.garbled()
            case "refused" if not run.sent:
                return run.refused()
            case _ if not run.sent:
                return run.started()
            case _:
                return run.output() if len(run.sent) % 2 else run.usage()

    def end(self, data: st.DataObject) -> None:
        run = self._open_run(data)
        match data.draw(st.sampled_from(["verdict", "verdict", "fault", "drain", "refused"])):
            case "fault":
                self.in_flight.append(run.fault())
            case "drain":
                self.in_flight.append(run.fault(execution_pb2.ExecutionResult.INFRASTRUCTURE))
            case "refused":
                self.in_flight.append(run.refused_verdict())
            case _:
                self.in_flight.append(run.verdict())

    def beat(self, data: st.DataObject) -> None:
        """A heartbeat; what is not stored is published again, and an abandoned run publishes nothing."""
        run = data.draw(st.sampled_from(self.all_runs))
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

    def deliver(self, data: st.DataObject) -> None:
        """Some messages in any order in one batch, some of them twice, and some once more later."""
        order = data.draw(st.permutations(range(len(self.in_flight))))
        count = data.draw(st.integers(1, len(order)))
        chosen = [self.in_flight[place] for place in order[:count]]
        doubled = data.draw(st.lists(st.sampled_from(chosen), max_size=3))
        kept = data.draw(st.lists(st.sampled_from(chosen), max_size=2))
        rest = [self.in_flight[place] for place in order[count:]]
        waiting = self._apply([*chosen, *doubled])
        self.in_flight = [*rest, *waiting, *kept][-60:]

    def deliver_all_in_order(self, _data: st.DataObject) -> None:
        self.in_flight = self._apply(self.in_flight)

    def lose(self, data: st.DataObject) -> None:
        self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))

    def _apply(self, batch: Sequence[Delivery]) -> list[Delivery]:
        """What waits for its predecessors, and is not acknowledged."""
        fates = self.do(self.store.apply(*batch))
        return [delivery for delivery, fate in zip(batch, fates, strict=True) if fate is Fate.WAITING]

    # The promises

    def _claimed(self) -> list[tuple[Any, Run]]:
        """Evaluations with the run that claimed them, where that goes on."""
        runs = {run.id: run for run in self.all_runs if not run.ended}
        return [(row, runs[row.run]) for row in self.rows if row.status in OPEN and row.run in runs]

    def finish_a_healthy_run(self, data: st.DataObject) -> None:
        """A claimed run that reports all it has, however its lease stands, is never thrown away."""
        claimed = self._claimed()
        late = [pair for pair in claimed if pair[0].status == Status.QUEUED]
        row, run = data.draw(st.sampled_from([*claimed, *late, *late]))
        reply = self._beat(run)
        assert not reply.abandon
        fault = data.draw(st.booleans())
        if fault:
            run.fault()
        else:
            run.verdict()
        batch = [run.delivery(number, next(self.rounds)) for number in range(reply.next, len(run.sent))]
        if any(delivery.message is not None and delivery.message.body is None for delivery in batch):
            return  # one that cannot be read may have been the last: such a run is given up
        assert self._apply(batch) == []
        after = self._row(row.id)
        if fault:
            # Judged once: in the queue it was judged by a reaper, and only ceases to be of this run.
            judged = row.status != Status.QUEUED
            assert (after.lost, after.token, after.run) == (row.lost + judged, None, None)
            assert after.status in {Status.QUEUED, Status.FAILED}
            assert judged or after.status == Status.QUEUED
            return
        assert after.status == Status.COMPLETED
        (result,) = self.do(
            self.store.execute(
                "SELECT r.run FROM results r JOIN evaluations e ON e.id = r.evaluation AND e.generation = r.generation"
                " WHERE e.id = :id",
                id=row.id,
            )
        )
        assert result.run == run.id

    @invariant()
    def promises_hold(self) -> None:
        if self.touched and self.seen:
            self.do(self._promises_hold())
        self.touched = False

    async def _promises_hold(self) -> None:
        ids = {"ids": list(self.seen)}
        self.rows, events, results, attempts = await self.store.database.read(lambda c: _look(c, ids))
        assert len(self.rows) == len(self.seen)
        for row in self.rows:
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
                self._lapse(which)
            lapsed = self._see_lapsed()
            if lapsed:
                self.do(self.store.ledger.judge_lapsed(lapsed))
            self._wait()
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


async def _look(connection: AsyncConnection, ids: dict[str, list[str]]) -> list[Sequence[Any]]:
    """Everything there is of evaluations. Their clocks are stopped first: time passes where a step says so alone."""
    await connection.execute(
        sa.text(
            "UPDATE evaluations SET not_before = now() + interval '1 h'"
            " WHERE id = ANY(CAST(:ids AS uuid[])) AND status = 1 AND not_before > queue_time"
        ),
        ids,
    )
    of_ids = "= ANY(CAST(:ids AS uuid[]))"
    return [
        (await connection.execute(sa.text(statement), ids)).all()
        for statement in (
            f"SELECT * FROM evaluations WHERE id {of_ids} ORDER BY create_time",
            f"SELECT evaluation, sequence, event FROM events WHERE evaluation {of_ids} ORDER BY evaluation, sequence",
            f"SELECT evaluation, generation, run, summary FROM results WHERE evaluation {of_ids}",
            f"SELECT evaluation, generation, attempt, run FROM attempts WHERE evaluation {of_ids}",
        )
    ]


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
