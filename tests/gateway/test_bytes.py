"""Bytes of outputs, whole and by range."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Sequence

import grpc
import httpx
import pytest
from gateway_harness import WAIT_SECONDS, Context, GatewayUnderTest, Recorder
from google.api import httpbody_pb2  # pyright: ignore[reportMissingTypeStubs]  its wheel has no py.typed

from crucible.v1.evaluation_query_service_pb2 import OutputSlice
from crucible_chassis.errors import ServiceError
from crucible_gateway import byte_stream, exchange

ID = "01900000-0000-7000-8000-000000000000"
PATH = f"/v1/evaluations/{ID}/output/stdout"


def body(
    *pieces: bytes, offset: int = 0, size: int | None = None, complete: bool = True, length: int | None = None
) -> Sequence[httpbody_pb2.HttpBody]:
    length = sum(len(piece) for piece in pieces) if length is None else length
    whole = OutputSlice(offset=offset, length=length, size_bytes=length if size is None else size, complete=complete)
    messages = [httpbody_pb2.HttpBody(content_type="application/octet-stream", data=piece) for piece in pieces or [b""]]
    messages[0].extensions.add().Pack(whole)
    return messages


async def test_the_whole_is_given_as_it_is(upstream: Recorder, http: httpx.AsyncClient) -> None:
    upstream.prepare("ReadOutput", body(b"\x00\xff", b"\r\n", b"end"))
    response = await http.get(PATH)
    assert response.status_code == 200
    assert response.content == b"\x00\xff\r\nend"
    assert response.headers["content-length"] == "7"
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in response.headers["content-security-policy"]
    assert (upstream.only.request.stream, upstream.only.request.offset) == ("stdout", 0)


@pytest.mark.parametrize(
    ("asked", "offset", "limit", "answer", "shown"),
    [
        ("bytes=2-4", 2, 3, body(b"234", offset=2, size=10), "bytes 2-4/10"),
        ("bytes=8-", 8, 0, body(b"89", offset=8, size=10), "bytes 8-9/10"),
        ("bytes=-3", -3, 0, body(b"789", offset=7, size=10), "bytes 7-9/10"),
        ("bytes=2-4", 2, 3, body(b"23", offset=2, size=4, complete=False), "bytes 2-3/*"),
    ],
)
async def test_a_range_is_mapped(
    upstream: Recorder,
    http: httpx.AsyncClient,
    asked: str,
    offset: int,
    limit: int,
    answer: Sequence[httpbody_pb2.HttpBody],
    shown: str,
) -> None:
    upstream.prepare("ReadOutput", answer)
    response = await http.get(PATH, headers={"range": asked})
    assert response.status_code == 206
    assert response.content == answer[0].data
    assert response.headers["content-range"] == shown
    assert (upstream.only.request.offset, upstream.only.request.limit) == (offset, limit)


@pytest.mark.parametrize(
    "headers",
    [
        {"range": "bytes=0-1,4-5"},
        {"range": "lines=1-2"},
        {"range": "bytes=5-2"},
        {"range": "bytes=x"},
        {"range": "bytes=" + "9" * 40 + "-"},
        {"range": "bytes=0-1", "if-range": '"x"'},
    ],
)
async def test_a_range_that_cannot_be_read_is_none(
    upstream: Recorder, http: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    upstream.prepare("ReadOutput", body(b"whole"))
    response = await http.get(PATH, headers=headers)
    assert (response.status_code, response.content) == (200, b"whole")


async def test_a_range_past_the_end_is_not_satisfiable(upstream: Recorder, http: httpx.AsyncClient) -> None:
    past = ServiceError(grpc.StatusCode.OUT_OF_RANGE, "RANGE_NOT_SATISFIABLE", "past the end", metadata={"size": "2"})
    upstream.prepare("ReadOutput", past)
    upstream.prepare("ReadOutput", body(offset=2, size=2))
    for asked in ("bytes=7-", "bytes=2-"):
        response = await http.get(PATH, headers={"range": asked})
        assert response.status_code == 416
        assert response.headers["content-range"] == "bytes */2"
    assert (await http.get(PATH, headers={"range": "bytes=-0"})).status_code == 416


async def test_empty_output_is_empty(upstream: Recorder, http: httpx.AsyncClient) -> None:
    upstream.prepare("ReadOutput", body())
    response = await http.get(PATH)
    assert (response.status_code, response.content, response.headers["content-length"]) == (200, b"", "0")


async def test_the_query_names_a_part_as_well_but_not_beside_a_range(
    upstream: Recorder, http: httpx.AsyncClient
) -> None:
    upstream.prepare("ReadOutput", body(b"34", offset=3, size=9))
    response = await http.get(f"{PATH}?offset=3&limit=2")
    assert (response.status_code, response.content) == (200, b"34")
    response = await http.get(f"{PATH}?offset=3", headers={"range": "bytes=0-1"})
    assert response.status_code == 400
    assert response.json()["errors"][0]["field"] == "offset"


async def test_an_unknown_stream_is_named(upstream: Recorder, http: httpx.AsyncClient) -> None:
    response = await http.get(f"/v1/evaluations/{ID}/output/stdlog")
    assert response.status_code == 400
    assert response.json()["errors"][0]["field"] == "stream"


async def test_a_type_that_is_none_is_not_passed_on(upstream: Recorder, http: httpx.AsyncClient) -> None:
    bad = httpbody_pb2.HttpBody(content_type="text/html\r\nset-cookie: a=b", data=b"x")
    upstream.prepare("ReadOutput", [bad])
    response = await http.get(PATH)
    assert response.headers["content-type"] == "application/octet-stream"
    assert "set-cookie" not in response.headers


@pytest.mark.parametrize("length", [3, 99])
async def test_bytes_that_are_not_as_announced_break_the_connection(
    upstream: Recorder, http: httpx.AsyncClient, length: int
) -> None:
    upstream.prepare("ReadOutput", body(b"12345", b"6", length=length))
    with pytest.raises(httpx.TransportError):
        await http.get(PATH)


async def test_a_stream_that_breaks_breaks_the_connection(upstream: Recorder, http: httpx.AsyncClient) -> None:
    upstream.prepare("ReadOutput", [*body(b"12345", length=10), RuntimeError("secret")])
    with pytest.raises(httpx.TransportError):
        await http.get(PATH)


async def test_head_tells_the_length(upstream: Recorder, http: httpx.AsyncClient) -> None:
    upstream.prepare("ReadOutput", body(b"12345"))
    response = await http.head(PATH)
    assert (response.status_code, response.content, response.headers["content-length"]) == (200, b"", "5")


async def test_a_client_that_leaves_a_download_is_no_fault(
    upstream: Recorder, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    async def left() -> int:
        """Answers that nobody waited for, so far."""
        metrics = (await http.get("/metrics")).text
        counted = re.search(r'_count{method="GET",route="[^"]*output[^"]*",status="499"} (\d+)', metrics)
        return int(counted[1]) if counted else 0

    async def stall(request: object, context: Context) -> AsyncIterator[httpbody_pb2.HttpBody]:
        yield body(b"12345", length=10)[0]
        await asyncio.Event().wait()

    before = await left()
    upstream.prepare("ReadOutput", stall)
    async with asyncio.timeout(WAIT_SECONDS), http.stream("GET", PATH) as response:
        assert response.status_code == 200
    async with asyncio.timeout(WAIT_SECONDS):
        await upstream.only.ended.wait()
        while await left() == before:  # noqa: ASYNC110  polls another's state
            await asyncio.sleep(0.02)
    assert not [each for each in caplog.records if each.levelname == "ERROR"]


async def test_a_store_that_says_nothing_is_not_waited_for(
    upstream: Recorder, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byte_stream, "READ_SECONDS", 0.2)

    async def hang(request: object, context: Context) -> AsyncIterator[httpbody_pb2.HttpBody]:
        await asyncio.Event().wait()
        yield httpbody_pb2.HttpBody()

    async def stall(request: object, context: Context) -> AsyncIterator[httpbody_pb2.HttpBody]:
        yield body(b"12345", length=10)[0]
        await asyncio.Event().wait()

    upstream.prepare("ReadOutput", hang)
    response = await http.get(PATH)
    assert response.status_code == 504
    assert response.json()["reason"] == "DEADLINE_EXCEEDED"
    upstream.prepare("ReadOutput", stall)
    with pytest.raises(httpx.TransportError):
        await http.get(PATH)


async def test_a_slow_client_that_keeps_taking_is_served(
    upstream: Recorder, gateway: GatewayUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "SEND_SECONDS", 1.0)
    piece = b"x" * 2**20
    upstream.prepare("ReadOutput", body(*[piece] * 4))
    with socket.socket() as sock:
        # What the kernels keep between the two would hide how slow this client is.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", gateway.port))
        await loop.sock_sendall(sock, f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        taken = 0
        while got := await loop.sock_recv(sock, 2**13):
            taken += len(got)
            await asyncio.sleep(0.01)
    assert taken > 4 * len(piece)
