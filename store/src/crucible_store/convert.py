"""The one place where protobuf meets the domain and the rows."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, cast

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from crucible.internal.v1 import attempt_pb2, heartbeat_pb2, job_pb2, ledger_service_pb2
from crucible.v1 import containment_pb2, evaluation_pb2, event_pb2, execution_pb2
from crucible_contracts import subjects
from crucible_contracts.limits import INLINE_PROGRAM_BYTES
from crucible_store.domain.filters import Outcome
from crucible_store.domain.replies import Abandon
from crucible_store.domain.rows import Entry, Executor, Kind, Message, Note, Row
from crucible_store.domain.states import Cause, Reason, Status

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_FIRST_SECOND = -62_135_596_800
_LAST_SECOND = 253_402_300_799
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_BULK = ("source", "files", "stdin", "stdin_bytes")
"""Fields of an evaluation that lists leave out."""
_SET_BY_STORE = (
    "status",
    "status_reason",
    "cause",
    "generation",
    "attempt",
    "create_time",
    "start_time",
    "end_time",
    "result",
)

_CAUSES = frozenset(Cause)
_OUTCOMES = frozenset(Outcome)
_FAULTS = frozenset({Cause.SANDBOX, Cause.IMAGE, Cause.INFRASTRUCTURE})


class Columns(Protocol):
    """A row read from the database, by the names of its columns."""

    def __getitem__(self, name: str, /) -> Any:  # noqa: ANN401  as many types as columns
        """The value of a column."""
        ...


class UnreadableError(Exception):
    """A message of an executor that cannot be decoded, or lacks what every message has."""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """A row of `events`, and what its announcement needs."""

    evaluation: str
    tenant: str
    sequence: int
    attempt: int
    stream: int | None
    stream_offset: int | None
    data: bytes
    """Serialized crucible.v1.Event."""

    @property
    def subject(self) -> str:
        """Where it is announced."""
        return subjects.events(self.tenant, self.evaluation)


@dataclass(frozen=True, slots=True)
class StoredResult:
    """The columns of a row of `results` that come from the verdict."""

    outcome: int
    summary: bytes
    bulk: bytes


@dataclass(frozen=True, slots=True)
class Ending:
    """How an evaluation came to its final state."""

    row: Row
    result: StoredResult | None


@dataclass(frozen=True, slots=True)
class Admitted:
    """A new evaluation, as the ledger writes it."""

    id: str
    tenant: str
    pool: str
    runtime: str
    priority: int
    max_attempts: int
    request_id: str
    request_hash: str
    traceparent: str
    labels: Mapping[str, str]
    summary: bytes
    bulk: bytes
    program: bytes | None
    """Serialized `Program`; None: the large one, in the object store."""
    program_sha256: str | None
    large_program: bytes | None


@dataclass(frozen=True, slots=True)
class PoolState:
    """What a pool can take now."""

    runtimes: frozenset[str]
    """That live executors offer."""
    free_slots: int


def is_uuid(text: str) -> bool:
    """Whether it is a UUID as everybody here writes them: in lower case."""
    return _UUID.fullmatch(text) is not None


def timestamp(time: datetime) -> Timestamp:
    """An aware time as protobuf has it."""
    delta = time - _EPOCH
    return Timestamp(seconds=delta.days * 86400 + delta.seconds, nanos=delta.microseconds * 1000)


def time_of(stamp: Timestamp) -> datetime | None:
    """The time a message names; None where it names none that exists."""
    if not stamp.seconds or not _FIRST_SECOND <= stamp.seconds <= _LAST_SECOND or not 0 <= stamp.nanos < 10**9:
        return None
    return _EPOCH + timedelta(seconds=stamp.seconds, microseconds=stamp.nanos // 1000)


def admitted(new: ledger_service_pb2.NewEvaluation) -> Admitted:
    """Splits a new evaluation into what is stored."""
    summary = evaluation_pb2.Evaluation()
    summary.CopyFrom(new.evaluation)
    for name in (*_BULK, *_SET_BY_STORE):
        summary.ClearField(name)
    bulk = evaluation_pb2.Evaluation(files=new.evaluation.files)
    for name in ("source", "stdin", "stdin_bytes"):
        if new.evaluation.HasField(name):
            setattr(bulk, name, getattr(new.evaluation, name))
    program = new.program.SerializeToString(deterministic=True)
    large = len(program) > INLINE_PROGRAM_BYTES
    return Admitted(
        id=new.evaluation.id,
        tenant=new.evaluation.tenant,
        pool=new.pool,
        runtime=new.evaluation.runtime,
        priority=int(new.evaluation.priority),
        max_attempts=new.max_attempts,
        request_id=new.request_id,
        request_hash=new.request_hash,
        traceparent=new.traceparent,
        labels=dict(new.evaluation.labels),
        summary=summary.SerializeToString(),
        bulk=bulk.SerializeToString(),
        program=None if large else program,
        program_sha256=hashlib.sha256(program).hexdigest() if large else None,
        large_program=program if large else None,
    )


def message(data: bytes) -> tuple[str, Message]:
    """The evaluation and the message in what an executor published. Raises UnreadableError.

    A message whose kind is not known, and a `finished` that says nothing, come out as parked.
    """
    try:
        proto = attempt_pb2.AttemptMessage.FromString(data)
    except DecodeError as exc:
        raise UnreadableError from exc
    if not is_uuid(proto.evaluation_id) or not is_uuid(proto.run) or proto.number < 0:
        raise UnreadableError
    kind, parked, cause, objects = Kind.PROGRESS, False, Cause.INFRASTRUCTURE, ("", "")
    match proto.WhichOneof("kind"):
        case "started":
            kind = Kind.STARTED
        case "finished":
            finished = proto.finished
            objects = (finished.stdout_object, finished.stderr_object)
            kind = Kind.FAULT
            match finished.WhichOneof("end"):
                case "result" if finished.result.outcome in _OUTCOMES and finished.result.cause in _CAUSES:
                    kind, cause = Kind.VERDICT, Cause(finished.result.cause)
                case "fault":
                    cause = Cause(finished.fault.cause) if finished.fault.cause in _FAULTS else cause
                case _:
                    parked = True
        case "removed":
            kind = Kind.REMOVED
        case "output" if proto.output.stream in (1, 2) and proto.output.offset >= 0:
            pass
        case "output_elided" | "usage":
            pass
        case _:
            parked = True
    return proto.evaluation_id, Message(
        attempt=proto.attempt,
        token=proto.token,
        run=proto.run,
        number=proto.number,
        kind=kind,
        body=proto,
        executor=Executor(proto.executor.id, proto.executor.host),
        time=time_of(proto.create_time),
        cause=cause,
        objects=objects,
        parked=parked,
    )


def event(evaluation: str, tenant: str, entry: Entry) -> StoredEvent:
    """The event an entry of the history becomes."""
    proto = _event(evaluation, entry.sequence, entry.generation, entry.attempt, entry.time)
    stream: int | None = None
    offset: int | None = None
    match entry.note:
        case Note.MESSAGE:
            assert entry.message is not None
            body: attempt_pb2.AttemptMessage = entry.message.body
            match body.WhichOneof("kind"):
                case "started":
                    proto.started.CopyFrom(body.started)
                case "output":
                    proto.output.CopyFrom(body.output)
                    stream, offset = int(body.output.stream), body.output.offset
                case "output_elided":
                    proto.output_elided.CopyFrom(body.output_elided)
                case "usage":
                    proto.usage.CopyFrom(body.usage)
                case _:
                    result = body.finished.result
                    proto.finished.status = evaluation_pb2.Evaluation.COMPLETED
                    proto.finished.cause = result.cause
                    proto.finished.result.CopyFrom(result)
        case Note.PARKED:
            assert entry.message is not None
            proto.message_parked.number = entry.message.number
        case Note.REQUEUED:
            assert entry.cause is not None
            assert entry.not_before is not None
            proto.requeued.cause = _cause(entry.cause)
            proto.requeued.not_before.CopyFrom(timestamp(entry.not_before))
        case Note.FAILED:
            assert entry.cause is not None
            assert entry.reason is not None
            proto.failed.cause = _cause(entry.cause)
            proto.failed.reason = _reason(entry.reason)
    return StoredEvent(
        evaluation, tenant, entry.sequence, entry.attempt, stream, offset, proto.SerializeToString()
    )  # fmt: skip


def queued_event(
    evaluation: str, tenant: str, *, sequence: int, generation: int, attempt: int, time: datetime
) -> StoredEvent:
    """It entered the queue, first or by a requeue of a caller."""
    proto = _event(evaluation, sequence, generation, attempt, time)
    proto.queued.SetInParent()
    return StoredEvent(evaluation, tenant, sequence, attempt, None, None, proto.SerializeToString())


def dispatched_event(
    evaluation: str, tenant: str, *, sequence: int, generation: int, attempt: int, time: datetime, pool: str
) -> StoredEvent:
    """It was leased."""
    proto = _event(evaluation, sequence, generation, attempt, time)
    proto.dispatched.pool = pool
    return StoredEvent(evaluation, tenant, sequence, attempt, None, None, proto.SerializeToString())


def cancelled_event(
    evaluation: str, tenant: str, *, sequence: int, generation: int, attempt: int, time: datetime
) -> StoredEvent:
    """A caller cancelled it."""
    proto = _event(evaluation, sequence, generation, attempt, time)
    proto.cancelled.cause = execution_pb2.ExecutionResult.USER
    return StoredEvent(evaluation, tenant, sequence, attempt, None, None, proto.SerializeToString())


def result(verdict: Message) -> StoredResult:
    """The two halves of a verdict: what lists show; the texts of its outputs and what is known of its sandbox."""
    body: attempt_pb2.AttemptMessage = verdict.body
    summary = execution_pb2.ExecutionResult()
    summary.CopyFrom(body.finished.result)
    bulk = execution_pb2.ExecutionResult()
    for name in ("stdout", "stderr"):
        if body.finished.result.HasField(name):
            getattr(bulk, name).text = getattr(summary, name).text
            getattr(summary, name).ClearField("text")
    if summary.HasField("containment"):
        bulk.containment.CopyFrom(summary.containment)
        summary.ClearField("containment")
    return StoredResult(int(summary.outcome), summary.SerializeToString(), bulk.SerializeToString())


def afterwards(removed: Message) -> bytes:
    """What was told of a sandbox after its verdict: a part of the result, which its other parts merge with."""
    body: attempt_pb2.AttemptMessage = removed.body
    known = containment_pb2.Containment(after=body.removed.look)
    return execution_pb2.ExecutionResult(containment=known).SerializeToString()


def evaluation(row: Columns, *, now: datetime, pool: PoolState | None) -> evaluation_pb2.Evaluation:
    """An evaluation as callers see it, from the columns that `reading` selects.

    `pool` decides why a queued one waits; None: it is not said.
    """
    proto = evaluation_pb2.Evaluation.FromString(row["summary"] + row["bulk"])
    proto.status = row["status"]
    proto.generation = row["generation"]
    proto.attempt = row["attempt"]
    proto.create_time.CopyFrom(timestamp(row["create_time"]))
    for name in ("start_time", "end_time"):
        if row[name] is not None:
            getattr(proto, name).CopyFrom(timestamp(row[name]))
    if row["cause"] is not None:
        proto.cause = row["cause"]
    reason: int | None = row["status_reason"]
    if row["status"] == Status.QUEUED:
        reason = waiting_for(row["runtime"], row["not_before"], now, pool)
    if reason is not None:
        proto.status_reason = _reason(Reason(reason))
    if row["result_summary"] is not None:
        proto.result.MergeFromString(row["result_summary"] + row["result_bulk"])
        if row["result_bulk"]:
            # Rows of a time when the text had no presence: there an empty one is not written.
            for name in ("stdout", "stderr"):
                if proto.result.HasField(name) and not getattr(proto.result, name).HasField("text"):
                    getattr(proto.result, name).text = ""
    return proto


def ended(row: Mapping[str, Any], ending: Ending) -> evaluation_pb2.Evaluation:
    """An evaluation as callers see it once it has ended, from the columns read before: what a read would give now."""
    names = ("status", "status_reason", "cause", "generation", "attempt", "start_time", "end_time")
    result = ending.result
    after = {
        **row,
        **{name: getattr(ending.row, name) for name in names},
        "result_summary": result.summary if result else None,
        "result_bulk": result.bulk if result else None,
    }
    return evaluation(after, now=row["now"], pool=None)


def waiting_for(runtime: str, not_before: datetime, now: datetime, pool: PoolState | None) -> Reason | None:
    """Why a queued evaluation is not leased now; None: it is about to be."""
    if not_before > now:
        return Reason.RETRY_BACKOFF
    if pool is None:
        return None
    if runtime not in pool.runtimes:
        return Reason.RUNTIME_NOT_OFFERED
    return Reason.WAITING_FOR_CAPACITY if pool.free_slots <= 0 else None


def job(row: Columns, *, dispatch_time: datetime) -> ledger_service_pb2.LeasedJob:
    """A lease with its program, from the columns that `ledger.leasing` selects."""
    summary = evaluation_pb2.Evaluation.FromString(row["summary"])
    proto = job_pb2.Job(
        evaluation_id=row["id"],
        attempt=row["attempt"],
        token=row["token"],
        runtime=row["runtime"],
        limits=summary.limits,
        queue_time=timestamp(row["queue_time"]),
        dispatch_time=timestamp(dispatch_time),
    )
    if row["program"] is not None:
        # SetInParent: an empty program is one too.
        proto.program.SetInParent()
        proto.program.MergeFromString(row["program"])
    else:
        proto.program_sha256 = row["program_sha256"]
    return ledger_service_pb2.LeasedJob(job=proto, traceparent=row["traceparent"])


def run_reply(run: str, answer: Abandon | int) -> heartbeat_pb2.RunReply:
    """What an executor is told of a run."""
    if isinstance(answer, int):
        return heartbeat_pb2.RunReply(run=run, next=answer)
    return heartbeat_pb2.RunReply(run=run, abandon=cast("heartbeat_pb2.RunReply.Abandon.ValueType", answer.value))


def events_of(rows: Sequence[bytes]) -> list[event_pb2.Event]:
    """Stored events, decoded."""
    return [event_pb2.Event.FromString(row) for row in rows]


def _event(evaluation: str, sequence: int, generation: int, attempt: int, time: datetime) -> event_pb2.Event:
    return event_pb2.Event(
        evaluation_id=evaluation,
        sequence=sequence,
        generation=generation,
        attempt=attempt,
        create_time=timestamp(time),
    )


def _cause(cause: Cause) -> execution_pb2.ExecutionResult.Cause.ValueType:
    return cast("execution_pb2.ExecutionResult.Cause.ValueType", int(cause))


def _reason(reason: Reason) -> evaluation_pb2.Evaluation.StatusReason.ValueType:
    return cast("evaluation_pb2.Evaluation.StatusReason.ValueType", int(reason))
