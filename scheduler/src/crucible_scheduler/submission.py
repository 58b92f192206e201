"""Submitting evaluations: admission, ids, one durable write, and the wait of those who asked for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import uuid_utils
from grpc import StatusCode

from crucible.internal.v1 import ledger_service_pb2
from crucible.v1 import evaluation_pb2, evaluation_service_pb2
from crucible_chassis.errors import FieldViolation, ServiceError
from crucible_contracts import DEFAULT_TENANT
from crucible_contracts.limits import MAX_ATTEMPTS
from crucible_scheduler.domain import admission
from crucible_scheduler.runtimes import RuntimeCatalogue

FINAL = frozenset(
    {evaluation_pb2.Evaluation.COMPLETED, evaluation_pb2.Evaluation.FAILED, evaluation_pb2.Evaluation.CANCELLED}
)

WAIT_AGAIN_SECONDS = 0.5
"""Before a wait is asked for again that a store could not answer."""
HEAD_START_SECONDS = 0.004
"""Of a new evaluation before its wait: its job is on the way meanwhile, and needs the same processors."""


class Evaluations(Protocol):
    """Where evaluations are kept."""

    async def create(
        self, evaluations: Sequence[ledger_service_pb2.NewEvaluation], *, lease: bool
    ) -> ledger_service_pb2.CreateEvaluationsResponse:
        """Stores them, all or none; with `lease` takes leases as well. Raises ServiceError."""
        ...

    async def wait(self, evaluation_id: str, seconds: float) -> evaluation_pb2.Evaluation:
        """The evaluation once it is final, or as it is after `seconds`. Raises ServiceError."""
        ...


class Dispatch(Protocol):
    """Where jobs are published."""

    @property
    def able(self) -> bool:
        """Whether a lease that was taken now could be published."""
        ...

    def take(self, jobs: Sequence[ledger_service_pb2.LeasedJob]) -> None:
        """Publish these, at once."""
        ...

    def wake(self) -> None:
        """Something waits."""
        ...


@dataclass(frozen=True, slots=True)
class Submission:
    """One evaluation as a caller sends it."""

    request: evaluation_service_pb2.CreateEvaluationRequest
    path: str
    """Where the evaluation stands in the call, for error messages: `requests[3].evaluation`."""


class Submitter:
    """Accepts evaluations into one pool. One that may run at once is leased by the write that stores it."""

    def __init__(self, evaluations: Evaluations, runtimes: RuntimeCatalogue, *, pool: str, dispatch: Dispatch) -> None:
        self._evaluations = evaluations
        self._runtimes = runtimes
        self._pool = pool
        self._dispatch = dispatch
        self._waiting: set[asyncio.Timeout] = set()
        self._storing: set[asyncio.Task[Sequence[evaluation_pb2.Evaluation]]] = set()
        self._stopping = False

    async def submit(
        self, submissions: Sequence[Submission], *, traceparent: str
    ) -> Sequence[evaluation_pb2.Evaluation]:
        """Stores all or none and gives them in order, an already known request id in its present state.

        `traceparent` is the W3C context of the call. Raises ServiceError: UNKNOWN_RUNTIME, LIMIT_TOO_LARGE,
        INVALID_FIELD, REQUEST_ID_REUSED, DEPENDENCY_UNAVAILABLE.
        """
        runtimes = await self._runtimes.naming({submission.request.evaluation.runtime for submission in submissions})
        new: list[ledger_service_pb2.NewEvaluation] = []
        for submission in submissions:
            try:
                runtime = admission.find_runtime(submission.request.evaluation.runtime, runtimes)
                admitted = admission.admit(submission.request.evaluation, runtime)
            except admission.RefusedError as exc:
                raise _refusal(exc, submission.path) from exc
            new.append(self._new(admitted, submission.request.request_id, traceparent))
        # Who leaves now does not take along what the store commits all the same, leases of others' among it.
        storing = asyncio.get_running_loop().create_task(self._store(new), name="store-evaluations")
        self._storing.add(storing)
        storing.add_done_callback(self._stored)
        return await asyncio.shield(storing)

    async def _store(self, new: Sequence[ledger_service_pb2.NewEvaluation]) -> Sequence[evaluation_pb2.Evaluation]:
        # A batch is for throughput: its write holds up nobody else's leases.
        stored = await self._evaluations.create(new, lease=len(new) == 1 and self._dispatch.able)
        if stored.jobs:
            self._dispatch.take(stored.jobs)
        if not stored.looked:
            self._dispatch.wake()
        await asyncio.sleep(0)  # jobs go out before anything else is done
        return stored.evaluations

    def _stored(self, storing: asyncio.Task[Sequence[evaluation_pb2.Evaluation]]) -> None:
        self._storing.discard(storing)
        if not storing.cancelled():
            storing.exception()  # where its caller has left, nobody else asks for it

    async def run(self, submission: Submission, *, seconds: float, traceparent: str) -> evaluation_pb2.Evaluation:
        """Stores it and waits for its end, at most `seconds`; then gives its last known state. Raises as `submit`.

        Once it is stored the caller gets it, with its id, whatever goes away meanwhile: this process included.
        """
        deadline = time.monotonic() + seconds
        (evaluation,) = await self.submit([submission], traceparent=traceparent)
        scope = asyncio.timeout(0 if self._stopping else None)
        try:
            async with scope:
                self._waiting.add(scope)
                if evaluation.status not in FINAL:
                    await asyncio.sleep(min(seconds, HEAD_START_SECONDS))
                while evaluation.status not in FINAL and (left := deadline - time.monotonic()) > 0:
                    evaluation = await self._wait(evaluation, left)
        except TimeoutError:
            if not scope.expired():
                raise
        finally:
            self._waiting.discard(scope)
        return evaluation

    def stop(self) -> None:
        """Ends all waits of `run`, those to come included: their callers get the last known state."""
        self._stopping = True
        now = asyncio.get_running_loop().time()
        for scope in self._waiting:
            scope.reschedule(now)

    async def _wait(self, evaluation: evaluation_pb2.Evaluation, seconds: float) -> evaluation_pb2.Evaluation:
        try:
            return await self._evaluations.wait(evaluation.id, seconds)
        except ServiceError as exc:
            if exc.code is not StatusCode.UNAVAILABLE:
                raise
            # The store is away, and will be back: the evaluation is safe in it.
            await asyncio.sleep(min(seconds, WAIT_AGAIN_SECONDS))
            return evaluation

    def _new(self, admitted: admission.Admitted, request_id: str, traceparent: str) -> ledger_service_pb2.NewEvaluation:
        evaluation = admitted.evaluation
        evaluation.id = str(uuid_utils.uuid7())
        evaluation.tenant = DEFAULT_TENANT
        evaluation.trace_id = traceparent.split("-")[1]
        return ledger_service_pb2.NewEvaluation(
            evaluation=evaluation,
            request_id=request_id,
            request_hash=admitted.request_hash,
            program=admitted.program,
            pool=self._pool,
            traceparent=traceparent,
            max_attempts=MAX_ATTEMPTS,
        )


def _refusal(refused: admission.RefusedError, path: str) -> ServiceError:
    at = f"{path}.{refused.path}"
    return ServiceError(
        StatusCode.INVALID_ARGUMENT,
        refused.reason,
        f"{at}: {refused.message}",
        metadata=refused.metadata,
        violations=[FieldViolation(at, refused.message)],
    )
