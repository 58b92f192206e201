"""Every failure reaches the caller as a code, a reason and details; no exception's text ever does."""

import asyncio
import logging
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from echo_service import ALONE, MAX_TEXT, Context, Echo, Word, eventually, running_echo, word
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind

from crucible_chassis.errors import (
    MAX_VIOLATIONS,
    FieldViolation,
    ServiceError,
    from_rpc_error,
    invalid_argument,
    rich_status,
)

CODES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
KINDS = ["unary", "server_stream", "client_stream", "bidi"]


async def call(echo: Echo, kind: str, *requests: Word) -> list[Word]:
    """All answers of one call of that kind."""
    match kind:
        case "unary":
            return [await echo.stub.unary(requests[0])]
        case "client_stream":
            return [await echo.stub.client_stream(iter(requests))]
        case "server_stream":
            return [answer async for answer in echo.stub.server_stream(requests[0])]
        case _:
            return [answer async for answer in echo.stub.bidi(iter(requests))]


async def failure(echo: Echo, kind: str, *requests: Word) -> ServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(echo, kind, *requests)
    error = from_rpc_error(caught.value)
    # A server that stops in the middle of a call cancels it, and its caller may go elsewhere.
    leaving = caught.value.code() is grpc.StatusCode.CANCELLED and error.reason == grpc.StatusCode.UNAVAILABLE.name
    assert error.code is (grpc.StatusCode.UNAVAILABLE if leaving else caught.value.code())
    return error


def test_there_are_sixteen_codes_beside_ok() -> None:
    assert len(CODES) == 16


@pytest.mark.parametrize("kind", KINDS)
async def test_all_codes_survive_server_and_client(kind: str) -> None:
    async def refuse(request: Word, context: Context) -> None:
        raise ServiceError(
            grpc.StatusCode[request.text],
            "SOME_REASON",
            f"about {request.text}: ünï\ncode",
            metadata={"evaluation": "17"},
            violations=[FieldViolation("a.b[3].c", "must be at most 5")],
            retry_after=1.25,
        )

    async with running_echo(refuse) as echo:
        for code in CODES:
            error = await failure(echo, kind, word(code.name))
            assert error.code is code
            assert error.reason == "SOME_REASON"
            assert error.message == f"about {code.name}: ünï\ncode"
            assert error.metadata == {"evaluation": "17"}
            assert error.violations == (FieldViolation("a.b[3].c", "must be at most 5"),)
            assert error.retry_after == 1.25


@pytest.mark.parametrize("code", CODES)
async def test_a_status_without_details_is_translated_without_its_text(code: grpc.StatusCode) -> None:
    async def abort(request: Word, context: Context) -> None:
        await context.abort(code, "10.0.0.7: an internal address")

    async with running_echo(abort) as echo:
        error = await failure(echo, "unary", word())
        meant = grpc.StatusCode.UNAVAILABLE if code is grpc.StatusCode.CANCELLED else code
        assert (error.code, error.reason) == (meant, meant.name)
        assert "10.0.0.7" not in error.message


async def test_an_unreachable_server_is_unavailable_without_its_address() -> None:
    async with running_echo() as echo:
        await echo.server.drain()
        error = await failure(echo, "unary", word())
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")
        assert "127.0.0.1" not in error.message


@pytest.mark.parametrize("kind", KINDS)
async def test_an_exceptions_text_reaches_the_log_and_never_the_client(
    kind: str, caplog: pytest.LogCaptureFixture, structured_logs: list[dict[str, Any]]
) -> None:
    async def fail(request: Word, context: Context) -> None:
        raise RuntimeError("password is hunter2")

    async with running_echo(fail) as echo:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(echo, kind, word("x"))
        everything = f"{caught.value!r} {caught.value.trailing_metadata()!r} {caught.value.debug_error_string()}"
        assert "hunter2" not in everything
        assert "RuntimeError" not in everything
        error = from_rpc_error(caught.value)
        assert (error.code, error.reason, error.message) == (grpc.StatusCode.INTERNAL, "INTERNAL", "internal error")
        [line] = [line for line in structured_logs if line["event"] == "call.failed"]
        assert "hunter2" in line["exception"]
        assert "Traceback" in line["exception"]
        assert line["trace_id"] == error.metadata["trace_id"]
        assert int(error.metadata["trace_id"], 16) != 0
    assert not [record for record in caplog.records if record.name.startswith("grpc")]


async def test_an_own_timeout_of_a_servicer_is_no_deadline() -> None:
    async def fail(request: Word, context: Context) -> None:
        raise TimeoutError("the database")

    async with running_echo(fail) as echo:
        assert (await failure(echo, "unary", word())).code is grpc.StatusCode.INTERNAL


async def test_an_unavailable_dependency_makes_the_call_unavailable() -> None:
    async def ask(request: Word, context: Context) -> None:
        raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, details="store-7 is down")

    async with running_echo(ask) as echo:
        error = await failure(echo, "unary", word())
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
        assert error.retry_after == 1
        assert "store-7" not in error.message


@pytest.mark.parametrize("kind", KINDS)
async def test_requests_are_checked_against_the_contract(kind: str) -> None:
    async with running_echo() as echo:
        fine = word("fine")
        bad = word("x" * (MAX_TEXT + 1), parts=[word("ok"), word("y" * 99)])
        error = await failure(echo, kind, *([fine, bad] if kind in ("client_stream", "bidi") else [bad]))
        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert [v.field for v in error.violations] == ["text", "parts[1].text"]
        assert all(str(MAX_TEXT) in v.description for v in error.violations)
        assert str(MAX_TEXT) in error.message
        assert (await call(echo, kind, fine))[0].text == "fine"


async def test_a_rule_of_a_whole_message_names_its_field() -> None:
    async with running_echo() as echo:
        inner = word(ALONE, parts=[word("a part")])
        error = await failure(echo, "unary", word("fine", parts=[word("ok"), inner]))
        assert error.violations == (FieldViolation("parts[1].parts", "cannot stand beside the text alone"),)
        error = await failure(echo, "unary", inner)
        assert [v.field for v in error.violations] == ["parts"]


async def test_a_request_that_does_not_decode_is_the_callers_mistake() -> None:
    async with running_echo() as echo:
        channel = cast("Any", echo.channel)
        raw: Any = channel.unary_unary("/test.echo.Echo/Unary")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await raw(b"\xff\xff\xff")
        error = from_rpc_error(caught.value)
        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_BODY")

        bidi: Any = channel.stream_stream("/test.echo.Echo/Bidi")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [answer async for answer in bidi(iter([b"\xff\xff\xff"]))]
        assert from_rpc_error(caught.value).reason == "MALFORMED_BODY"


async def test_an_answer_that_does_not_encode_is_an_internal_error() -> None:
    async with running_echo() as echo:
        echo.servicer.answer = "hunter2"
        error = await failure(echo, "unary", word())
        assert (error.code, error.message) == (grpc.StatusCode.INTERNAL, "internal error")


async def test_an_unknown_method_is_unimplemented() -> None:
    async with running_echo() as echo:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await echo.stub.missing(word())
        assert from_rpc_error(caught.value).code is grpc.StatusCode.UNIMPLEMENTED


async def test_a_status_is_bounded_in_size() -> None:
    async def refuse(request: Word, context: Context) -> None:
        raise invalid_argument([FieldViolation("f" * 5000, "d" * 5000)] * 1000)

    async with running_echo(refuse) as echo:
        error = await failure(echo, "unary", word())
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        assert len(error.violations) == MAX_VIOLATIONS
    huge = ServiceError(grpc.StatusCode.NOT_FOUND, "R", "m" * 100_000, metadata={"k": "v" * 100_000})
    assert rich_status(huge, "d").ByteSize() < 3000


async def test_ok_is_no_error() -> None:
    with pytest.raises(ValueError, match="OK"):
        ServiceError(grpc.StatusCode.OK, "X", "x")


def served(echo: Echo) -> list[ReadableSpan]:
    return [span for span in echo.exporter.get_finished_spans() if span.kind is SpanKind.SERVER]


async def test_a_client_that_leaves_is_cancelled_and_not_a_failure(
    structured_logs: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    async def hang(request: Word, context: Context) -> None:
        await asyncio.sleep(60)

    caplog.set_level(logging.INFO)
    async with running_echo(hang) as echo:
        stream = echo.stub.server_stream(word("leaver"))
        await anext(aiter(stream))
        stream.cancel()
        unary = echo.stub.unary(word())
        await asyncio.sleep(0.1)
        unary.cancel()
        with pytest.raises(asyncio.CancelledError):
            await unary
        await eventually(lambda: len(served(echo)) == 2)
        assert echo.servicer.cancelled == ["leaver"]
        for span in served(echo):
            assert span.attributes is not None
            assert span.attributes["rpc.response.status_code"] == "CANCELLED"
            assert span.status.status_code.name == "UNSET"
    assert not [line for line in structured_logs if line["level"] in ("warning", "error", "critical")]
