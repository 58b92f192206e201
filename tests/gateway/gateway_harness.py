"""Servers of the generated contracts that answer as prepared, and the gateway's own `serve` before them."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import httpx
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from crucible.v1 import (
    evaluation_query_service_pb2_grpc,
    evaluation_service_pb2_grpc,
    runtime_service_pb2_grpc,
)
from crucible_chassis.process import Lifetime
from crucible_chassis.server import GrpcServer, Registration
from crucible_chassis.telemetry import Telemetry, start_telemetry
from crucible_contracts.policy import method_policy
from crucible_gateway.app import SCHEDULER_SERVICES, STORE_SERVICES, serve
from crucible_gateway.settings import GatewaySettings
from crucible_testkit import free_port

WAIT_SECONDS = 20.0
DOMAIN = "crucible.dev"

Context = grpc.aio.ServicerContext[Any, Any]
Behaviour = Callable[[Any, Context], AsyncIterator[Message]]
Answer = Message | Exception | Sequence[Message | Exception] | Behaviour

_ADD: dict[str, Callable[[Any, grpc.aio.Server], None]] = {
    "EvaluationService": evaluation_service_pb2_grpc.add_EvaluationServiceServicer_to_server,
    "EvaluationQueryService": evaluation_query_service_pb2_grpc.add_EvaluationQueryServiceServicer_to_server,
    "RuntimeService": runtime_service_pb2_grpc.add_RuntimeServiceServicer_to_server,
}


@dataclass
class Asked:
    """One call that arrived."""

    method: str
    request: Any
    metadata: dict[str, str]
    seconds_left: float | None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """The servicer is done with it, for whatever reason."""
    cancelled: bool = False


class Recorder:
    """Prepared answers by method, and the calls that took them."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self._prepared: dict[str, deque[Answer]] = {}
        self._unexpected: list[str] = []
        self._arrived = asyncio.Condition()

    def prepare(self, method: str, answer: Answer) -> None:
        """The next call of a method gets this: a message, an error, what a stream gives, or a behaviour."""
        self._prepared.setdefault(method, deque()).append(answer)

    def clear(self) -> None:
        self.asked.clear()
        self._prepared.clear()
        self._unexpected.clear()

    def check(self) -> None:
        left = [method for method, answers in self._prepared.items() if answers]
        assert not left, f"prepared, and never asked for: {left}"
        assert not self._unexpected, f"asked for, and not prepared: {self._unexpected}"

    @property
    def only(self) -> Asked:
        assert len(self.asked) == 1, [each.method for each in self.asked]
        return self.asked[0]

    async def wait_for_calls(self, number: int) -> Asked:
        """Waits until so many calls have arrived; gives the last."""
        async with asyncio.timeout(WAIT_SECONDS), self._arrived:
            await self._arrived.wait_for(lambda: len(self.asked) >= number)
        return self.asked[number - 1]

    async def answer(self, method: str, request: Message, context: Context) -> AsyncGenerator[Message]:
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        asked = Asked(method, request, metadata, context.time_remaining())
        async with self._arrived:
            self.asked.append(asked)
            self._arrived.notify_all()
        prepared = self._prepared.get(method)
        if not prepared:
            self._unexpected.append(method)
            raise RuntimeError("nothing was prepared for " + method)
        answer = prepared.popleft()
        try:
            if callable(answer):
                async for message in answer(request, context):
                    yield message
                return
            for item in [answer] if isinstance(answer, Message | Exception) else answer:
                if isinstance(item, Exception):
                    raise item
                yield item
        except asyncio.CancelledError:
            asked.cancelled = True
            raise
        finally:
            asked.ended.set()


def _servicer(service: ServiceDescriptor, recorder: Recorder) -> object:
    def unary(method: MethodDescriptor) -> Callable[[object, Message, Context], Awaitable[Message]]:
        async def call(_self: object, request: Message, context: Context) -> Message:
            answers = recorder.answer(method.name, request, context)
            try:
                return await anext(answers)
            finally:
                await answers.aclose()

        return call

    def stream(method: MethodDescriptor) -> Callable[[object, Message, Context], AsyncIterator[Message]]:
        async def call(_self: object, request: Message, context: Context) -> AsyncIterator[Message]:
            async for message in recorder.answer(method.name, request, context):
                yield message

        return call

    methods = {method.name: stream(method) if method.server_streaming else unary(method) for method in service.methods}
    return type(f"Recording{service.name}", (), methods)()


@asynccontextmanager
async def recording_server(
    services: Sequence[ServiceDescriptor], recorder: Recorder, telemetry: Telemetry, listen: str = "127.0.0.1:0"
) -> AsyncGenerator[GrpcServer]:
    """A server of the chassis, with its checks of the contract, that answers from the recorder."""
    registrations = [
        Registration(
            service,
            _ADD[service.name],
            _servicer(service, recorder),
            watches=frozenset({"WatchEvaluation"} & set(service.methods_by_name)),
        )
        for service in services
    ]
    server = GrpcServer(
        listen,
        registrations,
        error_domain=DOMAIN,
        method_policy=method_policy,
        telemetry=telemetry,
        grace_seconds=0,
    )
    async with server:
        await server.set_ready(True)
        yield server


@dataclass
class GatewayUnderTest:
    """The running gateway."""

    url: str
    recorder: Recorder
    lifetime: Lifetime[GatewaySettings]
    scheduler: GrpcServer
    store: GrpcServer
    spans: InMemorySpanExporter
    _serving: asyncio.Task[None]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def ended(self) -> bool:
        return self._serving.done()

    async def stop(self) -> None:
        """As SIGTERM does; returns when the gateway is gone."""
        self.lifetime.stopping.set()
        await self._serving

    def begin_stop(self) -> asyncio.Task[None]:
        self.lifetime.stopping.set()
        return self._serving

    async def raw(self, data: bytes, *, more: Sequence[bytes] = (), timeout: float = WAIT_SECONDS) -> bytes:
        """Bytes to the socket as they are, and everything that comes back until the gateway closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            for piece in more:
                await writer.drain()
                writer.write(piece)
            async with asyncio.timeout(timeout):
                return await reader.read()
        finally:
            writer.close()


@asynccontextmanager
async def running_gateway(grace_seconds: float = 5, hosts: str = "") -> AsyncGenerator[GatewayUnderTest]:
    """A gateway of its own, with its upstreams."""
    spans = InMemorySpanExporter()
    telemetry = start_telemetry("gateway", processor=SimpleSpanProcessor(spans))
    recorder = Recorder()
    async with AsyncExitStack() as stack:
        scheduler = await stack.enter_async_context(recording_server(SCHEDULER_SERVICES, recorder, telemetry))
        store = await stack.enter_async_context(recording_server(STORE_SERVICES, recorder, telemetry))
        listen = f"127.0.0.1:{free_port()}"
        settings = GatewaySettings(
            http_listen=listen,
            scheduler_url=scheduler.address,
            store_url=store.address,
            grace_seconds=grace_seconds,
            hosts=hosts,
        )
        lifetime = Lifetime(settings, telemetry)

        async def live() -> None:
            async with lifetime.stack, lifetime.tasks:
                await serve(lifetime)

        serving = asyncio.create_task(live(), name="gateway")
        gateway = GatewayUnderTest(f"http://{listen}", recorder, lifetime, scheduler, store, spans, serving)
        try:
            await _ready(gateway)
            yield gateway
        finally:
            await gateway.stop()
    telemetry.shutdown()


async def _ready(gateway: GatewayUnderTest) -> None:
    async with asyncio.timeout(WAIT_SECONDS), httpx.AsyncClient(base_url=gateway.url) as client:
        while True:
            try:
                if (await client.get("/readyz")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert not gateway.ended, "the gateway ended"
            await asyncio.sleep(0.02)


def events_of(text: str) -> list[dict[str, str]]:
    """Server-Sent Events as a client reads them: their fields, comments left out."""
    found: list[dict[str, str]] = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if "data" in fields:
            found.append(fields)
    return found
