"""gRPC: every change that the scheduler asks for."""

# ruff: noqa: N802  the contract names the methods

from __future__ import annotations

from typing import Any

import grpc.aio
from google.protobuf.duration_pb2 import Duration

from crucible.internal.v1 import ledger_service_pb2 as pb2
from crucible.internal.v1 import ledger_service_pb2_grpc as pb2_grpc
from crucible_chassis.errors import FieldViolation, invalid_argument
from crucible_contracts.limits import LEASE_SECONDS
from crucible_store.convert import is_uuid
from crucible_store.domain.filters import Priority
from crucible_store.ledger import Ledger
from crucible_store.ledger.leasing import MAX_LEASES

MAX_CREATES = 1000
MAX_LAPSED = 1000
MAX_ATTEMPTS_ALLOWED = 20
"""The most that an evaluation may ask for; `crucible_contracts.limits.MAX_ATTEMPTS` is what the scheduler asks for."""

_PRIORITIES = frozenset(Priority)

Context = grpc.aio.ServicerContext[Any, Any]


class LedgerService(pb2_grpc.LedgerServiceServicer):
    """`crucible.internal.v1.LedgerService`."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def CreateEvaluations(
        self, request: pb2.CreateEvaluationsRequest, context: Context
    ) -> pb2.CreateEvaluationsResponse:
        """Stores new evaluations, all or none."""
        _count("evaluations", len(request.evaluations), MAX_CREATES)
        violations = [
            FieldViolation(f"evaluations[{index}].{name}", description)
            for index, new in enumerate(request.evaluations)
            for name, valid, description in (
                ("evaluation.id", is_uuid(new.evaluation.id), "must be a UUID in lower case"),
                ("evaluation.tenant", bool(new.evaluation.tenant), "must be set"),
                ("evaluation.priority", new.evaluation.priority in _PRIORITIES, "must be set"),
                ("pool", bool(new.pool), "must be set"),
                ("max_attempts", 1 <= new.max_attempts <= MAX_ATTEMPTS_ALLOWED, f"must be 1 to {MAX_ATTEMPTS_ALLOWED}"),
            )
            if not valid
        ]
        if len({new.evaluation.id for new in request.evaluations}) < len(request.evaluations):
            violations.append(FieldViolation("evaluations", "each id may stand once"))
        if violations:
            raise invalid_argument(violations)
        seconds = _seconds(request.lease) if request.HasField("lease") else None
        return await self._ledger.create_and_lease(request.evaluations, seconds=seconds)

    async def LeaseEvaluations(
        self, request: pb2.LeaseEvaluationsRequest, context: Context
    ) -> pb2.LeaseEvaluationsResponse:
        """Leases queued evaluations."""
        _count("limit", request.limit, MAX_LEASES)
        return await self._ledger.lease(pool=request.pool, limit=request.limit, seconds=_seconds(request.lease))

    async def RecordHeartbeat(
        self, request: pb2.RecordHeartbeatRequest, context: Context
    ) -> pb2.RecordHeartbeatResponse:
        """Records an executor's announcement and extends its leases."""
        reply = await self._ledger.heartbeat(request.heartbeat, seconds=_seconds(request.lease))
        return pb2.RecordHeartbeatResponse(reply=reply)

    async def ListLapsedLeases(
        self, request: pb2.ListLapsedLeasesRequest, context: Context
    ) -> pb2.ListLapsedLeasesResponse:
        """Lists leases that have lapsed."""
        _count("limit", request.limit, MAX_LAPSED)
        return pb2.ListLapsedLeasesResponse(leases=await self._ledger.list_lapsed(limit=request.limit))

    async def JudgeLapsedLeases(
        self, request: pb2.JudgeLapsedLeasesRequest, context: Context
    ) -> pb2.JudgeLapsedLeasesResponse:
        """Judges leases that are still lapsed."""
        _count("leases", len(request.leases), MAX_LAPSED)
        return await self._ledger.judge_lapsed(request.leases)

    async def CancelEvaluation(
        self, request: pb2.CancelEvaluationRequest, context: Context
    ) -> pb2.CancelEvaluationResponse:
        """Cancels an evaluation."""
        return await self._ledger.cancel(_id(request.id))

    async def RequeueEvaluation(
        self, request: pb2.RequeueEvaluationRequest, context: Context
    ) -> pb2.RequeueEvaluationResponse:
        """Requeues a FAILED evaluation."""
        return await self._ledger.requeue(_id(request.id))


def _seconds(lease: Duration) -> float:
    """How long a lease holds; the protocol's L where the request says nothing, or zero."""
    return lease.ToNanoseconds() / 1e9 or LEASE_SECONDS


def _count(field: str, number: int, most: int) -> None:
    if not 1 <= number <= most:
        raise invalid_argument([FieldViolation(field, f"must be 1 to {most}")])


def _id(text: str) -> str:
    # The public method takes any spelling of a UUID.
    lower = text.lower()
    if not is_uuid(lower):
        raise invalid_argument([FieldViolation("id", "must be a UUID")])
    return lower
