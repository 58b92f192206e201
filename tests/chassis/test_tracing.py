"""One trace across gRPC and NATS, and its export."""

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from echo_service import Context, EchoStub, Word, eventually, running_echo, word
from nats.aio.msg import Msg
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind

from crucible_chassis import telemetry
from crucible_chassis.client import open_channel
from crucible_chassis.messaging import connect_messaging
from crucible_chassis.telemetry import extract_context, inject_context, start_telemetry
from crucible_testkit import NatsServer, OtlpReceiver

CALL = "test.echo.Echo/Unary"


def current() -> tuple[int, int]:
    context = trace.get_current_span().get_span_context()
    return context.trace_id, context.span_id


def of_kind(spans: tuple[ReadableSpan, ...], kind: SpanKind) -> ReadableSpan:
    [span] = [span for span in spans if span.kind is kind]
    return span


async def test_the_trace_context_survives_grpc() -> None:
    seen: list[tuple[int, int]] = []

    async def note(request: Word, context: Context) -> None:
        seen.append(current())

    async with running_echo(note) as echo:
        tracer = start_telemetry("t").tracer
        with tracer.start_as_current_span("root") as root:
            await echo.stub.unary(word(), metadata=(("x-own", "kept"),))
        await eventually(lambda: len(echo.exporter.get_finished_spans()) == 2)
        client = of_kind(echo.exporter.get_finished_spans(), SpanKind.CLIENT)
        server = of_kind(echo.exporter.get_finished_spans(), SpanKind.SERVER)

    ids = root.get_span_context()
    assert client.context is not None
    assert server.context is not None
    assert client.parent is not None
    assert server.parent is not None
    assert seen == [(ids.trace_id, server.context.span_id)]
    assert client.context.trace_id == server.context.trace_id == ids.trace_id
    assert client.parent.span_id == ids.span_id
    assert server.parent.span_id == client.context.span_id
    for span in (client, server):
        assert span.name == CALL
        assert dict(span.attributes or {}) == {
            "rpc.system.name": "grpc",
            "rpc.method": CALL,
            "rpc.response.status_code": "OK",
        }


@pytest.mark.parametrize("kind", ["server_stream", "client_stream", "bidi"])
async def test_streams_are_traced_as_one_span_a_side(kind: str) -> None:
    async with running_echo() as echo:
        request: Any = word("x") if kind == "server_stream" else iter([word("x")])
        call = getattr(echo.stub, kind)(request)
        if kind == "client_stream":
            await call
        else:
            assert [a async for a in call]
        await eventually(lambda: len(echo.exporter.get_finished_spans()) == 2)
        client = of_kind(echo.exporter.get_finished_spans(), SpanKind.CLIENT)
        server = of_kind(echo.exporter.get_finished_spans(), SpanKind.SERVER)
        assert client.context is not None
        assert server.parent is not None
        assert server.parent.span_id == client.context.span_id


async def test_a_failed_call_is_a_failed_span_on_both_sides() -> None:
    async def fail(request: Word, context: Context) -> None:
        raise RuntimeError("x")

    async with running_echo(fail) as echo:
        with pytest.raises(grpc.aio.AioRpcError):
            await echo.stub.unary(word())
        await eventually(lambda: len(echo.exporter.get_finished_spans()) == 2)
        for span in echo.exporter.get_finished_spans():
            assert span.status.status_code is trace.StatusCode.ERROR
            assert span.attributes is not None
            assert span.attributes["rpc.response.status_code"] == "INTERNAL"
        server = of_kind(echo.exporter.get_finished_spans(), SpanKind.SERVER)
        assert [event.name for event in server.events] == ["exception"]


async def test_the_trace_context_survives_nats(nats_server: NatsServer) -> None:
    tracer = start_telemetry("t").tracer
    async with connect_messaging(nats_server.url, name="tracing") as messaging:
        stream = "TRACING"
        await cast("Any", messaging.js).add_stream(name=stream, subjects=["tracing.stream"])
        plain = await messaging.subscribe("tracing.plain")
        asked = await messaging.subscribe("tracing.asked")
        await messaging.nc.flush()
        with tracer.start_as_current_span("root") as root:
            await messaging.publish("tracing.plain", b"1", {"X-Own": "kept"})
            request = asyncio.ensure_future(messaging.request("tracing.asked", b"2"))
            ack = await messaging.jetstream_publish("tracing.stream", b"3", message_id="m1")
            again = await messaging.jetstream_publish("tracing.stream", b"3", message_id="m1")
        assert (ack.duplicate, again.duplicate) == (None, True)

        first = await plain.next_msg(timeout=5)
        second = await asked.next_msg(timeout=5)
        await second.respond(b"answer")
        assert (await request).data == b"answer"
        third = await messaging.js.get_last_msg(stream, "tracing.stream")
        assert first.headers is not None
        assert first.headers["X-Own"] == "kept"
        for message in (first, second, cast("Msg", third)):
            headers = cast("dict[str, str]", message.headers)
            context = trace.get_current_span(extract_context(headers)).get_span_context()
            assert context.trace_id == root.get_span_context().trace_id
            assert context.span_id == root.get_span_context().span_id
            assert context.is_remote
        await messaging.js.delete_stream(stream)


def test_without_an_exporter_ids_are_made_and_passed_on_and_nothing_is_recorded() -> None:
    tracer = start_telemetry("t").tracer
    with tracer.start_as_current_span("root") as root:
        assert not root.is_recording()
        ids = root.get_span_context()
        assert ids.is_valid
        assert inject_context()["traceparent"] == f"00-{ids.trace_id:032x}-{ids.span_id:016x}-01"
        with tracer.start_as_current_span("child") as child:
            assert child.get_span_context().trace_id == ids.trace_id
            assert child.get_span_context().span_id != ids.span_id
    unsampled = extract_context({"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-00", "tracestate": "x=y"})
    span = tracer.start_span("child", context=unsampled).get_span_context()
    assert (f"{span.trace_id:032x}", span.trace_flags, span.trace_state.to_header()) == ("a" * 32, 0, "x=y")


@pytest.mark.parametrize("headers", [None, {}, {"traceparent": "nonsense"}, {"traceparent": "00-0-0-00"}])
def test_no_context_is_an_empty_one(headers: Mapping[str, str] | None) -> None:
    assert not trace.get_current_span(extract_context(headers)).get_span_context().is_valid


def test_headers_of_any_case_carry_a_context() -> None:
    with start_telemetry("t").tracer.start_as_current_span("x") as span:
        headers = {key.title(): value for key, value in inject_context().items()}
        context = trace.get_current_span(extract_context(headers)).get_span_context()
        assert context.span_id == span.get_span_context().span_id


async def test_spans_are_exported_where_the_environment_says(
    otlp_receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in otlp_receiver.environment.items():
        monkeypatch.setenv(name, value)
    exporting = start_telemetry("exporter-test", instance="i-1")
    async with running_echo() as echo, open_channel(echo.server.address, telemetry=exporting) as channel:
        await EchoStub(channel).unary(word())
    await asyncio.to_thread(exporting.shutdown)
    spans = await asyncio.to_thread(
        otlp_receiver.wait_for, lambda spans: any(s.service == "exporter-test" for s in spans)
    )
    [span] = [s for s in spans if s.service == "exporter-test"]
    assert (span.name, span.kind) == (CALL, "CLIENT")


def test_an_unknown_protocol_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon")
    with pytest.raises(ValueError, match="OTEL_EXPORTER_OTLP_PROTOCOL"):
        start_telemetry("t")


def test_a_dead_collector_delays_no_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    exporting = start_telemetry("t")
    exporting.tracer.start_span("x").end()
    exporting.shutdown(timeout=0.2)
    assert telemetry.FLUSH_SECONDS <= 5
