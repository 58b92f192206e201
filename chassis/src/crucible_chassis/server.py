"""The gRPC server of a service: health, reflection, limits, keepalive, start-up checks and draining."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from crucible_chassis import health
from crucible_chassis.calls import DEFAULT_UNARY_SECONDS, CallPipeline, is_worth_logging
from crucible_chassis.logs import get_logger
from crucible_chassis.telemetry import Telemetry
from crucible_chassis.transport import MAX_MESSAGE_BYTES, server_options
from crucible_chassis.validation import RequestValidator

MAX_CONCURRENT_CALLS = 10_000
"""Calls served at once, watches included; more are refused with RESOURCE_EXHAUSTED."""
WATCHES_SHARE = 0.8
"""Of those: however many watch and wait, there is room for the calls that they wait for. More are UNAVAILABLE."""

log = get_logger(__name__)


class RefusedToStartError(Exception):
    """The server must not run like this."""


@dataclass(frozen=True, slots=True)
class Registration:
    """One service of a server."""

    descriptor: ServiceDescriptor
    """`..._pb2.DESCRIPTOR.services_by_name["..."]`."""
    add: Callable[[Any, grpc.aio.Server], None]
    """The generated `add_..._to_server`."""
    servicer: object
    """Methods are coroutines or, for response streams, async generators."""
    watches: frozenset[str] = frozenset()
    """Names of methods whose streams last until somebody leaves. A drain ends them at once with UNAVAILABLE instead of
    waiting for them."""


class GrpcServer:
    """A gRPC server: an async context manager that listens once entered, NOT_SERVING until `set_ready(True)`.

    `listen` is `host:port`, port 0 picks a free one. `method_policy` says what the contract states about a method; None
    for any method of the registrations refuses the start. Entering raises `RefusedToStartError` (no policy, address in
    use) or `BadContractError` (a validation rule that does not compile).
    """

    def __init__(
        self,
        listen: str,
        registrations: Sequence[Registration],
        *,
        error_domain: str,
        method_policy: Callable[[MethodDescriptor], object | None],
        telemetry: Telemetry,
        grace_seconds: float = 10,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        max_concurrent_calls: int = MAX_CONCURRENT_CALLS,
        default_unary_seconds: float = DEFAULT_UNARY_SECONDS,
    ) -> None:
        self.address = listen
        """`host:port` really bound, once entered."""
        self._registrations = registrations
        self._error_domain = error_domain
        self._method_policy = method_policy
        self._telemetry = telemetry
        self._grace_seconds = grace_seconds
        self._max_message_bytes = max_message_bytes
        self._max_concurrent_calls = max_concurrent_calls
        self._default_unary_seconds = default_unary_seconds
        self._services = [registration.descriptor.full_name for registration in registrations]
        self._health = health.HealthServicer(self._services)
        self._server: grpc.aio.Server | None = None
        self._pipeline: CallPipeline | None = None

    @property
    def ready(self) -> bool:
        """Whether the server says SERVING: what a readiness probe asks."""
        return self._health.serving

    async def __aenter__(self) -> Self:
        methods = self._methods()
        self._pipeline = CallPipeline(
            methods,
            watches=self._watches(),
            most_watches=max(1, int(WATCHES_SHARE * self._max_concurrent_calls)),
            error_domain=self._error_domain,
            telemetry=self._telemetry,
            validator=RequestValidator(method.input_type for method in methods.values()),
            default_unary_seconds=self._default_unary_seconds,
        )
        # Adding the same filter twice is adding it once.
        logging.getLogger("grpc._cython.cygrpc").addFilter(is_worth_logging)
        server = grpc.aio.server(
            interceptors=[self._pipeline],
            options=server_options(self._max_message_bytes),
            maximum_concurrent_rpcs=self._max_concurrent_calls,
        )
        for registration in self._registrations:
            registration.add(registration.servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)  # pyright: ignore[reportUnknownMemberType]  generated without types
        reflection.enable_server_reflection([*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
        host = self.address.rpartition(":")[0]
        try:
            port = server.add_insecure_port(self.address)
        except RuntimeError as exc:
            msg = f"cannot listen on {self.address}: the address is in use or not of this machine"
            raise RefusedToStartError(msg) from exc
        await server.start()
        self._server = server
        self.address = f"{host}:{port}"
        log.info("grpc.listening", address=self.address, services=self._services)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.drain()

    async def set_ready(self, ready: bool) -> None:
        """Sets the health of every service and of the whole server. Without effect once draining."""
        self._health.set_serving(ready)

    async def drain(self) -> None:
        """NOT_SERVING, no new calls, watches ended, then at most the grace for the calls there are. Idempotent."""
        server, self._server = self._server, None
        if server is None:
            return
        self._health.close()
        if self._pipeline is not None:
            self._pipeline.end_watches()
        log.info("grpc.draining", address=self.address)
        await server.stop(self._grace_seconds)
        log.info("grpc.stopped", address=self.address)

    def _methods(self) -> dict[str, MethodDescriptor]:
        """Every method by its path. Each must state its policy."""
        methods: dict[str, MethodDescriptor] = {}
        silent: list[str] = []
        for service in (registration.descriptor for registration in self._registrations):
            for method in service.methods:
                methods[f"/{service.full_name}/{method.name}"] = method
                if self._method_policy(method) is None:
                    silent.append(f"{service.full_name}/{method.name}")
        if silent:
            msg = f"no policy is stated for {', '.join(silent)}"
            raise RefusedToStartError(msg)
        return methods

    def _watches(self) -> frozenset[str]:
        names: set[str] = set()
        for registration in self._registrations:
            for name in registration.watches:
                if name not in registration.descriptor.methods_by_name:
                    msg = f"{registration.descriptor.full_name} has no method {name!r} to watch"
                    raise RefusedToStartError(msg)
                names.add(f"{registration.descriptor.full_name}/{name}")
        return frozenset(names)
