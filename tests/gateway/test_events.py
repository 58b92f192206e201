"""Streams of numbered events: Server-Sent Events and JSON lines, breaks and ends."""

import asyncio
import json
from collections.abc import AsyncIterator

import grpc
import httpx
import pytest
from gateway_harness import WAIT_SECONDS, Context, GatewayUnderTest, Recorder, events_of, running_gateway

from crucible.v1.evaluation_query_service_pb2 import WatchEvaluationRequest
from crucible.v1.event_pb2 import Event, OutputChunk
from crucible_chassis.errors import ServiceError
from crucible_contracts.policy import STREAM_OPEN
from crucible_gateway import sse

ID = "01900000-0000-7000-8000-000000000000"
PATH = f"/v1/evaluations/{ID}/events:watch"


def queued(sequence: int) -> Event:
    event = Event(evaluation_id=ID, sequence=sequence, generation=1)
    event.queued.SetInParent()
    return event


def output(sequence: int, text: str) -> Event:
    chunk = OutputChunk(stream=OutputChunk.STDOUT, offset=0, text=text)
    return Event(evaluation_id=ID, sequence=sequence, generation=1, attempt=1, output=chunk)


def elided(sequence: int) -> Event:
    event = Event(evaluation_id=ID, sequence=sequence)
    event.output_elided.stream = OutputChunk.STDERR
    return event


async def test_events_have_id_kind_and_data(upstream: Recorder, http: httpx.AsyncClient) -> None:
    upstream.prepare("WatchEvaluation", [queued(1), output(2, "a\nb\r\u2028\u2029\x85é"), elided(3)])
    response = await http.get(PATH)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.text.startswith("retry: 1000\n\n")
    events = events_of(response.text)
    assert [(each["id"], each["event"]) for each in events] == [
        ("1", "queued"),
        ("2", "output"),
        ("3", "output_elided"),
    ]
    data = json.loads(events[1]["data"])
    assert data["output"] == {"stream": "STDOUT", "offset": "0", "text": "a\nb\r\u2028\u2029\x85é"}
    assert data["sequence"] == 2


async def test_a_reconnect_resumes_after_the_last_event(upstream: Recorder, http: httpx.AsyncClient) -> None:
    upstream.prepare("WatchEvaluation", [queued(8)])
    # What a browser does: the first connection's query once more, and the header with the newer number.
    await http.get(f"{PATH}?after_sequence=3", headers={"last-event-id": "7"})
    request = upstream.only.request
    assert isinstance(request, WatchEvaluationRequest)
    assert request.after_sequence == 7


async def test_nothing_left_to_resume_ends_a_browsers_reconnecting(upstream: Recorder, http: httpx.AsyncClient) -> None:
    for _ in range(4):
        upstream.prepare("WatchEvaluation", [])
    assert (await http.get(PATH, headers={"last-event-id": "7"})).status_code == 204
    # Nothing came that has an id: a browser repeats the query alone.
    assert (await http.get(f"{PATH}?after_sequence=7")).status_code == 204
    for path in (PATH, f"{PATH}?after_sequence=0"):
        first = await http.get(path)
        assert (first.status_code, events_of(first.text)) == (200, [])


@pytest.mark.parametrize("number", ["x", "1.5", "-1", "99999999999", "1 2"])
async def test_a_last_event_id_that_is_none_is_refused(
    upstream: Recorder, http: httpx.AsyncClient, number: str
) -> None:
    response = await http.get(PATH, headers={"last-event-id": number})
    assert response.status_code == 400
    assert [each["field"] for each in response.json()["errors"]] == ["Last-Event-ID"]


async def test_a_failure_before_the_first_event_has_its_status(upstream: Recorder, http: httpx.AsyncClient) -> None:
    missing = ServiceError(grpc.StatusCode.NOT_FOUND, "EVALUATION_NOT_FOUND", "no such evaluation")
    upstream.prepare("WatchEvaluation", missing)
    response = await http.get(PATH)
    assert response.status_code == 404
    assert response.json()["reason"] == "EVALUATION_NOT_FOUND"


async def test_a_failure_later_is_an_event(upstream: Recorder, http: httpx.AsyncClient) -> None:
    upstream.prepare("WatchEvaluation", [queued(1), RuntimeError("secret")])
    response = await http.get(PATH)
    assert response.status_code == 200
    last = events_of(response.text)[-1]
    assert last["event"] == "error"
    assert json.loads(last["data"])["reason"] == "INTERNAL"
    assert "secret" not in response.text


async def test_json_lines_where_they_are_preferred(upstream: Recorder, http: httpx.AsyncClient) -> None:
    upstream.prepare("WatchEvaluation", [queued(1), output(2, "x\n"), RuntimeError("secret")])
    response = await http.get(PATH, headers={"accept": "application/x-ndjson"})
    assert response.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert [line.get("sequence") for line in lines] == [1, 2, None]
    assert lines[2]["error"]["status"] == 500


async def test_events_arrive_one_by_one_and_a_client_that_leaves_ends_the_call(
    upstream: Recorder, http: httpx.AsyncClient
) -> None:
    go_on = asyncio.Event()

    async def live(request: object, context: Context) -> AsyncIterator[Event]:
        yield queued(1)
        await go_on.wait()
        yield queued(2)
        await asyncio.Event().wait()

    upstream.prepare("WatchEvaluation", live)
    async with asyncio.timeout(WAIT_SECONDS), http.stream("GET", PATH) as response:
        pieces = response.aiter_text()
        text = ""
        while "id: 1" not in text:
            text += await anext(pieces)
        assert "id: 2" not in text
        go_on.set()
        while "id: 2" not in text:
            text += await anext(pieces)
    async with asyncio.timeout(WAIT_SECONDS):
        await upstream.only.ended.wait()
    assert upstream.only.cancelled


async def test_a_stream_that_is_open_begins_before_it_has_anything_to_send(
    upstream: Recorder, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "HEAD_SECONDS", 1000)
    go_on = asyncio.Event()

    async def quiet(request: object, context: Context) -> AsyncIterator[Event]:
        await context.send_initial_metadata((STREAM_OPEN,))
        await go_on.wait()
        yield queued(8)

    upstream.prepare("WatchEvaluation", quiet)
    async with asyncio.timeout(WAIT_SECONDS), http.stream("GET", PATH, headers={"last-event-id": "7"}) as response:
        assert response.status_code == 200
        go_on.set()
        assert [each["id"] for each in events_of((await response.aread()).decode())] == ["8"]


async def test_a_quiet_stream_begins_and_pings(
    upstream: Recorder, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "HEAD_SECONDS", 0.05)
    monkeypatch.setattr(sse, "PING_SECONDS", 0.05)

    async def quiet(request: object, context: Context) -> AsyncIterator[Event]:
        await asyncio.sleep(0.4)
        yield queued(1)

    upstream.prepare("WatchEvaluation", quiet)
    response = await http.get(PATH)
    before, _, _ = response.text.partition("id: 1")
    assert before.count(": ping\n\n") >= 2


async def test_a_stream_that_loses_its_server_goes_on_elsewhere(upstream: Recorder, http: httpx.AsyncClient) -> None:
    away = ServiceError(grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE", "the server is stopping")
    upstream.prepare("WatchEvaluation", [queued(1), queued(2), away])
    upstream.prepare("WatchEvaluation", [queued(3)])
    response = await http.get(PATH)
    assert [each["id"] for each in events_of(response.text)] == ["1", "2", "3"]
    assert [each.request.after_sequence for each in upstream.asked] == [0, 2]


async def test_a_slow_client_slows_its_own_stream(upstream: Recorder, gateway: GatewayUnderTest) -> None:
    sent = 0

    async def flood(request: object, context: Context) -> AsyncIterator[Event]:
        nonlocal sent
        while True:
            sent += 1
            yield output(sent, "x" * 100_000)

    upstream.prepare("WatchEvaluation", flood)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1024)
    writer.write(f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    await reader.readexactly(1)
    before = -1
    async with asyncio.timeout(WAIT_SECONDS):
        while before != sent:
            before = sent
            await asyncio.sleep(0.5)
    assert sent < 1000, "what nobody reads is not gathered"
    writer.close()
    async with asyncio.timeout(WAIT_SECONDS):
        await upstream.only.ended.wait()


async def test_head_opens_and_leaves(upstream: Recorder, http: httpx.AsyncClient) -> None:
    upstream.prepare("WatchEvaluation", [queued(1)])
    response = await http.head(PATH)
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"] == "text/event-stream"


async def test_a_shutdown_ends_streams_cleanly() -> None:
    async def live(request: object, context: Context) -> AsyncIterator[Event]:
        yield queued(1)
        await asyncio.Event().wait()

    async with running_gateway() as gateway, httpx.AsyncClient(base_url=gateway.url, timeout=30) as http:
        gateway.recorder.prepare("WatchEvaluation", live)
        async with asyncio.timeout(WAIT_SECONDS), http.stream("GET", PATH) as response:
            pieces = response.aiter_text()
            text = await anext(pieces)
            stopping = gateway.begin_stop()
            # Ends without a transport error: the last chunk was sent.
            text += "".join([piece async for piece in pieces])
        assert [each["id"] for each in events_of(text)] == ["1"]
        await stopping
        with pytest.raises(httpx.ConnectError):
            await http.get("/healthz")
