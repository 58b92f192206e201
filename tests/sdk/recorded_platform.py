# ruff: noqa: ANN401  one servicer plays every method, so its contexts and requests have no one type
"""Scheduler and store as a real gRPC server of the generated contracts that gives prepared answers and records calls.

It fails the test when a prepared answer was not used, or a call came that nothing was prepared for.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message
from google.rpc import (  # pyright: ignore[reportMissingTypeStubs]  typed by its .pyi files, which no py.typed announces
    error_details_pb2,
    status_pb2,
)

from crucible.v1 import (
    evaluation_query_service_pb2_grpc,
    evaluation_service_pb2_grpc,
    runtime_service_pb2_grpc,
)


@dataclass(frozen=True)
class Failure:
    """An answer that is an error."""

    code: grpc.StatusCode
    message: str = "no"
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    violations: tuple[tuple[str, str], ...] = ()
    retry_after: float | None = None

    def status(self) -> status_pb2.Status:
        number: int = self.code.value[0]
        status = status_pb2.Status(code=number, message=self.message)
        status.details.add().Pack(error_details_pb2.ErrorInfo(reason=self.reason, metadata=self.metadata))
        bad = error_details_pb2.BadRequest()
        for name, description in self.violations:
            bad.field_violations.add(field=name, description=description)
        status.details.add().Pack(bad)
        if self.retry_after is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromNanoseconds(int(self.retry_after * 1e9))
            status.details.add().Pack(retry)
        return status


@dataclass(frozen=True)
class Messages:
    """An answer of a stream: these, then the failure, or nothing more for ever, or its good end."""

    messages: Sequence[Message]
    failure: Failure | None = None
    hang: bool = False


@dataclass(frozen=True)
class Hang:
    """No answer until the caller leaves."""


Answer = Message | Failure | Messages | Hang | Callable[[Any], Any]
"""A callable gets the request and gives the answer."""


@dataclass(frozen=True)
class Call:
    method: str
    request: Any
    metadata: dict[str, str | bytes]
    seconds_left: float | None


class RecordedPlatform:
    """An async context manager. One server plays both services."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.left: list[str] = []
        """Methods whose caller left before the answer."""
        self._prepared: dict[str, list[Answer]] = defaultdict(list)
        self._always: dict[str, Answer] = {}
        self._unprepared: list[str] = []
        self._server: grpc.aio.Server | None = None
        self._port = 0

    async def __aenter__(self) -> "RecordedPlatform":
        await self.start()
        return self

    async def __aexit__(self, exc_type: object, *_: object) -> None:
        await self.stop()
        if exc_type is None:
            unused = {method: len(answers) for method, answers in self._prepared.items() if answers}
            assert not unused, f"prepared answers were not used: {unused}"
            assert not self._unprepared, f"calls that nothing was prepared for: {self._unprepared}"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def prepare(self, method: str, *answers: Answer) -> None:
        """The next answers of a method, each to be used exactly once."""
        self._prepared[method].extend(answers)

    def always(self, method: str, answer: Answer) -> None:
        """The answer of a method when none is prepared, any number of times."""
        self._always[method] = answer

    def called(self, method: str) -> list[Call]:
        return [call for call in self.calls if call.method == method]

    async def wait_called(self, method: str, times: int = 1) -> None:
        await eventually(lambda: len(self.called(method)) >= times)

    async def start(self) -> None:
        """Starts, again on the same port."""
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 2**26)])
        servicer: Any = _Servicer(self)
        evaluation_service_pb2_grpc.add_EvaluationServiceServicer_to_server(servicer, server)
        evaluation_query_service_pb2_grpc.add_EvaluationQueryServiceServicer_to_server(servicer, server)
        runtime_service_pb2_grpc.add_RuntimeServiceServicer_to_server(servicer, server)
        self._port = server.add_insecure_port(f"127.0.0.1:{self._port}")
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Stops at once: calls under way are lost."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def answer(self, method: str, request: Message, context: Any) -> AsyncIterator[Message]:
        metadata = dict(context.invocation_metadata())
        self.calls.append(Call(method, request, metadata, context.time_remaining()))
        answers = self._prepared[method]
        answer = answers.pop(0) if answers else self._always.get(method)
        if answer is None:
            self._unprepared.append(method)
            answer = Failure(grpc.StatusCode.DATA_LOSS, f"nothing is prepared for {method}", reason="UNPREPARED")
        if not isinstance(answer, Message | Failure | Messages | Hang):
            answer = answer(request)
        if isinstance(answer, Message):
            answer = Messages([answer])
        if isinstance(answer, Hang):
            answer = Messages([], hang=True)
        if isinstance(answer, Failure):
            answer = Messages([], failure=answer)
        try:
            for message in answer.messages:
                yield message
            if answer.hang:
                await asyncio.Event().wait()
        except (asyncio.CancelledError, GeneratorExit):
            self.left.append(method)
            raise
        if answer.failure is not None:
            failure = answer.failure
            details = (("grpc-status-details-bin", failure.status().SerializeToString()),) if failure.reason else ()
            await context.abort(failure.code, failure.message, trailing_metadata=details)


async def eventually(holds: Callable[[], bool]) -> None:
    """Waits until it holds."""
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110  what is waited for has no event
            await asyncio.sleep(0.01)


UNARY = [
    *("CreateEvaluation", "BatchCreateEvaluations", "RunEvaluation", "CancelEvaluation", "RequeueEvaluation"),
    *("GetEvaluation", "ListEvaluations", "WaitEvaluation", "ListEvents", "ListRuntimes"),
]
STREAMING = ["WatchEvaluation", "ReadOutput"]


class _Servicer:
    def __init__(self, platform: RecordedPlatform) -> None:
        for name in UNARY:
            setattr(self, name, _unary(platform, name))
        for name in STREAMING:
            setattr(self, name, _streaming(platform, name))


def _unary(platform: RecordedPlatform, name: str) -> Callable[..., Any]:
    async def method(request: Message, context: Any) -> Message:
        [message] = [message async for message in platform.answer(name, request, context)]
        return message

    return method


def _streaming(platform: RecordedPlatform, name: str) -> Callable[..., Any]:
    async def method(request: Message, context: Any) -> AsyncIterator[Message]:
        async for message in platform.answer(name, request, context):
            yield message

    return method
