"""The server: start-up checks, health, deadlines, draining, limits."""

import asyncio
import socket
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from echo_service import (
    BROKEN,
    ECHO,
    NAMELESS,
    Context,
    EchoServicer,
    EchoStub,
    Word,
    echo_server,
    eventually,
    running_echo,
    word,
)
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from crucible_chassis import transport
from crucible_chassis.client import open_channel
from crucible_chassis.errors import ServiceError, from_rpc_error
from crucible_chassis.server import GrpcServer, RefusedToStartError, Registration
from crucible_chassis.telemetry import start_telemetry
from crucible_chassis.validation import BadContractError

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def all_but_bidi(method: MethodDescriptor) -> object | None:
    return None if method.name == "Bidi" else method


async def test_a_method_without_policy_refuses_the_start() -> None:
    server = echo_server(EchoServicer(), start_telemetry("t"), method_policy=all_but_bidi)
    with pytest.raises(RefusedToStartError, match=r"test\.echo\.Echo/Bidi"):
        async with server:
            pytest.fail("it started")


@pytest.mark.parametrize(
    ("service", "complaint"), [(BROKEN, r"test\.broken\.Word"), (NAMELESS, r"nothing\.of_it.*names no field")]
)
async def test_a_rule_that_is_wrong_refuses_the_start(service: ServiceDescriptor, complaint: str) -> None:
    def add(servicer: object, server: grpc.aio.Server) -> None:
        pass

    server = GrpcServer(
        "127.0.0.1:0",
        [Registration(service, add, object())],
        error_domain="d",
        method_policy=lambda m: m,
        telemetry=start_telemetry("t"),
    )
    with pytest.raises(BadContractError, match=complaint):
        async with server:
            pytest.fail("it started")


async def test_a_watch_that_does_not_exist_refuses_the_start() -> None:
    with pytest.raises(RefusedToStartError, match="Nope"):
        async with echo_server(EchoServicer(), start_telemetry("t"), watches=frozenset({"Nope"})):
            pytest.fail("it started")


async def test_two_servers_on_one_port_refuse() -> None:
    async with running_echo() as echo:
        with pytest.raises(RefusedToStartError, match=echo.server.address):
            async with echo_server(EchoServicer(), start_telemetry("t"), listen=echo.server.address):
                pytest.fail("it started")


async def test_health_check_and_watch_follow_readiness() -> None:
    telemetry = start_telemetry("t")
    server = echo_server(EchoServicer(), telemetry)
    async with server, grpc.aio.insecure_channel(server.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        assert not server.ready
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="nobody"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND

        watches = [stub.Watch(health_pb2.HealthCheckRequest(service=name)) for name in ("", ECHO.full_name)]
        for watch in watches:
            assert (await watch.read()).status == NOT_SERVING
        stranger = stub.Watch(health_pb2.HealthCheckRequest(service="nobody"))
        assert (await stranger.read()).status == UNKNOWN

        await server.set_ready(True)
        assert server.ready
        for watch in watches:
            assert (await watch.read()).status == SERVING
        assert (await stub.Check(health_pb2.HealthCheckRequest(service=ECHO.full_name))).status == SERVING

        async with asyncio.timeout(1.5):  # less than the grace: no watch holds a drain up
            await server.drain()
        assert not server.ready
        for watch in watches:
            assert (await watch.read()).status == NOT_SERVING
            assert await watch.read() is grpc.aio.EOF
        await server.set_ready(True)
        assert not server.ready


async def test_reflection_lists_the_services() -> None:
    async with running_echo() as echo:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(cast("Any", echo.channel))
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        answers = [answer async for answer in call]
        names = {service.name for service in answers[0].list_services_response.service}
        assert {ECHO.full_name, "grpc.health.v1.Health"} <= names


async def test_a_unary_call_without_deadline_gets_the_servers() -> None:
    async def hang(request: Word, context: Context) -> None:
        await asyncio.sleep(60)

    # A plain channel: ours would set a deadline of its own.
    async with (
        running_echo(hang, default_unary_seconds=0.2) as echo,
        grpc.aio.insecure_channel(echo.server.address) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await EchoStub(channel).unary(word())
        error = from_rpc_error(caught.value)
        assert (error.code, error.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
        stream = EchoStub(channel).server_stream(word())
        try:
            await stream.read()
            await asyncio.sleep(0.5)
            assert not stream.done()
        finally:
            stream.cancel()


async def test_the_client_gives_unary_calls_a_deadline_and_streams_none() -> None:
    remaining: list[float | None] = []

    async def note(request: Word, context: Context) -> None:
        remaining.append(context.time_remaining())

    async with running_echo(note) as echo:
        await echo.stub.unary(word())
        await echo.stub.unary(word(), timeout=5)
        assert len([a async for a in echo.stub.server_stream(word())]) == 2
    default, given, stream = remaining
    assert default is not None
    assert given is not None
    assert 20 < default <= 30.5
    assert 3 < given <= 5.5
    assert stream is None


async def test_a_deadline_cancels_the_servicer() -> None:
    cancelled = asyncio.Event()

    async def hang(request: Word, context: Context) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with running_echo(hang) as echo:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await echo.stub.unary(word(), timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        async with asyncio.timeout(5):
            await cancelled.wait()


async def test_a_drain_lets_calls_finish_and_refuses_new_ones() -> None:
    begun = asyncio.Event()

    async def slow(request: Word, context: Context) -> None:
        begun.set()
        await asyncio.sleep(0.5)

    async with running_echo(slow, grace_seconds=30) as echo:
        running = asyncio.ensure_future(echo.stub.unary(word("last")))
        await begun.wait()
        await echo.server.drain()
        assert (await running).text == "last"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await echo.stub.unary(word("late"))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_drain_ends_what_outlasts_the_grace() -> None:
    async def hang(request: Word, context: Context) -> None:
        await asyncio.sleep(60)

    async with running_echo(hang, grace_seconds=0.2) as echo:
        stream = echo.stub.server_stream(word())
        await stream.read()
        await echo.server.drain()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await eventually(lambda: bool(echo.servicer.cancelled))


async def test_a_drain_sends_watchers_elsewhere_at_once() -> None:
    async def hang(request: Word, context: Context) -> None:
        await asyncio.sleep(60)

    async with running_echo(hang, watches=frozenset({"ServerStream"}), grace_seconds=60) as echo:
        stream = echo.stub.server_stream(word())
        await stream.read()
        async with asyncio.timeout(10):
            await echo.server.drain()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        error = from_rpc_error(caught.value)
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
        assert echo.servicer.cancelled


async def test_messages_up_to_the_limit_pass_both_ways() -> None:
    async with running_echo(max_message_bytes=transport.MAX_MESSAGE_BYTES) as echo:
        # Above grpc's own 4 MiB: many short texts, since a long one breaks the contract.
        parts = [word("x" * 30)] * 200_000
        answers = [answer async for answer in echo.stub.server_stream(word("big", parts))]
        assert [len(answer.parts) for answer in answers] == [200_000] * 2
    async with running_echo(max_message_bytes=1000) as echo:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await echo.stub.unary(word("big", parts[:100]))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_too_many_calls_are_refused() -> None:
    async def hang(request: Word, context: Context) -> None:
        await asyncio.sleep(60)

    # A plain channel: ours keeps a health watch open, which counts.
    async with (
        running_echo(hang, max_concurrent_calls=2) as echo,
        grpc.aio.insecure_channel(echo.server.address) as channel,
    ):
        calls = [EchoStub(channel).server_stream(word()) for _ in range(2)]
        try:
            for call in calls:
                await call.read()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await EchoStub(channel).unary(word())
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        finally:
            for call in calls:
                call.cancel()


async def test_watches_leave_room_for_other_calls() -> None:
    async def hang(request: Word, context: Context) -> None:
        if request.text == "watch":
            await asyncio.sleep(60)

    async with (
        running_echo(hang, watches=frozenset({"ServerStream"}), max_concurrent_calls=5) as echo,
        grpc.aio.insecure_channel(echo.server.address) as channel,
    ):
        stub = EchoStub(channel)
        calls = [stub.server_stream(word("watch")) for _ in range(4)]
        try:
            for call in calls:
                await call.read()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.server_stream(word("watch")).read()
            error = from_rpc_error(caught.value)
            assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
            assert (await stub.unary(word("short"))).text == "short"
            calls.pop().cancel()
            await eventually(lambda: bool(echo.servicer.cancelled))
            calls.append(stub.server_stream(word("watch")))
            await calls[-1].read()
        finally:
            for call in calls:
                call.cancel()


def test_clients_never_ping_more_often_than_servers_allow() -> None:
    server = dict(transport.server_options(1))
    client = dict(transport.client_options(1, ()))
    assert server["grpc.so_reuseport"] == 0
    assert server["grpc.keepalive_permit_without_calls"] == client["grpc.keepalive_permit_without_calls"] == 1
    assert int(client["grpc.keepalive_time_ms"]) >= 2 * int(server["grpc.http2.min_recv_ping_interval_without_data_ms"])


async def test_round_robin_moves_away_from_a_server_that_is_not_serving() -> None:
    telemetry = start_telemetry("t")
    first, second = (echo_server(EchoServicer(name=name), telemetry) for name in ("first", "second"))
    async with first, second:
        await first.set_ready(True)
        await second.set_ready(True)
        async with open_channel(f"ipv4:{first.address},{second.address}") as channel:
            stub = EchoStub(channel)

            async def answering() -> set[str]:
                return {(await stub.unary(word())).text for _ in range(20)}

            async def until(expected: set[str]) -> None:
                async with asyncio.timeout(20):
                    while await answering() != expected:
                        pass

            await until({"first", "second"})
            await first.set_ready(False)
            await until({"second"})
            await first.set_ready(True)
            await until({"first", "second"})
            await second.drain()
            await until({"first"})
            # Nobody serves: refused, not hung.
            await first.set_ready(False)

            async def until_refused() -> None:
                while True:
                    await stub.unary(word(), timeout=5)

            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asyncio.wait_for(until_refused(), 20)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_names_are_resolved() -> None:
    async with running_echo() as echo:
        port = echo.server.address.rpartition(":")[2]
        assert socket.gethostbyname("localhost") == "127.0.0.1"
        async with open_channel(f"dns:///localhost:{port}") as channel:
            assert (await EchoStub(channel).unary(word("x"))).text == "x"


async def test_unavailable_is_retried_until_it_is_not() -> None:
    tries: list[str] = []

    async def flaky(request: Word, context: Context) -> None:
        tries.append(request.text)
        if len(tries) < 3:
            await context.abort(grpc.StatusCode.UNAVAILABLE)

    async with running_echo(flaky) as echo:
        assert (await echo.stub.unary(word("x"))).text == "x"
        assert tries == ["x"] * 3


async def test_a_drain_does_not_trip_over_a_watch_that_is_just_being_refused() -> None:
    drains: list[asyncio.Task[None]] = []

    async def refuse(request: Word, context: Context) -> None:
        if request.text == "refuse":
            drains.append(asyncio.create_task(echo.server.drain(), name="drain"))
            raise ServiceError(grpc.StatusCode.NOT_FOUND, "NOT_HERE", "it is not here")
        await asyncio.sleep(60)

    async with running_echo(refuse, watches=frozenset({"ServerStream"}), grace_seconds=60) as echo:
        watching, refused = echo.stub.server_stream(word("watch")), echo.stub.server_stream(word("refuse"))
        await watching.read()
        await refused.read()
        for stream, code in ((refused, grpc.StatusCode.NOT_FOUND), (watching, grpc.StatusCode.UNAVAILABLE)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stream.read()
            assert caught.value.code() is code
        async with asyncio.timeout(10):
            await drains[0]
