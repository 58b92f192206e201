"""What each call sends, what it gives back, and what it does when the platform goes away in the middle."""

import asyncio
import re
from contextlib import aclosing
from enum import StrEnum

import grpc
import pytest
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from recorded_platform import Failure, Hang, Messages, RecordedPlatform, eventually
from samples import ID, TRACE, body, completed, evaluation, event, finished, output, queued, runtimes

from crucible.v1 import evaluation_pb2, evaluation_query_service_pb2, evaluation_service_pb2, event_pb2, execution_pb2
from crucible_client import (
    Cause,
    Client,
    DeadlineError,
    Evaluation,
    Event,
    InternalError,
    Limits,
    NotFoundError,
    Outcome,
    Priority,
    Program,
    Status,
    StatusReason,
    UnavailableError,
)
from crucible_client.program import to_duration, to_evaluation

AWAY = Failure(grpc.StatusCode.UNAVAILABLE, "the database is away", reason="DEPENDENCY_UNAVAILABLE")


async def test_run_sends_everything_and_gives_a_typed_verdict(platform: RecordedPlatform, client: Client) -> None:
    platform.prepare("RunEvaluation", completed("NONZERO_EXIT", exit_code=3, stdout=b"1\n"))
    result = await client.run(
        "print(1)",
        runtime="python",
        args=["a"],
        env={"K": "V"},
        stdin=b"\xff",
        limits=Limits(wall_time=5, memory_bytes=2**25),
        priority=Priority.HIGH,
        labels={"team": "red"},
        display_name="one",
    )
    [call] = platform.calls
    assert call.request.evaluation == evaluation_pb2.Evaluation(
        runtime="python",
        source="print(1)",
        args=["a"],
        env={"K": "V"},
        stdin_bytes=b"\xff",
        limits=evaluation_pb2.Limits(wall_time=to_duration(5), memory_bytes=2**25),
        priority=evaluation_pb2.Evaluation.HIGH,
        labels={"team": "red"},
        display_name="one",
    )
    assert re.fullmatch(r"[!-~]{1,255}", call.request.request_id)
    traceparent = call.metadata["traceparent"]
    assert isinstance(traceparent, str)
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", traceparent)
    assert call.seconds_left is not None
    assert result.status is Status.COMPLETED
    assert result.final
    assert not result.succeeded
    assert result.cause is Cause.PROGRAM
    assert result.trace_id == TRACE
    assert result.result is not None
    assert result.result.outcome is Outcome.NONZERO_EXIT
    assert (result.result.exit_code, result.result.signal) == (3, None)
    assert str(result.result.stdout) == "1\n"
    assert (result.result.wall_time, result.result.cpu_time) == (0.25, 0.125)
    assert repr(result) == f"Evaluation({ID}, python, COMPLETED, Result(NONZERO_EXIT, exit_code=3, wall_time=0.250))"


async def test_a_lost_answer_is_asked_for_again_with_the_same_request_id(
    platform: RecordedPlatform, client: Client
) -> None:
    platform.prepare("CreateEvaluation", AWAY, Failure(grpc.StatusCode.UNAVAILABLE), evaluation())
    created = await client.create("print(1)", runtime="python")
    assert created.id == ID
    first, *others = platform.called("CreateEvaluation")
    assert len(others) == 2
    assert all(call.request == first.request for call in others)
    assert all(call.metadata["traceparent"] == first.metadata["traceparent"] for call in others)
    platform.prepare("CreateEvaluation", evaluation())
    await client.create("print(1)", runtime="python")
    again = platform.calls[-1]
    assert again.request.request_id != first.request.request_id
    assert again.metadata["traceparent"] != first.metadata["traceparent"]


async def test_patience_is_bounded_and_a_server_may_ask_for_more_than_there_is(platform: RecordedPlatform) -> None:
    async with Client(scheduler=platform.address, store=platform.address, patience=1) as client:
        platform.always("GetEvaluation", AWAY)
        with pytest.raises(UnavailableError, match="the database is away") as caught:
            await client.get(ID)
        assert caught.value.reached
        before = len(platform.calls)
        assert before > 2
        platform.always(
            "GetEvaluation", Failure(grpc.StatusCode.UNAVAILABLE, reason="DEPENDENCY_UNAVAILABLE", retry_after=60)
        )
        with pytest.raises(UnavailableError) as later:
            await client.get(ID)
        assert later.value.retry_after == 60
        assert len(platform.calls) == before + 1


@pytest.mark.parametrize(
    ("patience", "lasted_seconds", "away_seconds"), [(2, 2, 0), (20, 0, 2.5)], ids=["waited for long", "away for long"]
)
async def test_a_first_call_that_is_lost_half_way_is_made_again(
    platform: RecordedPlatform, patience: float, lasted_seconds: float, away_seconds: float
) -> None:
    """Patience counts from the loss, however long the call had waited, and it is whole though it never answered."""
    async with Client(scheduler=platform.address, store=platform.address, patience=patience) as client:
        platform.prepare("RunEvaluation", Hang(), completed())
        run = asyncio.create_task(client.run("print(1)", runtime="python"), name="run")
        await platform.wait_called("RunEvaluation")
        await asyncio.sleep(lasted_seconds)
        await platform.stop()
        await asyncio.sleep(away_seconds)
        await platform.start()
        assert (await run).succeeded
        first, second = platform.called("RunEvaluation")
        assert first.request.request_id == second.request.request_id


async def test_a_first_call_that_was_heard_is_lost_and_not_unreachable(platform: RecordedPlatform) -> None:
    async with Client(scheduler=platform.address, store=platform.address, patience=0.5) as client:
        platform.prepare("RunEvaluation", Hang())
        run = asyncio.create_task(client.run("print(1)", runtime="python"), name="run")
        await platform.wait_called("RunEvaluation")
        await platform.stop()
        with pytest.raises(UnavailableError, match=r"lost the scheduler at 127\.0\.0\.1:\d+") as caught:
            await run
        assert caught.value.reached
        with pytest.raises(UnavailableError, match="cannot reach the store") as never:
            await client.get(ID)
        assert not never.value.reached


async def test_a_requeue_is_never_repeated(platform: RecordedPlatform, client: Client) -> None:
    platform.prepare("RequeueEvaluation", AWAY)
    with pytest.raises(UnavailableError):
        await client.requeue(ID)


async def test_run_waits_on_where_one_call_ends_and_stops_at_its_timeout(
    platform: RecordedPlatform, client: Client
) -> None:
    platform.prepare("RunEvaluation", evaluation("QUEUED"))
    platform.prepare("WaitEvaluation", evaluation("RUNNING"), completed())
    assert (await client.run("print(1)", runtime="python")).succeeded

    platform.prepare("WaitEvaluation", evaluation("RUNNING"))
    still = await client.wait(ID, timeout=0)
    assert (still.status, still.final) == (Status.RUNNING, False)
    assert platform.calls[-1].request.HasField("timeout")


async def test_a_call_that_is_left_is_cancelled_at_the_server(platform: RecordedPlatform, client: Client) -> None:
    platform.prepare("WaitEvaluation", Hang())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await client.wait(ID)
    platform.prepare("WatchEvaluation", Messages([queued()], hang=True))
    async with aclosing(client.watch(ID)) as events:
        async for _ in events:
            break
    await eventually(lambda: sorted(platform.left) == ["WaitEvaluation", "WatchEvaluation"])


async def test_many_go_in_batches_of_bounded_number_and_size(platform: RecordedPlatform, client: Client) -> None:
    def accept(request: evaluation_service_pb2.BatchCreateEvaluationsRequest) -> Message:
        return evaluation_service_pb2.BatchCreateEvaluationsResponse(
            evaluations=[evaluation(display_name=item.request_id) for item in request.requests]
        )

    platform.always("BatchCreateEvaluations", accept)
    programs = [Program(f"print({i})", runtime="python") for i in range(1200)]
    accepted = await client.create_many(programs, request_ids=[f"r{i}" for i in range(1200)])
    assert [e.proto.display_name for e in accepted] == [f"r{i}" for i in range(1200)]
    assert [len(call.request.requests) for call in platform.calls] == [500, 500, 200]
    platform.calls.clear()
    big = Program(None, runtime="python", files={"main.py": "#" * 2**20, "b": b"x" * 2**20, "c": b"x" * 2**20})
    await client.create_many([big] * 5)
    assert [len(call.request.requests) for call in platform.calls] == [2, 2, 1]
    assert await client.create_many([]) == []


async def test_list_reads_page_after_page(platform: RecordedPlatform, client: Client) -> None:
    page = evaluation_query_service_pb2.ListEvaluationsResponse
    platform.prepare(
        "ListEvaluations",
        page(evaluations=[evaluation(evaluation_id="1"), evaluation(evaluation_id="2")], next_page_token="next"),
        page(evaluations=[evaluation(evaluation_id="3")]),
    )
    found = [e.id async for e in client.list('status = "QUEUED"', page_size=2)]
    assert found == ["1", "2", "3"]
    first, second = (MessageToDict(call.request) for call in platform.calls)
    assert second == first | {"pageToken": "next"}


async def watched(client: Client, after: int = 0) -> list[Event]:
    return [event async for event in client.watch(ID, after=after)]


async def test_a_watch_drops_repeats_and_fetches_what_was_skipped(platform: RecordedPlatform, client: Client) -> None:
    platform.prepare(
        "WatchEvaluation",
        Messages([queued(1), output(2, b"a"), output(2, b"a"), queued(1), output(4, b"c", offset=2)]),
        Messages([output(3, b"b", offset=1), output(4, b"c", offset=2)], Failure(grpc.StatusCode.UNAVAILABLE)),
        Messages([finished(5)]),
    )
    events = await watched(client)
    assert [event.sequence for event in events] == [1, 2, 3, 4, 5]
    assert b"".join(event.data for event in events) == b"abc"
    assert [call.request.after_sequence for call in platform.calls] == [0, 2, 4]


@pytest.mark.parametrize(
    "failure",
    [
        Failure(grpc.StatusCode.DEADLINE_EXCEEDED),
        Failure(grpc.StatusCode.CANCELLED),
        Failure(grpc.StatusCode.UNKNOWN, "Stream removed"),
        Failure(grpc.StatusCode.INTERNAL, "RST_STREAM"),
        AWAY,
    ],
    ids=lambda failure: failure.code.name,
)
async def test_a_watch_resumes_after_what_passes(platform: RecordedPlatform, client: Client, failure: Failure) -> None:
    platform.prepare("WatchEvaluation", Messages([queued(1)], failure), Messages([finished(2)]))
    assert [event.kind for event in await watched(client)] == ["queued", "finished"]


async def test_a_watch_ends_on_what_lasts(platform: RecordedPlatform, client: Client) -> None:
    lasting = Failure(grpc.StatusCode.INTERNAL, "a fault", reason="INTERNAL", metadata={"trace_id": TRACE})
    platform.prepare("WatchEvaluation", Messages([queued(1)], lasting))
    with pytest.raises(InternalError, match="a fault"):
        await watched(client)
    platform.prepare("WatchEvaluation", Failure(grpc.StatusCode.NOT_FOUND, reason="EVALUATION_NOT_FOUND"))
    with pytest.raises(NotFoundError):
        await watched(client)


async def test_a_watch_survives_a_server_that_dies_and_comes_back_on_its_port(
    platform: RecordedPlatform, client: Client
) -> None:
    platform.prepare("WatchEvaluation", Messages([queued(1), output(2, b"a")], hang=True))
    platform.prepare("WatchEvaluation", Messages([output(3, b"b", offset=1), finished(4)]))
    seen: list[int] = []
    async with aclosing(client.watch(ID)) as events:
        async for one in events:
            seen.append(one.sequence)
            if one.sequence == 2:
                await platform.stop()
                await asyncio.sleep(0.5)
                await platform.start()
    assert seen == [1, 2, 3, 4]
    assert [call.request.after_sequence for call in platform.calls] == [0, 2]


async def test_output_is_read_exactly_and_resumes_behind_what_came(platform: RecordedPlatform, client: Client) -> None:
    platform.prepare("ReadOutput", Messages([body(b"\x00\xff", offset=0, length=3, size=3), body(b"c")]))
    assert await client.read_output(ID) == b"\x00\xffc"

    platform.prepare(
        "ReadOutput",
        Messages([body(b"de", offset=3, length=5, size=8)], Failure(grpc.StatusCode.UNAVAILABLE)),
        Messages([body(b"fgh", offset=5, length=3, size=8)]),
    )
    assert await client.read_output(ID, "stderr", offset=-5) == b"defgh"
    first, second = (call.request for call in platform.calls[1:])
    assert (first.stream, first.offset, first.limit) == ("stderr", -5, 0)
    assert (second.stream, second.offset, second.limit) == ("stderr", 5, 3)


async def test_runtimes_events_and_views(platform: RecordedPlatform, client: Client) -> None:
    platform.prepare("ListRuntimes", runtimes())
    assert [(r.name, r.entrypoint, r.available) for r in await client.runtimes()] == [
        ("bash", "main.sh", True),
        ("python", "main.py", True),
    ]
    platform.prepare("CancelEvaluation", evaluation("CANCELLED", status_reason=6, cause=6))
    cancelled = await client.cancel(ID)
    assert (cancelled.status_reason, cancelled.cause) == (StatusReason.CANCELLED_BY_CALLER, Cause.USER)
    assert (cancelled.result, cancelled.end_time) == (None, None)
    elided = Event(event(1, output_elided=event_pb2.OutputElided(stream=event_pb2.OutputChunk.STDERR)))
    assert (elided.stream, elided.data) == ("stderr", b"")


async def test_a_deadline_without_an_answer_names_who_did_not_give_it(platform: RecordedPlatform) -> None:
    async with Client(scheduler=platform.address, store=platform.address, patience=0.4) as client:
        platform.prepare("GetEvaluation", Failure(grpc.StatusCode.DEADLINE_EXCEEDED))
        platform.always("GetEvaluation", Failure(grpc.StatusCode.NOT_FOUND))
        with pytest.raises(NotFoundError):  # it is a read: once more
            await client.get(ID)
        services = client._services  # pyright: ignore[reportPrivateUsage]  a deadline of its own for the test
        platform.always("GetEvaluation", Hang())
        with pytest.raises(DeadlineError, match=r"the store at 127\.0\.0\.1:\d+ did not answer in time"):
            await services.store.unary(
                services.queries.GetEvaluation,
                evaluation_query_service_pb2.GetEvaluationRequest(id=ID),
                timeout=0.4,
            )
        assert len(platform.called("GetEvaluation")) == 4, "once more while there is patience"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Status, evaluation_pb2.Evaluation.Status),
        (StatusReason, evaluation_pb2.Evaluation.StatusReason),
        (Priority, evaluation_pb2.Evaluation.Priority),
        (Outcome, execution_pb2.ExecutionResult.Outcome),
        (Cause, execution_pb2.ExecutionResult.Cause),
    ],
    ids=["Status", "StatusReason", "Priority", "Outcome", "Cause"],
)
def test_our_enums_are_the_contracts(ours: type[StrEnum], theirs: EnumTypeWrapper) -> None:
    contract = [name for name in theirs.DESCRIPTOR.values_by_name if not name.endswith("_UNSPECIFIED")]
    assert [member.value for member in ours if member.value != "UNRECOGNIZED"] == contract


def test_values_of_a_newer_platform_are_recognizably_unknown() -> None:
    newer = evaluation_pb2.Evaluation(status=99)  # pyright: ignore[reportArgumentType]  a number of the future
    assert Evaluation(newer).status is Status.UNRECOGNIZED
    assert not Evaluation(newer).final


def test_options_are_refused_where_they_cannot_count() -> None:
    with pytest.raises(TypeError, match="runtime='python'"):
        to_evaluation("print(1)")
    with pytest.raises(TypeError, match="args: set these in the Program itself"):
        to_evaluation(Program("print(1)", runtime="python"), args=["a"])
    read = evaluation("COMPLETED")
    assert to_evaluation(read) is read
