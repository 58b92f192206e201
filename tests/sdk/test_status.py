"""Every failed call becomes an exception of ours, in unary and streaming calls alike."""

import grpc
import pytest
from recorded_platform import Failure, Messages, RecordedPlatform
from samples import ID, evaluation, finished, queued

from crucible_client import Client, CrucibleError, NotFoundError, PlatformError, UnavailableError, UserError, errors
from crucible_client.errors import FieldViolation
from crucible_client.status import ERROR_OF_STATUS
from crucible_contracts.limits import MESSAGE_BYTES

TABLE: list[tuple[grpc.StatusCode, type[CrucibleError], type[CrucibleError]]] = [
    (grpc.StatusCode.CANCELLED, errors.CallCancelledError, PlatformError),
    (grpc.StatusCode.UNKNOWN, errors.InternalError, PlatformError),
    (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequestError, UserError),
    (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineError, PlatformError),
    (grpc.StatusCode.NOT_FOUND, errors.NotFoundError, UserError),
    (grpc.StatusCode.ALREADY_EXISTS, errors.ConflictError, UserError),
    (grpc.StatusCode.PERMISSION_DENIED, errors.PermissionDeniedError, UserError),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.QuotaError, UserError),
    (grpc.StatusCode.FAILED_PRECONDITION, errors.PreconditionError, UserError),
    (grpc.StatusCode.ABORTED, errors.AbortedError, PlatformError),
    (grpc.StatusCode.OUT_OF_RANGE, errors.OutOfRangeError, UserError),
    (grpc.StatusCode.UNIMPLEMENTED, errors.UnsupportedError, PlatformError),
    (grpc.StatusCode.INTERNAL, errors.InternalError, PlatformError),
    (grpc.StatusCode.UNAVAILABLE, errors.UnavailableError, PlatformError),
    (grpc.StatusCode.DATA_LOSS, errors.InternalError, PlatformError),
    (grpc.StatusCode.UNAUTHENTICATED, errors.UnauthenticatedError, UserError),
]


def test_the_table_is_total() -> None:
    every = set(grpc.StatusCode) - {grpc.StatusCode.OK}
    assert {code for code, _, _ in TABLE} == every == set(ERROR_OF_STATUS)


@pytest.mark.parametrize(("code", "kind", "tree"), TABLE, ids=[code.name for code, _, _ in TABLE])
async def test_each_status_is_an_exception_of_its_tree(
    platform: RecordedPlatform, code: grpc.StatusCode, kind: type[CrucibleError], tree: type[CrucibleError]
) -> None:
    async with Client(scheduler=platform.address, store=platform.address, patience=0) as client:
        failure = Failure(code, "because", reason="SOME_REASON", metadata={"a": "b"}, violations=(("x.y", "too long"),))
        platform.prepare("GetEvaluation", failure)
        with pytest.raises(kind) as unary:
            await client.get(ID)
        assert type(unary.value) is kind
        assert isinstance(unary.value, tree)
        assert str(unary.value) == "because"
        assert (unary.value.code, unary.value.reason) == (code.name, "SOME_REASON")
        assert unary.value.metadata == {"a": "b"}
        assert unary.value.violations == (FieldViolation("x.y", "too long"),)
        traceparent = platform.called("GetEvaluation")[0].metadata["traceparent"]
        assert isinstance(traceparent, str)
        assert unary.value.trace_id == traceparent.split("-")[1]

        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return  # a watch goes on where its stream's deadline ends
        platform.prepare("WatchEvaluation", Messages([queued()], failure))
        with pytest.raises(kind) as streaming:
            async for _ in client.watch(ID):
                pass
        assert type(streaming.value) is kind
        assert streaming.value.reason == "SOME_REASON"


FULL = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!")


async def test_a_server_that_is_full_is_tried_again(platform: RecordedPlatform, client: Client) -> None:
    """Without a reason of Crucible's, RESOURCE_EXHAUSTED is gRPC's own."""
    platform.prepare("CreateEvaluation", FULL, FULL, evaluation())
    assert (await client.create("print(1)", runtime="python")).id == ID
    platform.prepare("WatchEvaluation", Messages([queued()], FULL), Messages([finished(2)]))
    assert [event.sequence async for event in client.watch(ID)] == [1, 2]
    async with Client(scheduler=platform.address, store=platform.address, patience=0) as impatient:
        platform.prepare("GetEvaluation", FULL)
        with pytest.raises(UnavailableError, match=r"no room at the store at 127\.0\.0\.1") as caught:
            await impatient.get(ID)
        assert (caught.value.code, caught.value.transient, caught.value.reached) == ("RESOURCE_EXHAUSTED", True, True)


async def test_what_is_too_large_for_a_message_is_a_mistake_at_once(platform: RecordedPlatform, client: Client) -> None:
    with pytest.raises(errors.InvalidRequestError, match=r"too large to be sent: .*message larger than max") as sent:
        await client.create("#" * (MESSAGE_BYTES + 1), runtime="python")
    assert not sent.value.transient
    platform.prepare("GetEvaluation", evaluation(source="#" * (MESSAGE_BYTES + 1)))
    with pytest.raises(errors.InvalidRequestError, match=r"too large to be sent: .*message larger than max"):
        await client.get(ID)


async def test_an_operators_trace_id_wins_over_our_own(platform: RecordedPlatform, client: Client) -> None:
    platform.prepare("GetEvaluation", Failure(grpc.StatusCode.NOT_FOUND, reason="X", metadata={"trace_id": "f" * 32}))
    with pytest.raises(NotFoundError) as caught:
        await client.get(ID)
    assert caught.value.trace_id == "f" * 32


async def test_nobody_there_is_told_soon_with_the_address() -> None:
    async with Client(scheduler="127.0.0.1:1", store="127.0.0.1:1", patience=60) as client:
        with pytest.raises(UnavailableError, match=r"cannot reach the store at 127\.0\.0\.1:1") as caught:
            await client.get(ID)
        assert caught.value.reached is False
        with pytest.raises(UnavailableError, match="cannot reach the scheduler"):
            await client.create("print(1)", runtime="python")


async def test_a_client_that_is_not_open_says_so() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await Client(scheduler="127.0.0.1:1", store="127.0.0.1:1").get(ID)
