"""The store as the scheduler asks it: typed calls, each with a deadline, each failure a ServiceError."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TypeVar

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration

from crucible.internal.v1 import heartbeat_pb2, ledger_service_pb2, ledger_service_pb2_grpc
from crucible.v1 import (
    evaluation_pb2,
    evaluation_query_service_pb2,
    evaluation_query_service_pb2_grpc,
    runtime_pb2,
    runtime_service_pb2,
    runtime_service_pb2_grpc,
)
from crucible_chassis.errors import ServiceError, from_rpc_error
from crucible_contracts.limits import LEASE_SECONDS

SERVICE_NAMES = (
    "crucible.internal.v1.LedgerService",
    "crucible.v1.EvaluationQueryService",
    "crucible.v1.RuntimeService",
)

CALL_SECONDS = 10.0
"""Deadline of a call that changes or lists something."""
HEARTBEAT_CALL_SECONDS = 2.0
"""Deadline of a call that records a heartbeat: below the 3 s for which its executor waits for an answer."""
WAIT_GRACE_SECONDS = 5.0
"""A wait may take so much longer than was asked for."""

_LEASE = Duration()
_LEASE.FromMilliseconds(int(LEASE_SECONDS * 1000))

T = TypeVar("T")


class StoreLedger:
    """The store's services over one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._ledger = ledger_service_pb2_grpc.LedgerServiceStub(channel)
        self._queries = evaluation_query_service_pb2_grpc.EvaluationQueryServiceStub(channel)
        self._runtimes = runtime_service_pb2_grpc.RuntimeServiceStub(channel)

    async def create(
        self, evaluations: Sequence[ledger_service_pb2.NewEvaluation], *, lease: bool
    ) -> ledger_service_pb2.CreateEvaluationsResponse:
        """Stores them, all or none; with `lease` takes leases as well. ALREADY_EXISTS: REQUEST_ID_REUSED."""
        request = ledger_service_pb2.CreateEvaluationsRequest(evaluations=evaluations, lease=_LEASE if lease else None)
        return await _answer(self._ledger.CreateEvaluations(request, timeout=CALL_SECONDS))

    async def lease(self, pool: str, limit: int) -> ledger_service_pb2.LeaseEvaluationsResponse:
        """Leases at most `limit` evaluations of a pool."""
        request = ledger_service_pb2.LeaseEvaluationsRequest(pool=pool, limit=limit, lease=_LEASE)
        return await _answer(self._ledger.LeaseEvaluations(request, timeout=CALL_SECONDS))

    async def record_heartbeat(self, heartbeat: heartbeat_pb2.Heartbeat) -> heartbeat_pb2.HeartbeatReply:
        """Extends the leases of the heartbeat's runs."""
        request = ledger_service_pb2.RecordHeartbeatRequest(heartbeat=heartbeat, lease=_LEASE)
        return (await _answer(self._ledger.RecordHeartbeat(request, timeout=HEARTBEAT_CALL_SECONDS))).reply

    async def probe(self) -> None:
        """Returns when the store and its database answer."""
        await self.record_heartbeat(heartbeat_pb2.Heartbeat())

    async def lapsed(self, limit: int) -> Sequence[ledger_service_pb2.LapsedLease]:
        """Leases that have lapsed, oldest first."""
        request = ledger_service_pb2.ListLapsedLeasesRequest(limit=limit)
        return (await _answer(self._ledger.ListLapsedLeases(request, timeout=CALL_SECONDS))).leases

    async def judge(
        self, leases: Sequence[ledger_service_pb2.LapsedLease]
    ) -> ledger_service_pb2.JudgeLapsedLeasesResponse:
        """Judges those of them that are still lapsed."""
        request = ledger_service_pb2.JudgeLapsedLeasesRequest(leases=leases)
        return await _answer(self._ledger.JudgeLapsedLeases(request, timeout=CALL_SECONDS))

    async def cancel(self, evaluation_id: str) -> ledger_service_pb2.CancelEvaluationResponse:
        """NOT_FOUND: EVALUATION_NOT_FOUND. FAILED_PRECONDITION: EVALUATION_FINAL."""
        request = ledger_service_pb2.CancelEvaluationRequest(id=evaluation_id)
        return await _answer(self._ledger.CancelEvaluation(request, timeout=CALL_SECONDS))

    async def requeue(self, evaluation_id: str) -> evaluation_pb2.Evaluation:
        """NOT_FOUND: EVALUATION_NOT_FOUND. FAILED_PRECONDITION: EVALUATION_NOT_FAILED."""
        request = ledger_service_pb2.RequeueEvaluationRequest(id=evaluation_id)
        return (await _answer(self._ledger.RequeueEvaluation(request, timeout=CALL_SECONDS))).evaluation

    async def wait(self, evaluation_id: str, seconds: float) -> evaluation_pb2.Evaluation:
        """The evaluation once it is final, or as it is after `seconds`."""
        request = evaluation_query_service_pb2.WaitEvaluationRequest(id=evaluation_id)
        request.timeout.FromMilliseconds(int(seconds * 1000))
        call = self._queries.WaitEvaluation(request, timeout=seconds + WAIT_GRACE_SECONDS)
        try:
            return await _answer(call)
        finally:
            call.cancel()

    async def runtimes(self) -> Sequence[runtime_pb2.Runtime]:
        """The runtimes the platform knows."""
        request = runtime_service_pb2.ListRuntimesRequest()
        return (await _answer(self._runtimes.ListRuntimes(request, timeout=CALL_SECONDS))).runtimes


async def _answer(call: Awaitable[T]) -> T:
    try:
        return await call
    except grpc.aio.AioRpcError as exc:
        error = from_rpc_error(exc)
        if error.reason == grpc.StatusCode.UNAVAILABLE.name or error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            # The transport's own: no store took the call, or none answered in time.
            raise ServiceError(
                grpc.StatusCode.UNAVAILABLE,
                "DEPENDENCY_UNAVAILABLE",
                "the store does not answer; try again",
                metadata={"part": "store"},
                retry_after=1,
            ) from exc
        raise error from exc
