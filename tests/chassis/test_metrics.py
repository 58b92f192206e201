"""RED metrics of both sides, and the admin server."""

import asyncio
from collections.abc import Mapping

import grpc
import grpc.aio
import pytest
from echo_service import Context, Word, eventually, running_echo, word
from prometheus_client import REGISTRY

from crucible_chassis.errors import ServiceError
from crucible_chassis.metrics import MAX_REQUEST_BYTES, AdminServer, render_metrics


def sample(name: str, labels: Mapping[str, str]) -> float:
    return REGISTRY.get_sample_value(name, dict(labels)) or 0.0


async def test_calls_are_counted_by_code_on_both_sides() -> None:
    begun = asyncio.Event()

    async def behave(request: Word, context: Context) -> None:
        if request.text == "hang":
            begun.set()
            await asyncio.sleep(60)
        if request.text:
            raise ServiceError(grpc.StatusCode[request.text], "R", "x")

    method = {"service": "test.echo.Echo", "method": "Bidi"}

    def counts(code: str) -> list[float]:
        return [sample(f"grpc_{side}_seconds_count", {**method, "code": code}) for side in ("server", "client")]

    before = {code: counts(code) for code in ("OK", "NOT_FOUND", "CANCELLED")}
    async with running_echo(behave) as echo:
        for text in ("", "", "NOT_FOUND"):
            call = echo.stub.bidi(iter([word(text)]))
            try:
                async for _ in call:
                    pass
            except grpc.aio.AioRpcError:
                assert text
        call = echo.stub.bidi(iter([word("hang")]))
        reading = asyncio.ensure_future(call.read())
        await begun.wait()
        assert sample("grpc_server_in_flight", method) == 1
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await eventually(lambda: sample("grpc_server_in_flight", method) == 0)
        await eventually(lambda: counts("CANCELLED") == [count + 1 for count in before["CANCELLED"]])
    assert counts("OK") == [count + 2 for count in before["OK"]]
    assert counts("NOT_FOUND") == [count + 1 for count in before["NOT_FOUND"]]


async def ask(server: AdminServer, request: bytes) -> bytes:
    host, _, port = server.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        return await reader.read()
    finally:
        writer.close()


async def test_readiness_follows_the_service() -> None:
    ready = False
    async with AdminServer("127.0.0.1:0", lambda: ready) as server:
        assert (await ask(server, b"GET /readyz HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 503 ")
        assert (await ask(server, b"GET /healthz?x HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        ready = True
        assert (await ask(server, b"GET /readyz HTTP/1.1\r\n\r\n")).endswith(b"\r\n\r\nready\n")
        assert (await ask(server, b"HEAD /readyz HTTP/1.1\r\n\r\n")).endswith(b"\r\n\r\n")
        assert (await ask(server, b"POST /readyz HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 405 ")


async def test_openmetrics_is_given_where_it_is_asked_for() -> None:
    async with AdminServer("127.0.0.1:0", lambda: True) as server:
        request = b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text\r\n\r\n"
        assert b"\r\nContent-Type: application/openmetrics-text" in await ask(server, request)
    body, content_type = render_metrics()
    assert content_type.startswith("text/plain")
    assert b"# TYPE grpc_server_seconds histogram" in body


@pytest.mark.parametrize(
    "request_bytes", [b"", b"\r\n\r\n", b"\xff\xfe\r\n\r\n", b"GET / " + b"x" * 2 * MAX_REQUEST_BYTES]
)
async def test_nonsense_is_dropped_or_refused_and_harms_nobody(request_bytes: bytes) -> None:
    async with AdminServer("127.0.0.1:0", lambda: True) as server:
        host, _, port = server.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request_bytes)
        writer.write_eof()
        try:
            assert not (await reader.read()).startswith(b"HTTP/1.1 200")
        except ConnectionResetError:
            pass
        finally:
            writer.close()
        assert (await ask(server, b"GET /healthz HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
