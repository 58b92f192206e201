"""What the store is given in tests: evaluations as a scheduler admits them, messages as an executor sends them."""

from dataclasses import dataclass, field

from uuid_utils import uuid7

from crucible.internal.v1 import attempt_pb2, heartbeat_pb2, job_pb2, ledger_service_pb2
from crucible.v1 import containment_pb2, evaluation_pb2, event_pb2, execution_pb2, executor_pb2
from crucible_contracts import DEFAULT_TENANT
from crucible_store.ledger.attempts import Delivery, receive

LEASE_SECONDS = 3600.0
"""Leases lapse where a test says so."""


def new_id() -> str:
    return str(uuid7())


def evaluation(
    *,
    source: str = "print(1)",
    runtime: str = "python",
    pool: str = "default",
    request_id: str = "",
    request_hash: str = "v1:" + "0" * 64,
    labels: dict[str, str] | None = None,
    priority: evaluation_pb2.Evaluation.Priority.ValueType = evaluation_pb2.Evaluation.NORMAL,
    max_attempts: int = 3,
) -> ledger_service_pb2.NewEvaluation:
    """Admitted, under a new id."""
    proto = evaluation_pb2.Evaluation(
        id=new_id(),
        tenant=DEFAULT_TENANT,
        runtime=runtime,
        source=source,
        priority=priority,
        labels=labels or {},
        trace_id="0af7651916cd43dd8448eb211c80319c",
    )
    proto.limits.wall_time.seconds = 10
    proto.limits.memory_bytes = 256 << 20
    program = job_pb2.Program(
        files=[job_pb2.ProgramFile(path="main.py", data=source.encode())], entrypoint="main.py"
    )  # fmt: skip
    return ledger_service_pb2.NewEvaluation(
        evaluation=proto,
        program=program,
        pool=pool,
        max_attempts=max_attempts,
        request_id=request_id,
        request_hash=request_hash if request_id else "",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )


def heartbeat(
    executor: executor_pb2.ExecutorReference,
    *,
    pool: str = "default",
    slots: int = 100,
    runtimes: tuple[str, ...] = ("python",),
    runs: "tuple[Run, ...]" = (),
) -> heartbeat_pb2.Heartbeat:
    return heartbeat_pb2.Heartbeat(
        executor=heartbeat_pb2.ExecutorAnnouncement(executor=executor, pool=pool, slots=slots, runtimes=runtimes),
        runs=[run.held() for run in runs],
    )


def an_executor() -> executor_pb2.ExecutorReference:
    return executor_pb2.ExecutorReference(id=new_id(), host="machine-1")


@dataclass(eq=False, repr=False)
class Run:
    """An executor's run of a job; `sent` are its messages by number."""

    job: job_pb2.Job
    id: str = field(default_factory=new_id)
    executor: executor_pb2.ExecutorReference = field(default_factory=an_executor)
    sent: list[bytes] = field(default_factory=list[bytes])
    written: int = 0
    ended: bool = False

    def __repr__(self) -> str:
        return f"Run({self.id[-4:]} of attempt {self.job.attempt} of {self.job.evaluation_id[-4:]})"

    def held(self) -> heartbeat_pb2.HeldRun:
        return heartbeat_pb2.HeldRun(
            evaluation_id=self.job.evaluation_id, attempt=self.job.attempt, token=self.job.token, run=self.id
        )

    def started(self) -> Delivery:
        return self._send(started=event_pb2.Started(executor=self.executor, image_digest="ab" * 32))

    def output(self, text: str = "line\n") -> Delivery:
        chunk = event_pb2.OutputChunk(stream=event_pb2.OutputChunk.STDOUT, offset=self.written, text=text)
        self.written += len(text.encode())
        return self._send(output=chunk)

    def usage(self) -> Delivery:
        return self._send(usage=event_pb2.UsageSample(memory_bytes=len(self.sent)))

    def verdict(self, *, text: str = "", stdout_object: str = "") -> Delivery:
        result = execution_pb2.ExecutionResult(
            outcome=execution_pb2.ExecutionResult.SUCCEEDED,
            cause=execution_pb2.ExecutionResult.PROGRAM,
            exit_code=0,
            stdout=execution_pb2.Output(text=text, size_bytes=len(text.encode())),
            executor=self.executor,
            # Tells in whose name the verdict was given.
            image_digest=self.id,
            containment=containment_pb2.Containment(
                before=containment_pb2.Containment.Look(held=[containment_pb2.Containment.SENTRY_USER])
            ),
        )
        result.timings.queued.CopyFrom(self.job.queue_time)
        result.timings.dispatched.CopyFrom(self.job.dispatch_time)
        self.ended = True
        return self._send(finished=attempt_pb2.RunFinished(result=result, stdout_object=stdout_object))

    def fault(
        self, cause: execution_pb2.ExecutionResult.Cause.ValueType = execution_pb2.ExecutionResult.SANDBOX
    ) -> Delivery:
        self.ended = True
        return self._send(finished=attempt_pb2.RunFinished(fault=attempt_pb2.RunFault(cause=cause)))

    def removed(self, *held: containment_pb2.Containment.Check.ValueType) -> Delivery:
        """What was left of its sandbox: no part of its numbered messages."""
        message = attempt_pb2.AttemptMessage(
            evaluation_id=self.job.evaluation_id,
            attempt=self.job.attempt,
            token=self.job.token,
            run=self.id,
            executor=self.executor,
            removed=attempt_pb2.SandboxRemoved(look=containment_pb2.Containment.Look(held=held)),
        )
        subject = f"crucible.attempts.{self.job.evaluation_id}"
        return receive(subject, f"{self.id}.removed", message.SerializeToString(), lease=None)

    def unknown(self) -> Delivery:
        """Of a kind that this version does not know."""
        return self._send()

    def garbled(self) -> Delivery:
        """Nothing but its id can be read."""
        self.sent.append(b"\xff\xff garbled")
        return self.delivery(len(self.sent) - 1)

    def refused(self) -> Delivery:
        """Readable, but no database takes it: a NUL in a name."""
        bad = executor_pb2.ExecutorReference(id=self.executor.id, host="nul\0host")
        return self._send(bad, started=event_pb2.Started(executor=bad))

    def refused_verdict(self) -> Delivery:
        return self.verdict(stdout_object="outputs/nul\0")

    def delivery(self, number: int, round_: int = 0) -> Delivery:
        """A message as it comes off the stream, first or again."""
        message_id = f"{self.id}.{number}" + (f".{round_}" if round_ else "")
        lease = (self.job.attempt, self.job.token)
        return receive(f"crucible.attempts.{self.job.evaluation_id}", message_id, self.sent[number], lease=lease)

    def _send(
        self,
        executor: executor_pb2.ExecutorReference | None = None,
        *,
        started: event_pb2.Started | None = None,
        output: event_pb2.OutputChunk | None = None,
        usage: event_pb2.UsageSample | None = None,
        finished: attempt_pb2.RunFinished | None = None,
    ) -> Delivery:
        message = attempt_pb2.AttemptMessage(
            evaluation_id=self.job.evaluation_id,
            attempt=self.job.attempt,
            token=self.job.token,
            run=self.id,
            number=len(self.sent),
            executor=executor or self.executor,
            started=started,
            output=output,
            usage=usage,
            finished=finished,
        )
        message.create_time.GetCurrentTime()
        self.sent.append(message.SerializeToString())
        return self.delivery(len(self.sent) - 1)
