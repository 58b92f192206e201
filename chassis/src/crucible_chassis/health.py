"""The standard health service, `grpc.health.v1`.

Ours, since the library's keeps its lock while it writes to a watcher (one that does not read blocks every change of
status) and its watches outlast a drain, which then takes the whole grace.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVICE_NAME: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
OVERALL = ""
"""The name that stands for the whole server."""

_Status = health_pb2.HealthCheckResponse


class HealthServicer(health_pb2_grpc.HealthServicer):
    """One status for the server and all of its services, NOT_SERVING at first."""

    def __init__(self, services: Sequence[str]) -> None:
        self._names = frozenset((OVERALL, *services))
        self._serving = False
        self._closed = False
        self._changed = asyncio.Event()

    @property
    def serving(self) -> bool:
        """What is answered."""
        return self._serving

    def set_serving(self, serving: bool) -> None:
        """Tells every watcher. Without effect once closed."""
        if not self._closed:
            self._serving = serving
            self._notify()

    def close(self) -> None:
        """NOT_SERVING for good; every watch ends once it has said so."""
        self._serving = False
        self._closed = True
        self._notify()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:  # noqa: D102, N802, ANN401  grpc's name
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return _Status(status=self._status(request.service))

    async def Watch(  # noqa: D102, N802  grpc's name
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        told: health_pb2.HealthCheckResponse.ServingStatus | None = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status != told:
                told = status
                yield _Status(status=status)
            elif self._closed:
                return
            else:
                await changed.wait()

    def _status(self, service: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        if service not in self._names:
            return _Status.SERVICE_UNKNOWN
        return _Status.SERVING if self._serving else _Status.NOT_SERVING

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
