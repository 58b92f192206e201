"""EvaluationService over gRPC: takes a call apart and asks the use case."""

from __future__ import annotations

from typing import Any, Protocol

import grpc.aio

from crucible.v1 import evaluation_pb2, evaluation_service_pb2, evaluation_service_pb2_grpc
from crucible_chassis.calls import before_deadline
from crucible_chassis.telemetry import inject_context
from crucible_scheduler.submission import Submission, Submitter

DEFAULT_RUN_SECONDS = 30.0
"""How long RunEvaluation waits unless told."""
MAX_RUN_SECONDS = 600.0
"""The longest wait the contract allows."""

Context = grpc.aio.ServicerContext[Any, Any]


class Commands(Protocol):
    """What can be done to an evaluation that is stored."""

    async def cancel(self, evaluation_id: str) -> evaluation_pb2.Evaluation:
        """Cancels it and has its run stopped. Raises ServiceError."""
        ...

    async def requeue(self, evaluation_id: str) -> evaluation_pb2.Evaluation:
        """Puts it back into the queue. Raises ServiceError."""
        ...


class EvaluationServicer(evaluation_service_pb2_grpc.EvaluationServiceServicer):
    """The service as the contract states it."""

    def __init__(self, submitter: Submitter, commands: Commands) -> None:
        self._submitter = submitter
        self._commands = commands

    async def CreateEvaluation(  # noqa: N802  the contract's name
        self, request: evaluation_service_pb2.CreateEvaluationRequest, context: Context
    ) -> evaluation_pb2.Evaluation:
        """Accepts one."""
        (evaluation,) = await self._submitter.submit([Submission(request, "evaluation")], traceparent=_traceparent())
        return evaluation

    async def BatchCreateEvaluations(  # noqa: N802  the contract's name
        self, request: evaluation_service_pb2.BatchCreateEvaluationsRequest, context: Context
    ) -> evaluation_service_pb2.BatchCreateEvaluationsResponse:
        """Accepts all or none."""
        submissions = [
            Submission(item, f"requests[{number}].evaluation") for number, item in enumerate(request.requests)
        ]
        evaluations = await self._submitter.submit(submissions, traceparent=_traceparent())
        return evaluation_service_pb2.BatchCreateEvaluationsResponse(evaluations=evaluations)

    async def RunEvaluation(  # noqa: N802  the contract's name
        self, request: evaluation_service_pb2.RunEvaluationRequest, context: Context
    ) -> evaluation_pb2.Evaluation:
        """Accepts one and waits for its end."""
        asked = request.timeout.ToNanoseconds() / 1e9 if request.HasField("timeout") else DEFAULT_RUN_SECONDS
        seconds = before_deadline(context, asked)
        create = evaluation_service_pb2.CreateEvaluationRequest(
            evaluation=request.evaluation, request_id=request.request_id
        )
        return await self._submitter.run(Submission(create, "evaluation"), seconds=seconds, traceparent=_traceparent())

    async def CancelEvaluation(  # noqa: N802  the contract's name
        self, request: evaluation_service_pb2.CancelEvaluationRequest, context: Context
    ) -> evaluation_pb2.Evaluation:
        """Cancels one."""
        return await self._commands.cancel(request.id)

    async def RequeueEvaluation(  # noqa: N802  the contract's name
        self, request: evaluation_service_pb2.RequeueEvaluationRequest, context: Context
    ) -> evaluation_pb2.Evaluation:
        """Requeues one."""
        return await self._commands.requeue(request.id)


def _traceparent() -> str:
    """The span of the present call, which the server always makes."""
    return inject_context()["traceparent"]
