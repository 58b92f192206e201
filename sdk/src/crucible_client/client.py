"""The typed client."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from datetime import timedelta
from types import TracebackType
from typing import Self, Unpack

from google.api import httpbody_pb2  # pyright: ignore[reportMissingTypeStubs]  typed by .pyi files without a py.typed

from crucible.v1 import (
    evaluation_query_service_pb2,
    evaluation_query_service_pb2_grpc,
    evaluation_service_pb2,
    evaluation_service_pb2_grpc,
    runtime_service_pb2,
    runtime_service_pb2_grpc,
)
from crucible_client.addresses import find_addresses
from crucible_client.calls import CALL_SECONDS, Backoff, Connection
from crucible_client.errors import CrucibleError, DeadlineError, InternalError
from crucible_client.messages import build
from crucible_client.program import ProgramOptions, Submittable, to_duration, to_evaluation
from crucible_client.trace import new_traceparent
from crucible_client.views import Evaluation, Event, Runtime, Stream

WAIT_SECONDS = 30.0
"""One wait at the server at most; a longer one is made of several, so that a replica that died is noticed."""

STREAM_SECONDS = 600.0
"""Deadline of one stream; a watch that lasts longer is resumed."""

BATCH_SIZE = 500
"""Evaluations in one call of `create_many` at most ..."""
BATCH_BYTES = 8 * 1024 * 1024
"""... and their bytes, where it is more than one."""


class Client:
    """A connection to Crucible; an async context manager.

        async with Client() as crucible:
            evaluation = await crucible.run("print(1)", runtime="python", limits=Limits(wall_time=5))
            print(evaluation.result.stdout)

    Every method raises CrucibleError for whatever goes wrong on the way; see `crucible_client.errors`. While the
    platform is unavailable, calls that are safe to repeat are repeated for `patience` seconds: reads, and creations
    too, since they carry a request id. One client can make any number of calls at once, in one event loop.
    """

    def __init__(
        self,
        *,
        scheduler: str | None = None,
        store: str | None = None,
        patience: float = 30.0,
        traceparent: Callable[[], str] = new_traceparent,
    ) -> None:
        """Reads the settings; connects at the first call.

        Args:
            scheduler: gRPC target of the scheduler: `host:port`, `dns:///name:port`, `ipv4:a:1,b:2`. Default: the
                variable CRUCIBLE_SCHEDULER_URL, else `scheduler` in ~/.config/crucible/client.toml, which `crucible up`
                writes, else 127.0.0.1:8081.
            store: The same for the store: CRUCIBLE_STORE_URL, `store`, 127.0.0.1:8082.
            patience: How many seconds to keep trying while the platform is unavailable, from the first failure on. A
                server that was never reached gets 2 s.
            traceparent: Gives the W3C `traceparent` of each call. Default: each call begins a trace of its own.

        Raises:
            ConfigurationError: client.toml cannot be read.
        """
        self.addresses = find_addresses(scheduler, store)
        self._patience = patience
        self._traceparent = traceparent
        self._opened: _Services | None = None

    async def __aenter__(self) -> Self:
        self._opened = _Services(
            Connection("scheduler", self.addresses.scheduler, patience=self._patience, traceparent=self._traceparent),
            Connection("store", self.addresses.store, patience=self._patience, traceparent=self._traceparent),
        )
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        opened, self._opened = self._services, None
        await opened.close()

    @property
    def _services(self) -> _Services:
        if self._opened is None:
            raise RuntimeError("the client is not open: use `async with Client() as crucible:`")
        return self._opened

    async def create(
        self, program: Submittable = None, /, *, request_id: str | None = None, **options: Unpack[ProgramOptions]
    ) -> Evaluation:
        """Submits a program. When it returns, the evaluation is stored durably and will be run.

        Args:
            program: The source, with the other fields of `Program` as keywords; or a Program; or a message of the
                contract. None: the program is in `files`.
            request_id: Makes it safe to submit again, also from another process: the same id with the same program
                gives the same evaluation. 1 to 255 printable ASCII characters. Default: a new id, which makes this
                call's own retries safe.
            **options: Fields of `Program`.

        Raises:
            InvalidRequestError: A field breaks a rule (`violations`), or the runtime is not known.
            ConflictError: The request id was used with another program.
        """
        services = self._services
        request = build(
            evaluation_service_pb2.CreateEvaluationRequest,
            evaluation=to_evaluation(program, **options),
            request_id=request_id or _new_request_id(),
        )
        return Evaluation(await services.scheduler.unary(services.commands.CreateEvaluation, request))

    async def create_many(
        self, programs: Iterable[Submittable], *, request_ids: Sequence[str] | None = None
    ) -> Sequence[Evaluation]:
        """Submits many, in calls of up to 500, each of which accepts all its programs or none. Returns them in order.

        Args:
            programs: Any number of Programs or messages.
            request_ids: One for each. With them, a call that failed half way can be made again and repeats nothing.
        """
        services = self._services
        messages = [to_evaluation(program) for program in programs]
        ids = request_ids or [_new_request_id() for _ in messages]
        requests = [
            build(evaluation_service_pb2.CreateEvaluationRequest, evaluation=message, request_id=request_id)
            for message, request_id in zip(messages, ids, strict=True)
        ]
        accepted: list[Evaluation] = []
        for batch in _batches(requests):
            response = await services.scheduler.unary(
                services.commands.BatchCreateEvaluations,
                evaluation_service_pb2.BatchCreateEvaluationsRequest(requests=batch),
                timeout=2 * CALL_SECONDS,
            )
            accepted.extend(Evaluation(message) for message in response.evaluations)
        return accepted

    async def run(
        self,
        program: Submittable = None,
        /,
        *,
        request_id: str | None = None,
        timeout: float | timedelta | None = None,
        **options: Unpack[ProgramOptions],
    ) -> Evaluation:
        """Submits a program and waits until it is final. Arguments and errors as for `create`.

        Args:
            program: As in `create`.
            request_id: As in `create`.
            timeout: How long to wait, in seconds. Default: as long as it takes. After it the current state is returned
                (`final` is False) and the program keeps running.
            **options: Fields of `Program`.
        """
        services = self._services
        waiting = _Waiting(timeout)
        step = waiting.step()
        request = build(
            evaluation_service_pb2.RunEvaluationRequest,
            evaluation=to_evaluation(program, **options),
            request_id=request_id or _new_request_id(),
            timeout=to_duration(step),
        )
        evaluation = Evaluation(
            await services.scheduler.unary(services.commands.RunEvaluation, request, timeout=step + CALL_SECONDS)
        )
        return await self._wait(evaluation.id, waiting, evaluation)

    async def get(self, evaluation_id: str, /) -> Evaluation:
        """One evaluation with everything it holds. Raises NotFoundError."""
        services = self._services
        request = build(evaluation_query_service_pb2.GetEvaluationRequest, id=evaluation_id)
        return Evaluation(await services.store.unary(services.queries.GetEvaluation, request))

    async def wait(self, evaluation_id: str, /, *, timeout: float | timedelta | None = None) -> Evaluation:
        """Waits until an evaluation is final, or for `timeout` seconds, and returns its current state."""
        return await self._wait(evaluation_id, _Waiting(timeout), None)

    async def _wait(self, evaluation_id: str, waiting: _Waiting, evaluation: Evaluation | None) -> Evaluation:
        services = self._services
        while evaluation is None or not (evaluation.final or waiting.over):
            step = waiting.step()
            request = build(
                evaluation_query_service_pb2.WaitEvaluationRequest, id=evaluation_id, timeout=to_duration(step)
            )
            answer = await services.store.unary(services.queries.WaitEvaluation, request, timeout=step + CALL_SECONDS)
            evaluation = Evaluation(answer)
        return evaluation

    async def cancel(self, evaluation_id: str, /) -> Evaluation:
        """Cancels what is not final; cancelling again changes nothing. Raises PreconditionError, NotFoundError."""
        services = self._services
        request = build(evaluation_service_pb2.CancelEvaluationRequest, id=evaluation_id)
        return Evaluation(await services.scheduler.unary(services.commands.CancelEvaluation, request))

    async def requeue(self, evaluation_id: str, /) -> Evaluation:
        """Puts a FAILED evaluation back into the queue. Raises PreconditionError, NotFoundError.

        The one call that is never repeated by itself: a lost answer may hide that it was done.
        """
        services = self._services
        request = build(evaluation_service_pb2.RequeueEvaluationRequest, id=evaluation_id)
        return Evaluation(
            await services.scheduler.unary(services.commands.RequeueEvaluation, request, repeatable=False)
        )

    async def list(
        self,
        filter: str = "",  # noqa: A002  the contract's name
        *,
        order_by: str = "",
        page_size: int = 100,
    ) -> AsyncGenerator[Evaluation, None]:
        """All evaluations that match the filter, newest first, fetched page by page. Without sources and output texts.

        Args:
            filter: Comparisons joined by AND: `status = "COMPLETED" AND labels.team = "red"`,
                `create_time >= "2026-01-31T00:00:00Z"`.
            order_by: `create_time desc` (the default) or `create_time`.
            page_size: Evaluations per page, up to 1,000.
        """
        services = self._services
        request = build(
            evaluation_query_service_pb2.ListEvaluationsRequest,
            filter=filter,
            order_by=order_by,
            page_size=page_size,
        )
        while True:
            page = await services.store.unary(services.queries.ListEvaluations, request)
            for evaluation in page.evaluations:
                yield Evaluation(evaluation)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def watch(self, evaluation_id: str, /, *, after: int = 0) -> AsyncGenerator[Event, None]:
        """The events of an evaluation, first those that exist, then each new one; ends with the one that made it final.

        Every event comes once and in order; after an interruption it resumes by itself after the last one.

        Args:
            evaluation_id: Which.
            after: Only events with a greater sequence number.
        """
        services = self._services
        backoff = Backoff(services.store)
        last = after
        while True:
            request = build(
                evaluation_query_service_pb2.WatchEvaluationRequest,
                evaluation_id=evaluation_id,
                after_sequence=last,
            )
            try:
                async with aclosing(
                    services.store.stream(services.queries.WatchEvaluation, request, timeout=STREAM_SECONDS)
                ) as events:
                    async for event in events:
                        if event.sequence <= last:
                            continue
                        if event.sequence > last + 1:
                            raise InternalError(
                                f"event {last + 1} of {evaluation_id} is missing", code="DATA_LOSS", transient=True
                            )
                        last = event.sequence
                        backoff.reset()
                        yield Event(event)
                return
            except DeadlineError:
                continue
            except CrucibleError as error:
                if not error.transient:
                    raise
                await backoff.pause(error)

    async def output_chunks(
        self, evaluation_id: str, stream: Stream | str = Stream.STDOUT, /, *, offset: int = 0, limit: int = 0
    ) -> AsyncGenerator[bytes, None]:
        """The exact bytes of a stream, piece by piece; resumes by itself. Arguments and errors as `read_output`."""
        services = self._services
        backoff = Backoff(services.store)
        request = build(
            evaluation_query_service_pb2.ReadOutputRequest,
            evaluation_id=evaluation_id,
            stream=stream,
            offset=offset,
            limit=limit,
        )
        remaining: int | None = None
        while True:
            try:
                async with aclosing(
                    services.store.stream(services.queries.ReadOutput, request, timeout=STREAM_SECONDS)
                ) as bodies:
                    async for body in bodies:
                        part = _slice(body)
                        if part is not None and remaining is None:
                            request.offset, remaining = part.offset, part.length
                        yield body.data
                        request.offset += len(body.data)
                        remaining = None if remaining is None else remaining - len(body.data)
                        backoff.reset()
                return
            except CrucibleError as error:
                if remaining == 0:
                    return
                if not error.transient:
                    raise
                await backoff.pause(error)
                request.limit = remaining or limit

    async def read_output(
        self, evaluation_id: str, stream: Stream | str = Stream.STDOUT, /, *, offset: int = 0, limit: int = 0
    ) -> bytes:
        """The exact bytes that a program wrote to a stream; while it runs, those stored so far.

        Args:
            evaluation_id: Which.
            stream: `stdout` or `stderr`.
            offset: Offset of the first byte; negative counts from the end.
            limit: How many bytes; 0 for all of the rest.

        Raises:
            OutOfRangeError: `offset` is past the end.
        """
        chunks = self.output_chunks(evaluation_id, stream, offset=offset, limit=limit)
        return b"".join([chunk async for chunk in chunks])

    async def runtimes(self) -> Sequence[Runtime]:
        """The runtimes that programs can use, by name."""
        services = self._services
        response = await services.store.unary(services.runtimes.ListRuntimes, runtime_service_pb2.ListRuntimesRequest())
        return [Runtime(runtime) for runtime in response.runtimes]


class _Services:
    """Both connections with their stubs."""

    def __init__(self, scheduler: Connection, store: Connection) -> None:
        self.scheduler = scheduler
        self.store = store
        self.commands = evaluation_service_pb2_grpc.EvaluationServiceStub(scheduler.channel)
        self.queries = evaluation_query_service_pb2_grpc.EvaluationQueryServiceStub(store.channel)
        self.runtimes = runtime_service_pb2_grpc.RuntimeServiceStub(store.channel)

    async def close(self) -> None:
        try:
            await self.scheduler.close()
        finally:
            await self.store.close()


class _Waiting:
    """A wait, cut into steps that one call can take."""

    def __init__(self, timeout: float | timedelta | None) -> None:
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        self._end = None if seconds is None else _now() + seconds

    @property
    def over(self) -> bool:
        """The time is up."""
        return self._end is not None and _now() >= self._end

    def step(self) -> float:
        """Seconds of the next call."""
        # Not all the same, or the thousands of waits of a batch come back in one moment.
        step = WAIT_SECONDS * random.uniform(0.7, 1.0)  # noqa: S311  jitter, no secret
        return step if self._end is None else min(step, max(self._end - _now(), 0.0))


def _now() -> float:
    return time.monotonic()


def _new_request_id() -> str:
    return str(uuid.uuid4())


def _slice(body: httpbody_pb2.HttpBody) -> evaluation_query_service_pb2.OutputSlice | None:
    part = evaluation_query_service_pb2.OutputSlice()
    return part if any(extension.Unpack(part) for extension in body.extensions) else None


def _batches(
    requests: Sequence[evaluation_service_pb2.CreateEvaluationRequest],
) -> Iterator[Sequence[evaluation_service_pb2.CreateEvaluationRequest]]:
    batch: list[evaluation_service_pb2.CreateEvaluationRequest] = []
    size = 0
    for request in requests:
        request_size = request.ByteSize()
        if batch and (len(batch) == BATCH_SIZE or size + request_size > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(request)
        size += request_size
    if batch:
        yield batch
