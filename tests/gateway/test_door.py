"""What comes from a hostile world: every bad request has its answer, and none reaches a service."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from gateway_harness import WAIT_SECONDS, Context, GatewayUnderTest, Recorder, running_gateway

from crucible.v1 import runtime_service_pb2
from crucible.v1.evaluation_pb2 import Evaluation, Limits
from crucible_gateway import exchange, http_server, strict_json
from crucible_gateway.strict_json import read_json

ID = "01900000-0000-7000-8000-000000000000"
JSON = {"content-type": "application/json"}
POST = b"POST /v1/evaluations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
LIMIT = 8 * 1024 * 1024


@pytest.mark.parametrize(
    ("content", "status", "reason", "words"),
    [
        (b'{"runtime": "python",\n "source": }', 400, "MALFORMED_BODY", "line 2, column 12"),
        (b"", 400, "MALFORMED_BODY", "empty"),
        (b"   ", 400, "MALFORMED_BODY", "line 1"),
        (b"\xff\xfe", 400, "MALFORMED_BODY", "UTF-8"),
        (b'\xef\xbb\xbf{"runtime": "python"}', 400, "MALFORMED_BODY", "line 1"),
        (b'{"runtime": "a", "runtime": "b"}', 400, "MALFORMED_BODY", "runtime"),
        (b'{"limits": {"processes": NaN}}', 400, "MALFORMED_BODY", "NaN"),
        (b'{"limits": {"processes": -Infinity}}', 400, "MALFORMED_BODY", "Infinity"),
        (b'{"runtime": "python"} x', 400, "MALFORMED_BODY", "line 1, column 23"),
        (b"[" * 200_000, 400, "MALFORMED_BODY", "deeply"),
        (b'{"a":' * 200_000, 400, "MALFORMED_BODY", "deeply"),
        (b'{"limits": {"processes": 1' + b"0" * 100_000 + b"}}", 400, "MALFORMED_BODY", "digits"),
        (b"[" + b"{}," * 400_000 + b"{}]", 400, "MALFORMED_BODY", "800000 brackets, braces and commas"),
        (b"[" + b"[]," * 2_000_000 + b"[]]", 400, "MALFORMED_BODY", "800000 brackets, braces and commas"),
        (b'{"' + b'":0,"' * 1_000_000 + b'":0}', 400, "MALFORMED_BODY", "800000 brackets, braces and commas"),
        (b"[]", 400, "INVALID_FIELD", "an array"),
        (b"null", 400, "INVALID_FIELD", "null"),
        (b'"x"', 400, "INVALID_FIELD", "a string"),
        (b'{"sauce": 1}', 400, "INVALID_FIELD", "did you mean source?"),
        (b'{"runtime": 7}', 400, "INVALID_FIELD", "a number"),
        (b'{"runtime": "\\ud800"}', 400, "INVALID_FIELD", "surrogate"),
        (b'{"runtime": "python", "source": "1", "priority": "\\ud800"}', 400, "INVALID_FIELD", "priority"),
        (b'{"runtime": "python", "\\ud800": 1}', 400, "INVALID_FIELD", "is not a field"),
        (b'{"runtime": "python", "labels": {"\\ud800": "x"}}', 400, "INVALID_FIELD", "labels"),
        (b'{"limits": {"processes": 1e999}}', 400, "INVALID_FIELD", "limits.processes"),
        (b'{"limits": {"processes": 1.5}}', 400, "INVALID_FIELD", "limits.processes"),
        (b'{"limits": {"processes": true}}', 400, "INVALID_FIELD", "limits.processes"),
        (b'{"limits": {"memoryBytes": "99999999999999999999"}}', 400, "INVALID_FIELD", "limits.memoryBytes"),
        (b'{"limits": {"memoryBytes": 1, "memory_bytes": 2}}', 400, "INVALID_FIELD", "twice"),
        (b'{"limits": {"wallTime": "1 hour"}}', 400, "INVALID_FIELD", "limits.wallTime"),
        (b'{"limits": {"wallTime": 3}}', 400, "INVALID_FIELD", "duration"),
        (b'{"limits": []}', 400, "INVALID_FIELD", "an array"),
        (b'{"files": {}}', 400, "INVALID_FIELD", "an object"),
        (b'{"files": [null]}', 400, "INVALID_FIELD", "files[0]"),
        (b'{"files": [{"path": "a", "text": "", "data": ""}]}', 400, "INVALID_FIELD", "files[0].data"),
        (b'{"files": [{"path": "a", "data": "?"}]}', 400, "INVALID_FIELD", "base64"),
        (b'{"env": {"A": 1}}', 400, "INVALID_FIELD", 'env[\\"A\\"]'),
        (b'{"env": {"A": null}}', 400, "INVALID_FIELD", 'env[\\"A\\"]'),
        (b'{"args": "x"}', 400, "INVALID_FIELD", "args"),
        (b'{"priority": "URGENT"}', 400, "INVALID_FIELD", "URGENT"),
        (b'{"createTime": "yesterday"}', 400, "INVALID_FIELD", "createTime"),
    ],
)
async def test_a_bad_body_is_told_what_is_wrong(
    upstream: Recorder, http: httpx.AsyncClient, content: bytes, status: int, reason: str, words: str
) -> None:
    response = await http.post("/v1/evaluations", content=content, headers=JSON)
    assert (response.status_code, response.json()["reason"]) == (status, reason), response.text
    assert words in response.text
    assert len(response.content) < 10_000
    assert response.headers["content-type"] == "application/problem+json"
    assert not upstream.asked


@pytest.mark.parametrize(
    ("method", "path", "headers", "content", "status", "reason"),
    [
        ("GET", "/v1/nothing", {}, b"", 404, "ROUTE_NOT_FOUND"),
        ("GET", "/v1/evaluations/", {}, b"", 404, "ROUTE_NOT_FOUND"),
        ("GET", f"/v1/evaluations/{ID}:nonsense", {}, b"", 404, "ROUTE_NOT_FOUND"),
        ("GET", "/" + "a/" * 5000, {}, b"", 404, "ROUTE_NOT_FOUND"),
        ("GET", "/" + "a" * 17_000, {}, b"", 414, "URL_TOO_LONG"),
        ("GET", "/v1/evaluations?filter=" + "a" * 40_000, {}, b"", 414, "URL_TOO_LONG"),
        ("GET", "/v1/evaluations", {"x": "a" * 40_000}, b"", 431, "HEADERS_TOO_LARGE"),
        ("GET", "/v1/evaluations?filter=" + "a" * 10_000, {"x": "a" * 30_000}, b"", 431, "HEADERS_TOO_LARGE"),
        ("PUT", "/", {}, b"", 405, "METHOD_NOT_ALLOWED"),
        ("PUT", "/v1/evaluations", JSON, b"{}", 405, "METHOD_NOT_ALLOWED"),
        ("OPTIONS", "/v1/evaluations", {}, b"", 405, "METHOD_NOT_ALLOWED"),
        ("BREW", "/v1/evaluations", {}, b"", 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/v1/evaluations", {"content-type": "text/plain"}, b"{}", 415, "UNSUPPORTED_MEDIA_TYPE"),
        ("POST", "/v1/evaluations", {}, b"{}", 415, "UNSUPPORTED_MEDIA_TYPE"),
        (
            "POST",
            "/v1/evaluations",
            {"content-type": "application/json; charset=latin-1"},
            b"{}",
            415,
            "UNSUPPORTED_MEDIA_TYPE",
        ),
        ("POST", "/v1/evaluations", JSON | {"content-encoding": "gzip"}, b"{}", 415, "UNSUPPORTED_MEDIA_TYPE"),
        ("POST", "/v1/evaluations", JSON, b"x" * (LIMIT + 1), 413, "BODY_TOO_LARGE"),
        ("GET", "/v1/evaluations", JSON, b"{}", 400, "MALFORMED_BODY"),
        ("GET", "/v1/evaluations/%zz", {}, b"", 400, "INVALID_FIELD"),
        ("GET", "/v1/evaluations/%ff", {}, b"", 400, "INVALID_FIELD"),
        ("GET", "/v1/evaluations?page_sise=3", {}, b"", 400, "INVALID_FIELD"),
        ("GET", "/v1/evaluations?page_size=x", {}, b"", 400, "INVALID_FIELD"),
        ("GET", "/v1/evaluations?page_size=", {}, b"", 400, "INVALID_FIELD"),
        ("GET", "/v1/evaluations?page_size=1&pageSize=1", {}, b"", 400, "INVALID_FIELD"),
        ("GET", "/v1/evaluations?filter=%ff", {}, b"", 400, "INVALID_FIELD"),
        ("GET", "/v1/evaluations?filter", {}, b"", 400, "INVALID_FIELD"),
        ("GET", "/v1/evaluations?" + "&".join("filter=" for _ in range(101)), {}, b"", 400, "INVALID_FIELD"),
        ("GET", f"/v1/evaluations/{ID}?id={ID}", {}, b"", 400, "INVALID_FIELD"),
        ("GET", f"/v1/evaluations/{ID}:wait?timeout=3", {}, b"", 400, "INVALID_FIELD"),
        ("POST", "/v1/evaluations?evaluation.runtime=python", JSON, b"{}", 400, "INVALID_FIELD"),
        ("POST", f"/v1/evaluations/{ID}:cancel?id=x", {}, b"", 400, "INVALID_FIELD"),
        ("POST", f"/v1/evaluations/{ID}:cancel", JSON, b'{"id": "x"}', 400, "INVALID_FIELD"),
        ("POST", "/v1/evaluations:batchCreate", {}, b"", 415, "UNSUPPORTED_MEDIA_TYPE"),
        ("POST", "/v1/evaluations:batchCreate", JSON, b"", 400, "MALFORMED_BODY"),
        ("POST", "/v1/evaluations", JSON | {"idempotency-key": ""}, b"{}", 400, "INVALID_FIELD"),
        ("GET", "/v1/evaluations", {"host": "attacker.example"}, b"", 403, "HOST_NOT_ALLOWED"),
        ("GET", "/v1/evaluations", {"host": "localhost.attacker.example"}, b"", 403, "HOST_NOT_ALLOWED"),
        ("GET", "/v1/evaluations", {"host": "user@localhost"}, b"", 403, "HOST_NOT_ALLOWED"),
        ("GET", "/openapi.json", {"host": "attacker.example"}, b"", 403, "HOST_NOT_ALLOWED"),
        ("POST", f"/v1/evaluations/{ID}:cancel", {"origin": "https://attacker.example"}, b"", 403, "HOST_NOT_ALLOWED"),
        ("POST", f"/v1/evaluations/{ID}:cancel", {"origin": "null"}, b"", 403, "HOST_NOT_ALLOWED"),
    ],
)
async def test_a_wrong_request_gets_its_code(
    upstream: Recorder,
    http: httpx.AsyncClient,
    method: str,
    path: str,
    headers: dict[str, str],
    content: bytes,
    status: int,
    reason: str,
) -> None:
    response = await http.request(method, path, headers=headers, content=content)
    assert response.status_code == status, response.text
    problem = response.json()
    assert (problem["status"], problem["reason"]) == (status, reason)
    assert problem["traceId"] == response.headers["crucible-trace-id"]
    assert "access-control-allow-origin" not in response.headers
    assert not upstream.asked


@pytest.mark.parametrize(
    ("path", "body", "field", "words"),
    [
        ("/v1/evaluations:run", b'{"timeout": "3s"}', "timeout", "is a query parameter: send it in the URL"),
        ("/v1/evaluations", b'{"requestId": "a"}', "requestId", "is a query parameter: send it in the URL"),
        ("/v1/evaluations?runtime=python", b"{}", "runtime", "is a field of the body: send it there"),
        ("/v1/evaluations?limits.wallTime=1s", b"{}", "limits.wallTime", "is a field of the body: send it there"),
        ("/v1/evaluations:run?timeuot=1s", b"{}", "timeuot", "did you mean timeout?"),
        ("/v1/evaluations:run?wait=true", b"{}", "wait", "it takes request_id, timeout"),
        ("/v1/evaluations:batchCreate?dry=1", b"{}", "dry", "takes everything in the body"),
    ],
)
async def test_what_is_sent_in_the_wrong_place_is_told_the_right_one(
    upstream: Recorder, http: httpx.AsyncClient, path: str, body: bytes, field: str, words: str
) -> None:
    response = await http.post(path, content=body, headers=JSON)
    assert response.status_code == 400
    (error,) = response.json()["errors"]
    assert error["field"] == field
    assert words in error["message"]
    assert not upstream.asked


async def test_allow_names_the_methods(upstream: Recorder, http: httpx.AsyncClient) -> None:
    assert (await http.put("/v1/evaluations")).headers["allow"] == "GET, HEAD, POST"
    assert (await http.get("/v1/evaluations:run")).headers["allow"] == "POST"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:99", "127.0.0.1", "[::1]:8080", "localhost."])
async def test_names_of_this_machine_are_taken(http: httpx.AsyncClient, host: str) -> None:
    assert (await http.get("/openapi.json", headers={"host": host})).status_code == 200


async def test_hosts_are_a_setting_and_probes_need_none() -> None:
    hosts = "crucible.example, other.example"
    async with running_gateway(hosts=hosts) as gateway, httpx.AsyncClient(base_url=gateway.url) as http:
        assert (await http.get("/docs", headers={"host": "Crucible.Example:443"})).status_code == 200
        assert (await http.get("/docs")).status_code == 403
        assert (await http.get("/healthz")).status_code == 200


async def test_a_page_of_our_own_may_post(upstream: Recorder, http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/evaluations", content=b"{", headers=JSON | {"origin": "http://localhost:5173"})
    assert response.json()["reason"] == "MALFORMED_BODY"


async def test_a_chunked_body_is_bounded_while_it_is_read(upstream: Recorder, gateway: GatewayUnderTest) -> None:
    head = POST + b"Transfer-Encoding: chunked\r\n\r\n"
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(head)
    for _ in range(9):
        writer.write(chunk)
    async with asyncio.timeout(WAIT_SECONDS):
        status = await reader.readline()
    assert b"413" in status
    writer.close()


async def until_cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drip: bytes) -> None:
    """Sends on and on; returns when the gateway has closed the connection, which it must."""
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while not reader.at_eof():
                writer.write(drip)
                await writer.drain()
                await asyncio.sleep(0.05)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await reader.read(1000)
    except ConnectionError:
        pass
    finally:
        writer.close()


async def test_a_head_that_never_ends_is_cut(gateway: GatewayUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HEAD_SECONDS", 0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
    await until_cut(reader, writer, b"X-A: b\r\n")


async def test_an_answered_body_is_not_swallowed_for_ever(
    upstream: Recorder, gateway: GatewayUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "HEAD_SECONDS", 0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"POST /v1/none HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n")
    async with asyncio.timeout(WAIT_SECONDS):
        assert b"404" in await reader.readline()
    await until_cut(reader, writer, b"x" * 100)


@pytest.mark.parametrize("apart", [True, False])
async def test_a_body_that_cannot_be_read_after_its_answer_ends_the_connection(
    gateway: GatewayUnderTest, caplog: pytest.LogCaptureFixture, *, apart: bool
) -> None:
    head = b"POST /v1/none HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    async with asyncio.timeout(WAIT_SECONDS):
        if apart:
            writer.write(head)
            assert b"404" in await reader.readline()
            writer.write(b"ZZZ\r\n")
        else:
            writer.write(head + b"ZZZ\r\n")
        answer = await reader.read()
    writer.close()
    assert answer.count(b"HTTP/1.1 400") == (0 if apart else 1)
    # Whatever is logged of it is logged by the time another request was answered.
    assert (await gateway.raw(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")).endswith(
        b"ok\n"
    )
    assert not [each for each in caplog.records if each.levelname == "ERROR"]


async def test_a_body_that_does_not_come_is_not_waited_for(
    upstream: Recorder, gateway: GatewayUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "BODY_SECONDS", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    head = POST + b"Content-Length: 9\r\n\r\n"
    writer.write(head + b'{"')
    async with asyncio.timeout(WAIT_SECONDS):
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.splitlines() if line.startswith(b"content-length: "))
        problem = json.loads(await reader.readexactly(int(length.split()[1])))
    writer.close()
    assert head.startswith(b"HTTP/1.1 408 ")
    assert (problem["reason"], problem["title"]) == ("BODY_TOO_SLOW", "The body did not come in time")


async def test_bodies_that_dawdle_cannot_fill_the_memory(
    upstream: Recorder, gateway: GatewayUnderTest, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "MAX_HELD_BYTES", 2000)
    body = b'{"runtime": "python", "source": "%s"}' % (b"x" * 1000)

    async def posted(status: int) -> httpx.Response:
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                upstream.clear()
                upstream.prepare("CreateEvaluation", Evaluation(id=ID))
                response = await http.post("/v1/evaluations", content=body, headers=JSON)
                if response.status_code == status:
                    return response
                await asyncio.sleep(0.02)

    _, dawdler = await asyncio.open_connection("127.0.0.1", gateway.port)
    dawdler.write(POST + b"Content-Length: 9000\r\n\r\n" + b" " * 1500)
    refused = await posted(503)
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["metadata"] == {"part": "gateway"}
    dawdler.close()
    await posted(200)


async def test_a_body_counts_until_its_answer(
    upstream: Recorder, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "MAX_HELD_BYTES", 2000)
    body = b'{"runtime": "python", "source": "%s"}' % (b"x" * 1500)
    go_on = asyncio.Event()

    async def wait(request: object, context: Context) -> AsyncIterator[Evaluation]:
        await go_on.wait()
        yield Evaluation(id=ID)

    upstream.prepare("RunEvaluation", wait)
    running = asyncio.create_task(http.post("/v1/evaluations:run", content=body, headers=JSON), name="run")
    await upstream.wait_for_calls(1)
    assert (await http.post("/v1/evaluations", content=body, headers=JSON)).status_code == 503
    go_on.set()
    assert (await running).status_code == 200
    upstream.prepare("CreateEvaluation", Evaluation(id=ID))
    assert (await http.post("/v1/evaluations", content=body, headers=JSON)).status_code == 200


@pytest.mark.parametrize("source", ["[{,]}" * 50_000, '"[,' * 50_000, "\\[,\n" * 50_000, "\\"])
async def test_what_stands_in_a_program_makes_no_body_too_complex(
    upstream: Recorder, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setattr(strict_json, "MAX_PARTS", 3)
    upstream.prepare("CreateEvaluation", Evaluation(id=ID))
    body = {"runtime": "python", "source": source, "stdin": source}
    assert (await http.post("/v1/evaluations", json=body)).status_code == 200
    assert upstream.only.request.evaluation.source == source
    refused = await http.post("/v1/evaluations", json=body | {"entrypoint": source})
    assert refused.json()["reason"] == "MALFORMED_BODY"


def test_the_largest_batch_is_not_too_complex() -> None:
    evaluation = {
        **{field.json_name: "" for field in Evaluation.DESCRIPTOR.fields if not field.is_repeated},
        "limits": {field.json_name: 0 for field in Limits.DESCRIPTOR.fields},
        "files": [{"path": "", "text": ""}] * 100,
        "args": [""] * 256,
        "env": {str(number): "" for number in range(128)},
        "labels": {str(number): "" for number in range(32)},
    }
    requests = [{"requestId": "", "evaluation": evaluation}] * 1000
    assert read_json(json.dumps({"requests": requests}).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST /v1/evaluations HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/evaluations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"\r\n\r\n\x00",
    ],
)
async def test_what_is_no_http_is_refused(gateway: GatewayUnderTest, data: bytes) -> None:
    answer = await gateway.raw(data)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.1 400", b"HTTP/1.1 403")), answer[:80]
    assert b"application/problem+json" in head
    assert json.loads(body)["status"] in (400, 403)


RUNTIMES = b"GET /v1/runtimes HTTP/1.1\r\nHost: localhost\r\n"
LAST = b"Connection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /v1/%72untimes HTTP/1.1\r\nHost: localhost\r\n" + LAST, 200),
        (b"GET /v1%2Fruntimes HTTP/1.1\r\nHost: localhost\r\n" + LAST, 404),
        (b"GET /docs/../v1/runtimes HTTP/1.1\r\nHost: localhost\r\n" + LAST, 404),
        (b"GET //v1/runtimes HTTP/1.1\r\nHost: localhost\r\n" + LAST, 404),
        (b"GET http://attacker.example/v1/runtimes HTTP/1.1\r\nHost: localhost\r\n" + LAST, 404),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n" + LAST, 404),
        (b"CONNECT localhost:22 HTTP/1.1\r\nHost: localhost\r\n" + LAST, 404),
        (b"TRACE /v1/runtimes HTTP/1.1\r\nHost: localhost\r\n" + LAST, 405),
        (RUNTIMES + b"Upgrade: websocket\r\nConnection: Upgrade, close\r\n\r\n", 200),
        (RUNTIMES + b"traceparent: 00-zz-zz-zz\r\n" + LAST, 200),
        (RUNTIMES + b"".join(b"X-%d: a\r\n" % number for number in range(2000)) + LAST, 200),
        (RUNTIMES + b"X: a\0b\r\n" + LAST, 400),
        ("GET /v1/é HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), 400),
        (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n", 400),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n", 413),
    ],
)
async def test_odd_but_readable_requests_have_one_clear_status(
    gateway: GatewayUnderTest, upstream: Recorder, data: bytes, status: int
) -> None:
    if status == 200:
        upstream.prepare("ListRuntimes", runtime_service_pb2.ListRuntimesResponse())
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(data)
    async with asyncio.timeout(WAIT_SECONDS):
        assert (await reader.readline()).startswith(b"HTTP/1.1 %d " % status)
    writer.close()


async def test_a_body_may_come_in_pieces_and_after_a_100(gateway: GatewayUnderTest, upstream: Recorder) -> None:
    body = b'{"runtime": "python", "source": "print(1)"}'
    for head, pieces in (
        (b"Expect: 100-continue\r\nContent-Length: %d\r\n" % len(body), [body]),
        (b"Transfer-Encoding: chunked\r\n", [b"%x\r\n" % len(body), body, b"\r\n0\r\n\r\n"]),
    ):
        upstream.prepare("CreateEvaluation", Evaluation(id=ID))
        answer = await gateway.raw(POST + head + LAST, more=pieces)
        assert answer.startswith((b"HTTP/1.1 100 Continue", b"HTTP/1.1 200"))
        assert ID.encode() in answer


async def test_pipelined_requests_are_answered_in_order(gateway: GatewayUnderTest) -> None:
    head = b" HTTP/1.1\r\nHost: localhost\r\n"
    answer = await gateway.raw(b"GET /healthz%s\r\nGET /v1/none%s\r\nGET /readyz%s%s" % (head, head, head, LAST))
    assert [answer.find(b"HTTP/1.1 200"), answer.find(b"HTTP/1.1 404")] == sorted(
        (answer.find(b"HTTP/1.1 200"), answer.find(b"HTTP/1.1 404"))
    )
    assert answer.count(b"HTTP/1.1 ") == 3
    assert answer.endswith(b"ready\n")


async def test_idle_connections_hold_up_nobody(gateway: GatewayUnderTest, http: httpx.AsyncClient) -> None:
    idle = [await asyncio.open_connection("127.0.0.1", gateway.port) for _ in range(300)]
    assert (await http.get("/healthz")).status_code == 200
    for _, writer in idle:
        writer.close()


@pytest.mark.parametrize(
    ("data", "status"),
    [(b"GET /", 414), (b"GET /%s HTTP/1.1\r\nX: " % (b"a" * 20_000), 414), (b"GET / HTTP/1.1\r\nX: ", 431)],
)
async def test_a_head_too_large_to_be_read_is_a_problem_too(
    gateway: GatewayUnderTest, data: bytes, status: int
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    async with asyncio.timeout(WAIT_SECONDS):
        for piece in (data, *[b"a" * 11_000] * 3):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.05)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"application/problem+json" in head
    problem = json.loads(body)
    assert problem["status"] == status
    assert problem["metadata"] == {"maximumBytes": {414: "16384", 431: "32768"}[status]}


async def test_the_root_leads_to_the_documentation(http: httpx.AsyncClient) -> None:
    for method in ("GET", "HEAD"):
        response = await http.request(method, "/")
        assert (response.status_code, response.headers["location"]) == (302, "/docs")
        assert ("/openapi.json" in response.text) == (method == "GET")


async def test_a_head_of_any_size_is_not_gathered(gateway: GatewayUnderTest) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
    await until_cut(reader, writer, b"a" * 100_000)


async def test_a_wait_at_the_end_of_the_grace_is_told_to_come_again() -> None:
    async def hang(request: object, context: Context) -> AsyncIterator[Evaluation]:
        await asyncio.Event().wait()
        yield Evaluation()

    async with running_gateway(grace_seconds=2) as gateway, httpx.AsyncClient(base_url=gateway.url, timeout=30) as http:
        gateway.recorder.prepare("WaitEvaluation", hang)
        waiting = asyncio.create_task(http.get(f"/v1/evaluations/{ID}:wait"), name="waiting")
        await gateway.recorder.wait_for_calls(1)
        stopping = gateway.begin_stop()
        response = await waiting
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        await stopping


async def test_readiness_follows_both_upstreams() -> None:
    async def becomes(http: httpx.AsyncClient, status: int) -> str:
        async with asyncio.timeout(WAIT_SECONDS):
            while (response := await http.get("/readyz")).status_code != status:  # noqa: ASYNC110  polls another's state
                await asyncio.sleep(0.02)
        return response.text

    async with running_gateway() as gateway, httpx.AsyncClient(base_url=gateway.url) as http:
        await gateway.store.set_ready(False)
        assert await becomes(http, 503) == "not ready: store\n"
        assert (await http.get("/v1/runtimes")).status_code == 503
        await gateway.store.set_ready(True)
        await becomes(http, 200)
        await gateway.scheduler.drain()
        assert await becomes(http, 503) == "not ready: scheduler\n"
        assert (await http.get("/healthz")).text == "ok\n"


async def test_metrics_count_by_route(upstream: Recorder, http: httpx.AsyncClient) -> None:
    await http.get("/v1/nothing/at/all")
    await http.get(f"/v1/evaluations/{ID}?x=1")
    text = (await http.get("/metrics")).text
    assert 'http_server_request_duration_seconds_count{method="GET",route="/v1/evaluations/{id}",status="400"}' in text
    assert "/v1/nothing" not in text
    assert 'http_server_active_requests{method="GET",route="/metrics"} 1.0' in text


async def test_many_faults_are_named_together_but_not_without_end(upstream: Recorder, http: httpx.AsyncClient) -> None:
    body = {f"x{number}": 1 for number in range(1000)}
    response = await http.post("/v1/evaluations", content=json.dumps(body), headers=JSON)
    assert len(response.json()["errors"]) == 20
