# ruff: noqa: ANN401  fields of messages are passed on as they are
"""Messages of the contract for tests."""

from collections.abc import Sequence
from typing import Any

from google.api import httpbody_pb2  # pyright: ignore[reportMissingTypeStubs]  typed by .pyi files without a py.typed

from crucible.v1 import evaluation_pb2, evaluation_query_service_pb2, event_pb2, execution_pb2, runtime_pb2
from crucible.v1 import runtime_service_pb2 as runtime_service
from crucible_client.program import to_duration

ID = "01900000-0000-7000-8000-000000000001"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"

Status = evaluation_pb2.Evaluation.Status
Outcome = execution_pb2.ExecutionResult.Outcome
Cause = execution_pb2.ExecutionResult.Cause


def evaluation(
    status: str = "QUEUED", *, evaluation_id: str = ID, result: execution_pb2.ExecutionResult | None = None, **more: Any
) -> evaluation_pb2.Evaluation:
    message = evaluation_pb2.Evaluation(
        id=evaluation_id,
        runtime="python",
        status=Status.Value(status),
        generation=1,
        trace_id=TRACE,
        result=result,
        **more,
    )
    message.create_time.FromSeconds(1_780_000_000)
    return message


def verdict(
    outcome: str = "SUCCEEDED", *, stdout: bytes = b"", stderr: bytes = b"", detail: str = "", **termination: Any
) -> execution_pb2.ExecutionResult:
    if not termination and outcome == "SUCCEEDED":
        termination = {"exit_code": 0}
    cause = Cause.LIMIT if outcome.endswith("EXCEEDED") else Cause.PROGRAM
    return execution_pb2.ExecutionResult(
        outcome=Outcome.Value(outcome),
        cause=cause,
        findings=[execution_pb2.Finding(outcome=Outcome.Value(outcome), cause=cause, detail=detail)],
        stdout=execution_pb2.Output(text=stdout.decode(errors="replace"), size_bytes=len(stdout)),
        stderr=execution_pb2.Output(text=stderr.decode(errors="replace"), size_bytes=len(stderr)),
        usage=execution_pb2.Usage(
            wall_time=to_duration(0.25), cpu_time=to_duration(0.125), peak_memory_bytes=12 * 2**20
        ),
        **termination,
    )


def completed(outcome: str = "SUCCEEDED", **result: Any) -> evaluation_pb2.Evaluation:
    message = evaluation("COMPLETED", result=verdict(outcome, **result), attempt=1)
    message.cause = message.result.cause
    return message


def output(
    sequence: int, content: bytes, *, offset: int = 0, stream: str = "STDOUT", attempt: int = 1
) -> event_pb2.Event:
    chunk = event_pb2.OutputChunk(stream=event_pb2.OutputChunk.Stream.Value(stream), offset=offset)
    try:
        chunk.text = content.decode()
    except UnicodeDecodeError:
        chunk.data = content
    return event(sequence, attempt=attempt, output=chunk)


def event(sequence: int, *, attempt: int = 1, **kind: Any) -> event_pb2.Event:
    return event_pb2.Event(evaluation_id=ID, sequence=sequence, generation=1, attempt=attempt, **kind)


def queued(sequence: int = 1) -> event_pb2.Event:
    return event(sequence, attempt=0, queued=event_pb2.Queued())


def finished(sequence: int, *, attempt: int = 1, outcome: str = "SUCCEEDED") -> event_pb2.Event:
    return event(sequence, attempt=attempt, finished=event_pb2.Finished(result=verdict(outcome)))


def body(content: bytes, *, offset: int | None = None, length: int = 0, size: int = 0) -> httpbody_pb2.HttpBody:
    message = httpbody_pb2.HttpBody(content_type="application/octet-stream", data=content)
    if offset is not None:
        part = evaluation_query_service_pb2.OutputSlice(offset=offset, length=length, size_bytes=size, complete=True)
        message.extensions.add().Pack(part)
    return message


def runtimes(*names_and_entrypoints: tuple[str, str]) -> runtime_service.ListRuntimesResponse:
    known: Sequence[tuple[str, str]] = names_and_entrypoints or (("bash", "main.sh"), ("python", "main.py"))
    return runtime_service.ListRuntimesResponse(
        runtimes=[
            runtime_pb2.Runtime(name=name, display_name=name.title(), entrypoint=entrypoint, available=True)
            for name, entrypoint in known
        ]
    )
