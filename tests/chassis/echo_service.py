"""A service with a method of each kind, defined here so that the chassis is tested without Crucible's contracts."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from buf.validate import validate_pb2
from crucible_chassis.client import open_channel
from crucible_chassis.server import GrpcServer, Registration
from crucible_chassis.telemetry import Telemetry, start_telemetry

WAIT_SECONDS = 20.0
DOMAIN = "test.example"
METHODS = ("Unary", "ServerStream", "ClientStream", "Bidi")
MAX_TEXT = 32
ALONE = "alone"
"""A word of this text has no parts, by a rule of the message."""


class Word(Protocol):
    """The message type, which is made at run time."""

    text: str
    parts: Sequence["Word"]


def _file(name: str, package: str, *, bad_rule: bool = False, nameless_rule: bool = False) -> FileDescriptor:
    file = descriptor_pb2.FileDescriptorProto(
        name=name, package=package, syntax="proto3", dependency=["buf/validate/validate.proto"]
    )
    message = file.message_type.add(name="Word")
    text = message.field.add(name="text", number=1, type=9, label=1)
    text.options.Extensions[validate_pb2.field].string.max_len = MAX_TEXT
    message.field.add(name="parts", number=2, type=11, type_name=f".{package}.Word", label=3)
    whole = message.options.Extensions[validate_pb2.message].cel.add()
    whole.id = "nothing.of_it" if nameless_rule else "parts.without_text"
    whole.message = "cannot stand beside the text alone"
    whole.expression = f"this.text != '{ALONE}' || this.parts.size() == 0"
    if bad_rule:
        rule = text.options.Extensions[validate_pb2.field].cel.add()
        rule.id, rule.expression = "word.bad", "this.nonsense("
    service = file.service.add(name="Echo")
    for method in METHODS:
        service.method.add(
            name=method,
            input_type=f".{package}.Word",
            output_type=f".{package}.Word",
            server_streaming=method in ("ServerStream", "Bidi"),
            client_streaming=method in ("ClientStream", "Bidi"),
        )
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindFileByName(name)


ECHO = _file("test/echo.proto", "test.echo").services_by_name["Echo"]
BROKEN = _file("test/broken.proto", "test.broken", bad_rule=True).services_by_name["Echo"]
NAMELESS = _file("test/nameless.proto", "test.nameless", nameless_rule=True).services_by_name["Echo"]
_Word: Any = message_factory.GetMessageClass(ECHO.methods_by_name["Unary"].input_type)


def word(text: str = "", parts: Sequence[Word] = ()) -> Word:
    return cast("Word", _Word(text=text, parts=parts))


Context = grpc.aio.ServicerContext[Any, Any]
Behaviour = Callable[[Word, Context], Awaitable[None]]


async def _echo(request: Word, context: Context) -> None:
    """Does nothing more than echo."""


@dataclass
class EchoServicer:
    """Answers each request with itself, after `behaviour`; ServerStream twice, before and after `behaviour`."""

    behaviour: Behaviour = _echo
    name: str = ""
    answer: Any = None
    cancelled: list[str] = field(default_factory=lambda: list[str]())

    async def unary(self, request: Word, context: Context) -> Word:
        await self.behaviour(request, context)
        return self.answer or word(self.name or request.text)

    async def server_stream(self, request: Word, context: Context) -> AsyncIterator[Word]:
        try:
            yield request
            await self.behaviour(request, context)
            yield request
        finally:
            self.cancelled.append(request.text)

    async def client_stream(self, requests: AsyncIterator[Word], context: Context) -> Word:
        last = word()
        async for request in requests:
            await self.behaviour(request, context)
            last = request
        return last

    async def bidi(self, requests: AsyncIterator[Word], context: Context) -> AsyncIterator[Word]:
        async for request in requests:
            await self.behaviour(request, context)
            yield request


def _add(servicer: EchoServicer, server: grpc.aio.Server) -> None:
    codec = {
        "request_deserializer": _Word.FromString,
        "response_serializer": _Word.SerializeToString,
    }
    handlers: Any = {
        "Unary": cast("Any", grpc.unary_unary_rpc_method_handler)(servicer.unary, **codec),
        "ServerStream": cast("Any", grpc.unary_stream_rpc_method_handler)(servicer.server_stream, **codec),
        "ClientStream": cast("Any", grpc.stream_unary_rpc_method_handler)(servicer.client_stream, **codec),
        "Bidi": cast("Any", grpc.stream_stream_rpc_method_handler)(servicer.bidi, **codec),
    }
    server.add_generic_rpc_handlers((cast("Any", grpc.method_handlers_generic_handler(ECHO.full_name, handlers)),))


async def eventually(check: Callable[[], bool]) -> None:
    """Returns when `check()` holds; TimeoutError when it never does."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not check():  # noqa: ASYNC110  what is waited for happens in other processes and threads
            await asyncio.sleep(0.01)


class EchoStub:
    """What protoc would generate."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        codec: Any = {
            "request_serializer": _Word.SerializeToString,
            "response_deserializer": _Word.FromString,
        }
        path = f"/{ECHO.full_name}/"
        self.unary: Any = channel.unary_unary(path + "Unary", **codec)
        self.server_stream: Any = channel.unary_stream(path + "ServerStream", **codec)
        self.client_stream: Any = channel.stream_unary(path + "ClientStream", **codec)
        self.bidi: Any = channel.stream_stream(path + "Bidi", **codec)
        self.missing: Any = channel.unary_unary(path + "Missing", **codec)


def registration(servicer: EchoServicer, *, watches: frozenset[str] = frozenset()) -> Registration:
    return Registration(ECHO, _add, servicer, watches)


def any_policy(method: MethodDescriptor) -> object | None:
    return method


def echo_server(
    servicer: EchoServicer,
    telemetry: Telemetry,
    *,
    watches: frozenset[str] = frozenset(),
    **options: Any,  # noqa: ANN401  of GrpcServer
) -> GrpcServer:
    options = {"listen": "127.0.0.1:0", "method_policy": any_policy, "grace_seconds": 2.0, **options}
    listen = options.pop("listen")
    return GrpcServer(
        listen, [registration(servicer, watches=watches)], error_domain=DOMAIN, telemetry=telemetry, **options
    )


@dataclass
class Echo:
    """A running server, a client of it and the spans of both."""

    server: GrpcServer
    servicer: EchoServicer
    channel: grpc.aio.Channel
    stub: EchoStub
    exporter: InMemorySpanExporter


@asynccontextmanager
async def running_echo(
    behaviour: Behaviour = _echo,
    *,
    watches: frozenset[str] = frozenset(),
    **options: Any,  # noqa: ANN401  of GrpcServer
) -> AsyncGenerator[Echo]:
    exporter = InMemorySpanExporter()
    telemetry = start_telemetry("echo", processor=SimpleSpanProcessor(exporter))
    servicer = EchoServicer(behaviour)
    async with echo_server(servicer, telemetry, watches=watches, **options) as server:
        await server.set_ready(True)
        async with open_channel(server.address, telemetry=telemetry) as channel:
            yield Echo(server, servicer, channel, EchoStub(channel), exporter)
