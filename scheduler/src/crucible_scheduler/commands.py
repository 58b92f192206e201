"""Commands on evaluations that are stored: cancel, which also stops the run at once, and requeue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import nats.errors

from crucible.internal.v1 import job_pb2, ledger_service_pb2
from crucible.v1 import evaluation_pb2
from crucible_chassis.logs import get_logger
from crucible_contracts import subjects

log = get_logger(__name__)


class CommandLedger(Protocol):
    """Where evaluations change their state."""

    async def cancel(self, evaluation_id: str) -> ledger_service_pb2.CancelEvaluationResponse:
        """Raises ServiceError."""
        ...

    async def requeue(self, evaluation_id: str) -> evaluation_pb2.Evaluation:
        """Raises ServiceError."""
        ...


class NudgePublisher(Protocol):
    """Core NATS: at most once."""

    async def publish(self, subject: str, message: bytes) -> None:
        """Sends it to whoever listens now."""
        ...


class EvaluationCommands:
    """Cancels and requeues; `queued` is called after a requeue."""

    def __init__(self, ledger: CommandLedger, messaging: NudgePublisher, *, queued: Callable[[], None]) -> None:
        self._ledger = ledger
        self._messaging = messaging
        self._queued = queued

    async def cancel(self, evaluation_id: str) -> evaluation_pb2.Evaluation:
        """Cancels it; the executor is told at once, and if that message is lost, by its next heartbeat."""
        answer = await self._ledger.cancel(evaluation_id)
        if answer.executor_id and answer.token:
            nudge = job_pb2.Nudge(abandon_tokens=[answer.token])
            try:
                await self._messaging.publish(subjects.nudge(answer.executor_id), nudge.SerializeToString())
            except nats.errors.Error as exc:
                log.warning("nudge.failed", evaluation=evaluation_id, executor=answer.executor_id, error=repr(exc))
        return answer.evaluation

    async def requeue(self, evaluation_id: str) -> evaluation_pb2.Evaluation:
        """Puts a FAILED one back into the queue."""
        evaluation = await self._ledger.requeue(evaluation_id)
        self._queued()
        return evaluation
