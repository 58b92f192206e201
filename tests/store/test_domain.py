"""The protocol's rules as functions: what single messages do to single rows."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from enum import Enum

import pytest
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible.internal.v1 import heartbeat_pb2
from crucible.v1 import evaluation_pb2, execution_pb2
from crucible_contracts.limits import MAX_DISPATCHES
from crucible_store.attempts_consumer import delay_before_next_try
from crucible_store.domain.filters import Outcome, Priority
from crucible_store.domain.folding import Fate, Folded, fold
from crucible_store.domain.judging import judge
from crucible_store.domain.replies import Abandon, Lease, reply
from crucible_store.domain.rows import Executor, Kind, Message, Note, Row
from crucible_store.domain.states import FINAL, MOVES, OPEN, Cause, IllegalMoveError, Reason, Status, Trigger, move

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
ROW = Row(
    id="e",
    tenant="default",
    pool="default",
    status=Status.DISPATCHED,
    status_reason=None,
    cause=None,
    generation=1,
    attempt=1,
    attempt_base=0,
    token="token",
    run=None,
    executor=None,
    run_events=0,
    lost=0,
    max_attempts=3,
    lease_until=NOW + timedelta(seconds=15),
    not_before=NOW,
    last_sequence=2,
    queue_time=NOW,
    start_time=None,
    end_time=None,
)
RUNNING = replace(ROW, status=Status.RUNNING, run="run", executor="x", run_events=1, last_sequence=3)


def message(number: int, kind: Kind = Kind.PROGRESS, *, run: str = "run", parked: bool = False) -> Message:
    return Message(
        attempt=1, token="token", run=run, number=number, kind=kind, executor=Executor("x", "host"),
        cause=Cause.SANDBOX if kind is Kind.FAULT else Cause.PROGRAM, parked=parked,
    )  # fmt: skip


def folded(row: Row, *messages: Message) -> Folded:
    return fold(row, messages, now=NOW, jitter=lambda: 0.5)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Status, evaluation_pb2.Evaluation.Status),
        (Reason, evaluation_pb2.Evaluation.StatusReason),
        (Cause, execution_pb2.ExecutionResult.Cause),
        (Priority, evaluation_pb2.Evaluation.Priority),
        (Outcome, execution_pb2.ExecutionResult.Outcome),
        (Abandon, heartbeat_pb2.RunReply.Abandon),
    ],
    ids=["Status", "Reason", "Cause", "Priority", "Outcome", "Abandon"],
)
def test_the_domains_enums_are_the_contracts(ours: type[Enum], theirs: EnumTypeWrapper) -> None:
    """A verdict whose outcome or cause is not among them is parked, and its run is judged as lost."""
    contract = {name: number for name, number in theirs.items() if number != 0}
    assert {member.name: member.value for member in ours} == contract


@pytest.mark.parametrize("status", list(Status))
@pytest.mark.parametrize("trigger", list(Trigger))
def test_moves_are_those_of_the_table(status: Status, trigger: Trigger) -> None:
    if (status, trigger) in MOVES:
        assert move(status, trigger) is MOVES[status, trigger]
    else:
        with pytest.raises(IllegalMoveError):
            move(status, trigger)


def test_nothing_leaves_a_final_state_but_a_requeue_of_failed() -> None:
    assert {(status, trigger) for status, trigger in MOVES if status in FINAL} == {(Status.FAILED, Trigger.REQUEUED)}


def test_a_whole_run_in_one_batch() -> None:
    result = folded(ROW, message(0, Kind.STARTED), message(1), message(2, Kind.VERDICT))
    assert result.fates == [Fate.APPLIED] * 3
    assert (result.row.status, result.row.cause, result.row.last_sequence) == (Status.COMPLETED, Cause.PROGRAM, 5)
    assert [entry.sequence for entry in result.entries] == [3, 4, 5]
    assert result.row.lease_until is None
    assert result.verdict is not None
    assert result.frees_slot
    assert ROW.status is Status.DISPATCHED, "the row that was given is not changed"


def test_the_order_of_arrival_within_a_run_does_not_matter() -> None:
    result = folded(ROW, message(2, Kind.VERDICT), message(1), message(0, Kind.STARTED))
    assert result.fates == [Fate.APPLIED] * 3
    assert result.row.status is Status.COMPLETED


@pytest.mark.parametrize(
    ("row", "given_message", "fate"),
    [
        (replace(ROW, token="other"), message(0, Kind.STARTED), Fate.DROPPED),
        (replace(ROW, token=None), message(0, Kind.STARTED), Fate.DROPPED),
        (replace(ROW, attempt=2), message(0, Kind.STARTED), Fate.DROPPED),
        (replace(RUNNING, status=Status.CANCELLED), message(1), Fate.DROPPED),
        (replace(RUNNING, status=Status.COMPLETED), message(1, Kind.VERDICT), Fate.DROPPED),
        (replace(RUNNING, status=Status.FAILED), message(1, Kind.VERDICT), Fate.DROPPED),
        (ROW, message(1), Fate.WAITING),
        (replace(ROW, status=Status.QUEUED), message(0, Kind.STARTED), Fate.DROPPED),
        (replace(ROW, status=Status.QUEUED), message(1), Fate.DROPPED),
        (RUNNING, message(0, Kind.STARTED), Fate.DROPPED),
        (RUNNING, message(2), Fate.WAITING),
        (RUNNING, message(1, run="other"), Fate.DROPPED),
        (RUNNING, message(0, Kind.STARTED, run="other"), Fate.DROPPED),
        (RUNNING, message(1), Fate.APPLIED),
        (replace(RUNNING, status=Status.QUEUED), message(1), Fate.APPLIED),
    ],
)
def test_the_fence(row: Row, given_message: Message, fate: Fate) -> None:
    result = folded(row, given_message)
    assert result.fates == [fate]
    assert result.changed == (fate is Fate.APPLIED)
    if fate is not Fate.APPLIED:
        assert (result.row, result.entries, result.attempt, result.verdict) == (row, [], None, None)


def test_two_runs_of_one_job_never_mix() -> None:
    result = folded(ROW, message(0, Kind.STARTED), message(0, Kind.STARTED, run="other"), message(1, run="other"))
    assert result.fates == [Fate.APPLIED, Fate.DROPPED, Fate.DROPPED]
    assert result.row.run == "run"


def test_a_late_result_of_a_claimed_run_counts_from_the_queue() -> None:
    queued = replace(RUNNING, status=Status.QUEUED, lease_until=None, lost=1)
    result = folded(queued, message(1), message(2, Kind.VERDICT))
    assert result.row.status is Status.COMPLETED
    assert not result.frees_slot


def test_a_late_fault_is_not_judged_twice() -> None:
    queued = replace(RUNNING, status=Status.QUEUED, lease_until=None, lost=1)
    result = folded(queued, message(1, Kind.FAULT))
    assert result.fates == [Fate.APPLIED]
    assert (result.row.status, result.row.lost, result.row.token, result.row.run) == (Status.QUEUED, 1, None, None)
    assert result.entries == []


@pytest.mark.parametrize("parked", [False, True])
def test_a_fault_sends_it_back_to_the_queue(parked: bool) -> None:
    result = folded(RUNNING, message(1, Kind.FAULT, parked=parked))
    (entry,) = result.entries
    assert (result.row.status, result.row.lost, result.row.token, result.row.run) == (Status.QUEUED, 1, None, None)
    assert (entry.note, entry.cause) == (Note.REQUEUED, Cause.INFRASTRUCTURE if parked else Cause.SANDBOX)
    assert entry.not_before is not None
    assert timedelta() < entry.not_before - NOW <= timedelta(seconds=1)
    assert result.attempt is not None
    assert result.attempt.end_time is not None


def test_a_verdict_that_was_set_aside_is_a_fault_of_the_platform() -> None:
    result = folded(RUNNING, message(1, Kind.VERDICT, parked=True))
    assert result.row.status is Status.QUEUED
    assert result.verdict is None
    assert [entry.cause for entry in result.entries] == [Cause.INFRASTRUCTURE]


def test_a_start_that_was_set_aside_stands_for_itself() -> None:
    result = folded(ROW, message(0, Kind.STARTED, parked=True), message(1))
    assert result.row.status is Status.RUNNING
    assert [entry.note for entry in result.entries] == [Note.PARKED, Note.MESSAGE]


def test_the_end_of_a_run_that_never_started() -> None:
    verdict, fault = folded(ROW, message(0, Kind.VERDICT)), folded(ROW, message(0, Kind.FAULT))
    assert verdict.row.status is Status.COMPLETED
    assert (fault.row.status, fault.row.lost) == (Status.QUEUED, 1)


@given(
    st.lists(st.tuples(st.sampled_from(["run", "other"]), st.integers(0, 4)), max_size=20),
    st.sampled_from([ROW, RUNNING, replace(RUNNING, status=Status.QUEUED)]),
)
@settings(max_examples=300)
def test_batches_may_be_cut_anywhere(parts: list[tuple[str, int]], row: Row) -> None:
    """One batch, or each message for itself as often as it waits: the same history."""

    def say(run: str, number: int) -> Message:
        kind = Kind.STARTED if number == 0 else Kind.VERDICT if number == 4 else Kind.PROGRESS
        return message(number, kind, run=run)

    messages = [say(*part) for part in parts]
    together = folded(row, *messages)
    alone, waiting = row, messages
    for _ in range(len(messages) + 1):
        left: list[Message] = []
        for one in waiting:
            result = folded(alone, one)
            alone = result.row
            left += [one] if result.fates == [Fate.WAITING] else []
        waiting = left
    if together.row.run == alone.run or Status.COMPLETED in (together.row.status, alone.status):
        # Which of two runs claims is the order's to decide; that one of them does, is not.
        assert (together.row.last_sequence > row.last_sequence) == (alone.last_sequence > row.last_sequence)
    if len({run for run, _ in parts}) <= 1:
        assert together.row == alone


@pytest.mark.parametrize(("lost", "status"), [(0, Status.QUEUED), (1, Status.QUEUED), (2, Status.FAILED)])
def test_a_begun_attempt_that_is_lost_counts(lost: int, status: Status) -> None:
    row = replace(RUNNING, lost=lost)
    entry = judge(row, cause=Cause.SANDBOX, now=NOW, jitter=0, keeps_run=True)
    assert (row.status, row.lost, row.lease_until) == (status, lost + 1, None)
    if status is Status.FAILED:
        assert (row.status_reason, row.cause, row.token, row.run) == (
            Reason.ATTEMPTS_EXHAUSTED, Cause.SANDBOX, None, None
        )  # fmt: skip
        assert entry.note is Note.FAILED
    else:
        assert (row.token, row.run, entry.note) == ("token", "run", Note.REQUEUED)


@pytest.mark.parametrize("attempt", range(1, MAX_DISPATCHES + 1))
def test_an_attempt_that_never_began_costs_none(attempt: int) -> None:
    row = replace(ROW, attempt=attempt + 5, attempt_base=5)
    judge(row, cause=Cause.INFRASTRUCTURE, now=NOW, jitter=0, keeps_run=True)
    assert row.lost == 0
    if attempt == MAX_DISPATCHES:
        assert (row.status, row.cause) == (Status.FAILED, Cause.INFRASTRUCTURE)
        assert row.status_reason is Reason.DISPATCHES_EXHAUSTED
    else:
        assert row.status is Status.QUEUED
        wait = (row.not_before - NOW).total_seconds()
        assert wait == (0 if attempt == 1 else min(60, 2 ** (attempt - 2)))


@given(lost=st.integers(0, 18), jitter=st.floats(0, 1, exclude_max=True))
def test_backoff_grows_and_is_bounded(lost: int, jitter: float) -> None:
    row = replace(RUNNING, lost=lost, attempt=lost + 1, max_attempts=20)
    judge(row, cause=Cause.SANDBOX, now=NOW, jitter=jitter, keeps_run=False)
    whole = min(30.0, 2.0**lost)
    assert whole / 2 <= (row.not_before - NOW).total_seconds() <= whole


@pytest.mark.parametrize("status", sorted(FINAL | {Status.QUEUED}))
def test_only_a_lease_is_judged(status: Status) -> None:
    with pytest.raises(IllegalMoveError):
        judge(replace(ROW, status=status), cause=Cause.SANDBOX, now=NOW, jitter=0, keeps_run=True)


def lease(status: Status, run: str | None, attempt: int = 1) -> Lease:
    return Lease(status, attempt, "token", run, 7)


@pytest.mark.parametrize(
    ("held", "answer"),
    [
        (None, Abandon.SETTLED),
        (lease(Status.COMPLETED, None), Abandon.SETTLED),
        (lease(Status.FAILED, "run"), Abandon.SETTLED),
        (lease(Status.CANCELLED, "run"), Abandon.CANCELLED),
        (lease(Status.RUNNING, "run"), 7),
        (lease(Status.DISPATCHED, "run"), 7),
        (lease(Status.DISPATCHED, None), 7),
        (lease(Status.QUEUED, "run"), 7),
        (lease(Status.QUEUED, None), Abandon.FENCED),
        (lease(Status.RUNNING, "other"), Abandon.FENCED),
        (lease(Status.DISPATCHED, "other"), Abandon.FENCED),
        (lease(Status.DISPATCHED, None, attempt=2), Abandon.FENCED),
    ],
)
def test_replies(held: Lease | None, answer: Abandon | int) -> None:
    assert reply(held, attempt=1, token="token", run="run") == answer


def test_open_and_final_are_all_there_is() -> None:
    assert set(Status) == OPEN | FINAL
    assert not OPEN & FINAL


def test_a_waiting_message_is_given_up_by_its_age_and_its_deliveries_together() -> None:
    assert [delay_before_next_try(n, 1) for n in (1, 2, 3)] == [0.1, 0.2, 0.4]
    assert delay_before_next_try(7, 1) == 5
    assert delay_before_next_try(1, 3600) == 0.1, "an outage of an hour is no hour of trying"
    assert delay_before_next_try(40, 3) == 5, "stores that died are no time that passed"
    assert delay_before_next_try(10, 31) is None
