"""gRPC: reads, waits and watches of evaluations."""

# ruff: noqa: N802  the contract names the methods

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal, cast

import grpc.aio
from google.api import httpbody_pb2  # pyright: ignore[reportMissingTypeStubs]  its types are in the module

from crucible.v1 import evaluation_pb2, event_pb2
from crucible.v1 import evaluation_query_service_pb2 as pb2
from crucible.v1 import evaluation_query_service_pb2_grpc as pb2_grpc
from crucible_chassis.calls import before_deadline
from crucible_contracts import DEFAULT_TENANT
from crucible_contracts.policy import STREAM_OPEN
from crucible_store.database import Database
from crucible_store.histories import Histories
from crucible_store.listing import Query, list_page
from crucible_store.outputs import Outputs

DEFAULT_WAIT_SECONDS = 30.0

Context = grpc.aio.ServicerContext[Any, Any]


class EvaluationQueryService(pb2_grpc.EvaluationQueryServiceServicer):
    """`crucible.v1.EvaluationQueryService`."""

    def __init__(self, database: Database, histories: Histories, outputs: Outputs) -> None:
        self._database = database
        self._histories = histories
        self._outputs = outputs

    async def GetEvaluation(self, request: pb2.GetEvaluationRequest, context: Context) -> evaluation_pb2.Evaluation:
        """Gives one evaluation whole."""
        return await self._histories.get(_id(request.id))

    async def ListEvaluations(
        self, request: pb2.ListEvaluationsRequest, context: Context
    ) -> pb2.ListEvaluationsResponse:
        """Lists evaluations page by page."""
        query = Query(
            tenant=DEFAULT_TENANT,
            filter=request.filter,
            descending=request.order_by in ("", "create_time desc"),
            size=request.page_size,
            token=request.page_token,
        )
        page = await self._database.read(lambda c: list_page(c, query))
        return pb2.ListEvaluationsResponse(evaluations=page.evaluations, next_page_token=page.next_token)

    async def WaitEvaluation(self, request: pb2.WaitEvaluationRequest, context: Context) -> evaluation_pb2.Evaluation:
        """Waits for an evaluation's end."""
        asked = request.timeout.ToNanoseconds() / 1e9 if request.HasField("timeout") else DEFAULT_WAIT_SECONDS
        return await self._histories.wait(_id(request.id), seconds=before_deadline(context, asked))

    async def ListEvents(self, request: pb2.ListEventsRequest, context: Context) -> pb2.ListEventsResponse:
        """Lists the events of an evaluation in order."""
        page = await self._histories.page(
            _id(request.evaluation_id), after=request.after_sequence, size=request.page_size
        )
        more = bool(page.events) and page.events[-1].sequence < page.last_sequence
        return pb2.ListEventsResponse(events=page.events, more=more)

    async def WatchEvaluation(
        self, request: pb2.WatchEvaluationRequest, context: Context
    ) -> AsyncIterator[event_pb2.Event]:
        """Streams the events of an evaluation."""
        begun = False

        async def waiting() -> None:
            if not begun:
                await context.send_initial_metadata((STREAM_OPEN,))

        evaluation = _id(request.evaluation_id)
        async for event in self._histories.follow(evaluation, after=request.after_sequence, waiting=waiting):
            begun = True
            yield event

    async def ReadOutput(
        self, request: pb2.ReadOutputRequest, context: Context
    ) -> AsyncIterator[httpbody_pb2.HttpBody]:
        """Streams the exact bytes a program wrote."""
        stream = cast("Literal['stdout', 'stderr']", request.stream)
        part = await self._outputs.read(_id(request.evaluation_id), stream, offset=request.offset, limit=request.limit)
        first = httpbody_pb2.HttpBody(content_type="application/octet-stream")
        first.extensions.add().Pack(
            pb2.OutputSlice(offset=part.offset, length=part.length, size_bytes=part.size, complete=part.complete)
        )
        async for piece in part.pieces:
            first.data = piece
            yield first
            first = httpbody_pb2.HttpBody(content_type="application/octet-stream")
        if part.length == 0:
            yield first


def _id(uuid: str) -> str:
    """As it is stored and announced: the contract allows capitals."""
    return uuid.lower()
