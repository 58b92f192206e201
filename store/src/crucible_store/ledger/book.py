"""The ledger as the services use it: each method one transaction, announced once it is committed."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from crucible.internal.v1 import heartbeat_pb2, ledger_service_pb2
from crucible.v1 import evaluation_pb2
from crucible_store import convert, reading
from crucible_store.convert import Admitted
from crucible_store.database import Database, DataRefusedError
from crucible_store.ledger import attempts, creating, heartbeats, leasing, reaping, requests
from crucible_store.ledger.attempts import Applied, Delivery
from crucible_store.ledger.creating import Created
from crucible_store.ledger.hot import Changes
from crucible_store.ledger.leasing import MAX_LEASES, FreshLease, Leased
from crucible_store.ledger.requests import Asked
from crucible_store.transaction import Transaction

MAX_FRESH = 1024
"""Leases remembered until their runs speak; the others' rows are read."""


class Programs(Protocol):
    """Where programs too large for their jobs are kept."""

    async def put_program(self, sha256: str, program: bytes) -> None:
        """Keeps it under its hash; nothing where it is kept already. Raises ServiceError UNAVAILABLE."""
        ...


class Announcements(Protocol):
    """Tells of what was committed; never fails."""

    def here(self, changes: Changes) -> None:
        """Tells those who listen in this process."""
        ...

    async def elsewhere(self, changes: Changes) -> None:
        """Publishes the events for all others, and wakes the dispatch of the pools."""
        ...


class Ledger:
    """Raises DatabaseAwayError from every method, and ServiceError as the contract of `LedgerService` says."""

    def __init__(self, database: Database, announcements: Announcements, programs: Programs) -> None:
        self._database = database
        self._announcements = announcements
        self._programs = programs
        self._fresh: OrderedDict[str, FreshLease] = OrderedDict()

    async def create(self, new: Sequence[ledger_service_pb2.NewEvaluation]) -> list[evaluation_pb2.Evaluation]:
        """Stores evaluations, all or none; gives them in order, those of known request ids as they are now."""
        return list((await self.create_and_lease(new, seconds=None)).evaluations)

    async def create_and_lease(
        self, new: Sequence[ledger_service_pb2.NewEvaluation], *, seconds: float | None
    ) -> ledger_service_pb2.CreateEvaluationsResponse:
        """The same, and in the same transaction leases of the first one's pool what may run now; None: no leases."""
        items = [convert.admitted(item) for item in new]
        for item in items:
            if item.large_program is not None and item.program_sha256 is not None:
                await self._programs.put_program(item.program_sha256, item.large_program)
        created, old, leased = await self._create(items, seconds)
        self._keep(leased)
        looked = leased is not None and not leased.more
        # Whoever asked for leases has them, and dispatches what is left.
        pools = created.pools if seconds is None else set[str]()
        events = [*created.events, *(leased.events if leased else ())]
        await self._announce(Changes(events=events, pools=pools))
        answers: list[evaluation_pb2.Evaluation] = []
        for item in items:
            if item.id in created.made:
                answers.append(_as_created(item, created))
            else:
                answers.append(old[created.known.get(item.id, item.id)])
        return ledger_service_pb2.CreateEvaluationsResponse(
            evaluations=answers, jobs=leased.jobs if leased else (), looked=looked
        )

    async def _create(
        self, items: Sequence[Admitted], lease_seconds: float | None
    ) -> tuple[Created, dict[str, evaluation_pb2.Evaluation], Leased | None]:
        # A call that is repeated (by us after a lost connection, by the caller's channel) finds its own evaluations: a
        # second look would cost each first call a statement, so it is taken where an insert has failed.
        again = False

        def work(transaction: Transaction) -> tuple[Created, Leased | None]:
            turn = None
            if lease_seconds is not None:
                turn = leasing.Turn(transaction, pool=items[0].pool, limit=MAX_LEASES, seconds=lease_seconds)
            created = creating.create(transaction, items, again=again)
            return created, turn.lease() if turn is not None and created.made else None

        try:
            created, leased = await self._database.write(work)
        except DataRefusedError:
            again = True
            created, leased = await self._database.write(work)
        others = [created.known.get(item.id, item.id) for item in items if item.id not in created.made]
        old = await self._database.read(lambda c: reading.get_many(c, others)) if others else {}
        return created, old, leased

    async def lease(self, *, pool: str, limit: int, seconds: float) -> ledger_service_pb2.LeaseEvaluationsResponse:
        """Takes leases."""
        leased = await self._database.write(lambda t: leasing.lease(t, pool=pool, limit=limit, seconds=seconds))
        self._keep(leased)
        await self._announce(Changes(events=leased.events))
        return ledger_service_pb2.LeaseEvaluationsResponse(jobs=leased.jobs, more=leased.more)

    async def heartbeat(self, heartbeat: heartbeat_pb2.Heartbeat, *, seconds: float) -> heartbeat_pb2.HeartbeatReply:
        """Records a heartbeat."""
        beat = await self._database.write(lambda t: heartbeats.record(t, heartbeat, seconds=seconds))
        await self._announce(Changes(pools=set(beat.pools)))
        return beat.reply

    async def list_lapsed(self, *, limit: int) -> list[ledger_service_pb2.LapsedLease]:
        """Leases that have lapsed."""
        return await self._database.write(lambda t: reaping.list_lapsed(t, limit=limit))

    async def judge_lapsed(
        self, leases: Sequence[ledger_service_pb2.LapsedLease]
    ) -> ledger_service_pb2.JudgeLapsedLeasesResponse:
        """Judges leases that are lapsed still."""
        reaped = await self._database.write(lambda t: reaping.judge_lapsed(t, leases, jitter=random.random))
        await self._announce(reaped.changes)
        return ledger_service_pb2.JudgeLapsedLeasesResponse(requeued=reaped.requeued, failed=reaped.failed)

    async def cancel(self, evaluation: str) -> ledger_service_pb2.CancelEvaluationResponse:
        """Cancels an evaluation."""
        asked = await self._database.write(lambda t: requests.cancel(t, evaluation))
        return ledger_service_pb2.CancelEvaluationResponse(
            evaluation=await self._announced(evaluation, asked), executor_id=asked.executor, token=asked.token
        )

    async def requeue(self, evaluation: str) -> ledger_service_pb2.RequeueEvaluationResponse:
        """Requeues a FAILED evaluation."""
        asked = await self._database.write(lambda t: requests.requeue(t, evaluation))
        return ledger_service_pb2.RequeueEvaluationResponse(evaluation=await self._announced(evaluation, asked))

    async def apply(self, deliveries: Sequence[Delivery]) -> list[Applied]:
        """Applies what executors said, and tells of it here; the caller acknowledges, then calls `announce`."""
        named = {delivery.evaluation for delivery in deliveries}
        leases = [self._fresh.pop(evaluation, None) for evaluation in named]
        lease = leases[0] if len(leases) == 1 else None
        applied = await attempts.apply(self._database, deliveries, jitter=random.random, lease=lease)
        for part in applied:
            self._announcements.here(part.changes)
        return applied

    async def announce(self, applied: Sequence[Applied]) -> None:
        """Tells all others of what `apply` wrote."""
        for part in applied:
            await self._announcements.elsewhere(part.changes)

    def _keep(self, leased: Leased | None) -> None:
        """Until the first message of its run, for a run that says all at once."""
        if leased is not None:
            self._fresh.update((lease.row.id, lease) for lease in leased.fresh)
        while len(self._fresh) > MAX_FRESH:
            self._fresh.popitem(last=False)

    async def _announce(self, changes: Changes) -> None:
        self._announcements.here(changes)
        await self._announcements.elsewhere(changes)

    async def _announced(self, evaluation: str, asked: Asked) -> evaluation_pb2.Evaluation | None:
        await self._announce(asked.changes)
        return await self._database.read(lambda c: reading.get(c, evaluation))


def _as_created(item: Admitted, created: Created) -> evaluation_pb2.Evaluation:
    """What a read of a new evaluation would give, without the read."""
    answer = evaluation_pb2.Evaluation.FromString(item.summary + item.bulk)
    answer.status = evaluation_pb2.Evaluation.QUEUED
    answer.generation = 1
    answer.create_time.CopyFrom(convert.timestamp(created.time))
    return answer
