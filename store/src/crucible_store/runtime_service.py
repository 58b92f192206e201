"""gRPC: the runtimes the platform knows."""

# ruff: noqa: N802  the contract names the methods

from __future__ import annotations

from typing import Any

import grpc.aio
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from crucible.v1 import runtime_pb2
from crucible.v1 import runtime_service_pb2 as pb2
from crucible.v1 import runtime_service_pb2_grpc as pb2_grpc
from crucible_store.database import Database
from crucible_store.reading import LIVE_EXECUTORS

_LIST = sa.text(f"""
WITH live AS ({LIVE_EXECUTORS})
SELECT name, runtime, name IN (SELECT unnest(runtimes) FROM live) AS available FROM runtimes ORDER BY name
""")  # noqa: S608  a constant


class RuntimeService(pb2_grpc.RuntimeServiceServicer):
    """`crucible.v1.RuntimeService`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ListRuntimes(
        self, request: pb2.ListRuntimesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb2.ListRuntimesResponse:
        """Lists the runtimes the platform knows, by name."""
        return pb2.ListRuntimesResponse(runtimes=await self._database.read(_list))


async def _list(connection: AsyncConnection) -> list[runtime_pb2.Runtime]:
    runtimes: list[runtime_pb2.Runtime] = []
    for row in await connection.execute(_LIST):
        runtime = runtime_pb2.Runtime.FromString(row.runtime)
        runtime.available = row.available
        runtimes.append(runtime)
    return runtimes
