"""The scheduler as a service: what it accepts, what it hands out, what it answers, on a real store and NATS."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable
from pathlib import Path

import grpc
import grpc.aio
import nats.errors
import psycopg
import pytest

from crucible.internal.v1 import heartbeat_pb2
from crucible.v1 import evaluation_pb2
from crucible.v1 import evaluation_query_service_pb2 as queries_pb2
from crucible.v1 import evaluation_service_pb2 as pb2
from crucible_chassis.errors import ServiceError, from_rpc_error
from crucible_chassis.messaging import connect_messaging
from crucible_contracts import subjects
from crucible_contracts.limits import LEASE_SECONDS
from crucible_testkit import NatsServer, ServiceProcess, free_port

from .scheduler_harness import SECONDS, Executor, Scheduler, Store, evaluation, executor_on

Status = evaluation_pb2.Evaluation
Abandon = heartbeat_pb2.RunReply


async def refused(call: Awaitable[object]) -> ServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def create(scheduler: Scheduler, source: str = "print(1)", request_id: str = "") -> evaluation_pb2.Evaluation:
    request = pb2.CreateEvaluationRequest(evaluation=evaluation(source), request_id=request_id)
    return await scheduler.commands.CreateEvaluation(request)


async def get(scheduler: Scheduler, evaluation_id: str) -> evaluation_pb2.Evaluation:
    return await scheduler.queries.GetEvaluation(queries_pb2.GetEvaluationRequest(id=evaluation_id))


async def until_status(scheduler: Scheduler, evaluation_id: str, status: int) -> evaluation_pb2.Evaluation:
    async with asyncio.timeout(SECONDS):
        while (found := await get(scheduler, evaluation_id)).status != status:  # noqa: ASYNC110  it happens elsewhere
            await asyncio.sleep(0.02)
    return found


async def test_an_evaluation_is_accepted_handed_out_and_judged(scheduler: Scheduler, executor: Executor) -> None:
    created = await create(scheduler)
    assert created.status == Status.QUEUED
    assert created.tenant == "default"
    assert len(created.trace_id) == 32
    assert created.limits.memory_bytes == 256 << 20
    assert created.id[14] == "7"
    await executor.heartbeat()
    job, headers = await executor.job_and_headers()
    assert (job.evaluation_id, job.attempt) == (created.id, 1)
    assert headers["Nats-Msg-Id"] == job.token
    assert headers["traceparent"].split("-")[1] == created.trace_id
    assert job.program.entrypoint == "main.py"
    assert job.limits == created.limits
    run = executor.run(job)
    assert [(reply.abandon, reply.next) for reply in (await executor.heartbeat(run.held)).runs] == [(0, 0)]
    await run.start()
    await run.succeed()
    done = await until_status(scheduler, created.id, Status.COMPLETED)
    assert done.result.exit_code == 0
    assert (await executor.heartbeat(run.held)).runs[0].abandon == Abandon.SETTLED


async def test_run_waits_for_the_end_or_answers_with_the_present_state(
    scheduler: Scheduler, executor: Executor
) -> None:
    request = pb2.RunEvaluationRequest(evaluation=evaluation(), request_id="run-1")
    request.timeout.FromMilliseconds(200)
    waiting = await scheduler.commands.RunEvaluation(request)
    assert waiting.status == Status.QUEUED
    await executor.heartbeat()
    run = executor.run(await executor.job())
    request.timeout.FromSeconds(20)
    call = scheduler.commands.RunEvaluation(request)
    await run.start()
    await run.succeed()
    assert ((await call).id, (await call).status) == (waiting.id, Status.COMPLETED)


async def test_who_waits_is_answered_before_its_deadline(scheduler: Scheduler) -> None:
    """As after gRPC has repeated a call at another server: little is left of its deadline, and all of its wait."""
    request = pb2.RunEvaluationRequest(evaluation=evaluation())
    request.timeout.FromSeconds(30)
    accepted = await scheduler.commands.RunEvaluation(request, timeout=4)
    assert accepted.status == Status.QUEUED
    wait = queries_pb2.WaitEvaluationRequest(id=accepted.id)
    assert (await scheduler.queries.WaitEvaluation(wait, timeout=2)).id == accepted.id


async def test_a_caller_who_leaves_cancels_nothing(scheduler: Scheduler, executor: Executor) -> None:
    call = scheduler.commands.RunEvaluation(pb2.RunEvaluationRequest(evaluation=evaluation()))
    await executor.heartbeat()
    job = await executor.job()
    call.cancel()
    run = executor.run(job)
    await run.start()
    await run.succeed()
    await until_status(scheduler, job.evaluation_id, Status.COMPLETED)


async def test_what_was_leased_for_callers_who_left_is_handed_out_at_once(
    scheduler: Scheduler, executor: Executor
) -> None:
    await executor.heartbeat(slots=64)
    began = time.monotonic()
    await create(scheduler)
    took = time.monotonic() - began
    for part in range(30):
        call = scheduler.commands.CreateEvaluation(pb2.CreateEvaluationRequest(evaluation=evaluation()))
        await asyncio.sleep(part * took / 20)
        call.cancel()
    await asyncio.sleep(1)  # what is under way is stored
    stored = await scheduler.queries.ListEvaluations(queries_pb2.ListEvaluationsRequest(page_size=100))
    left = {each.id for each in stored.evaluations}
    assert len(left) > 1
    async with asyncio.timeout(LEASE_SECONDS / 2):  # before any lease lapses
        while left:
            left.discard((await executor.job()).evaluation_id)


async def test_a_request_id_makes_a_repetition_safe(scheduler: Scheduler) -> None:
    first = await create(scheduler, request_id="same")
    assert (await create(scheduler, request_id="same")).id == first.id
    error = await refused(
        scheduler.commands.CreateEvaluation(
            pb2.CreateEvaluationRequest(evaluation=evaluation("print(2)"), request_id="same")
        )
    )
    assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert error.metadata["evaluation"] == first.id


async def test_a_batch_is_accepted_as_a_whole_in_order(scheduler: Scheduler) -> None:
    requests = [
        pb2.CreateEvaluationRequest(evaluation=evaluation(f"print({number})"), request_id=f"item-{number}")
        for number in range(200)
    ]
    answer = await scheduler.commands.BatchCreateEvaluations(pb2.BatchCreateEvaluationsRequest(requests=requests))
    assert [each.source for each in answer.evaluations] == [f"print({number})" for number in range(200)]
    assert len({each.id for each in answer.evaluations}) == 200
    again = await scheduler.commands.BatchCreateEvaluations(pb2.BatchCreateEvaluationsRequest(requests=requests))
    assert [each.id for each in again.evaluations] == [each.id for each in answer.evaluations]


async def test_a_batch_with_one_bad_item_is_refused_as_a_whole(scheduler: Scheduler) -> None:
    requests = [pb2.CreateEvaluationRequest(evaluation=evaluation()) for _ in range(3)]
    requests[1].evaluation.limits.processes = 512
    requests[2].evaluation.runtime = "pyhton"
    error = await refused(
        scheduler.commands.BatchCreateEvaluations(pb2.BatchCreateEvaluationsRequest(requests=requests))
    )
    assert error.reason in ("LIMIT_TOO_LARGE", "UNKNOWN_RUNTIME")
    assert error.violations[0].field.startswith(("requests[1].evaluation.limits", "requests[2].evaluation.runtime"))
    listed = await scheduler.queries.ListEvaluations(queries_pb2.ListEvaluationsRequest())
    assert len(listed.evaluations) == 0


async def test_an_unknown_runtime_is_refused_with_a_hint(scheduler: Scheduler) -> None:
    request = pb2.CreateEvaluationRequest(evaluation=evaluation(runtime="pyhton"))
    error = await refused(scheduler.commands.CreateEvaluation(request))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_RUNTIME")
    assert "did you mean 'python'?" in error.message
    assert error.violations[0].field == "evaluation.runtime"


async def test_a_field_that_breaks_the_contract_is_refused(scheduler: Scheduler) -> None:
    request = pb2.CreateEvaluationRequest(evaluation=evaluation_pb2.Evaluation(runtime="python"))
    error = await refused(scheduler.commands.CreateEvaluation(request))
    assert error.reason == "INVALID_FIELD"
    files = [evaluation_pb2.File(path="x.py", text="")]
    request = pb2.CreateEvaluationRequest(evaluation=evaluation_pb2.Evaluation(runtime="python", files=files))
    error = await refused(scheduler.commands.CreateEvaluation(request))
    assert (error.reason, error.violations[0].field) == ("INVALID_FIELD", "evaluation.entrypoint")


async def test_a_cancel_nudges_the_executor_with_the_token(scheduler: Scheduler, executor: Executor) -> None:
    created = await create(scheduler)
    await executor.heartbeat()
    run = executor.run(await executor.job())
    await run.start()
    await until_status(scheduler, created.id, Status.RUNNING)
    cancelled = await scheduler.commands.CancelEvaluation(pb2.CancelEvaluationRequest(id=created.id))
    assert cancelled.status == Status.CANCELLED
    async with asyncio.timeout(SECONDS):
        assert list((await executor.nudges.get()).abandon_tokens) == [run.job.token]
    assert (await executor.heartbeat(run.held)).runs[0].abandon == Abandon.CANCELLED
    again = await scheduler.commands.CancelEvaluation(pb2.CancelEvaluationRequest(id=created.id))
    assert again.status == Status.CANCELLED
    unknown = pb2.CancelEvaluationRequest(id="0190b0f0-0000-7000-8000-000000000000")
    assert (await refused(scheduler.commands.CancelEvaluation(unknown))).reason == "EVALUATION_NOT_FOUND"
    requeue = pb2.RequeueEvaluationRequest(id=created.id)
    assert (await refused(scheduler.commands.RequeueEvaluation(requeue))).reason == "EVALUATION_NOT_FAILED"


async def test_what_failed_is_requeued_and_handed_out_again(
    scheduler: Scheduler, executor: Executor, store: Store
) -> None:
    created = await create(scheduler)
    for _ in range(3):
        await executor.heartbeat()
        run = executor.run(await executor.job())
        await run.start()
        await run.fail()
        await until_not_running(scheduler, created.id)
        skip_backoff(store)
    failed = await get(scheduler, created.id)
    assert (failed.status, failed.attempt) == (Status.FAILED, 3)
    requeued = await scheduler.commands.RequeueEvaluation(pb2.RequeueEvaluationRequest(id=created.id))
    assert (requeued.status, requeued.generation) == (Status.QUEUED, 2)
    await executor.heartbeat()
    assert (await executor.job()).attempt == 4


async def until_not_running(scheduler: Scheduler, evaluation_id: str) -> None:
    async with asyncio.timeout(SECONDS):
        while (await get(scheduler, evaluation_id)).status in (Status.DISPATCHED, Status.RUNNING):  # noqa: ASYNC110  as above
            await asyncio.sleep(0.02)


def skip_backoff(store: Store) -> None:
    with psycopg.connect(store.database_url) as connection:
        connection.execute("UPDATE evaluations SET not_before = clock_timestamp() WHERE status = 1")


async def test_no_more_is_handed_out_than_slots_are_free(scheduler: Scheduler, executor: Executor) -> None:
    created = [await create(scheduler) for _ in range(5)]
    await executor.heartbeat(slots=2)
    runs = [executor.run(await executor.job()) for _ in range(2)]
    await asyncio.sleep(1.3)
    assert executor.jobs.empty()
    assert [run.job.evaluation_id for run in runs] == [each.id for each in created[:2]]
    await runs[0].start()
    await runs[0].succeed()
    assert (await executor.job()).evaluation_id == created[2].id


async def test_nothing_is_leased_while_nats_is_away(fresh_nats: NatsServer, store: Store) -> None:
    async with Scheduler(store.address, fresh_nats.url).running() as scheduler:
        await scheduler.until_serving()
        async with executor_on(fresh_nats.url) as executor:
            await executor.heartbeat()
            fresh_nats.kill()
            await asyncio.sleep(0.3)
            created = await create(scheduler)
            await asyncio.sleep(1.5)
            assert (await get(scheduler, created.id)).status == Status.QUEUED
            fresh_nats.start()
            assert (await executor.job()).evaluation_id == created.id


async def test_a_stream_that_was_lost_is_made_again(scheduler: Scheduler, executor: Executor, store: Store) -> None:
    await executor.messaging.js.delete_stream(subjects.JOBS_STREAM)
    created = await create(scheduler)
    await executor.heartbeat()
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                consumer = subjects.jobs_consumer("default")
                await executor.messaging.js.consumer_info(subjects.JOBS_STREAM, consumer)
            except nats.errors.Error:
                await asyncio.sleep(0.05)
            else:
                break
    assert created.status == Status.QUEUED


async def test_the_stream_and_its_consumer_are_as_the_protocol_says(scheduler: Scheduler, executor: Executor) -> None:
    js = executor.messaging.js
    stream = (await js.stream_info(subjects.JOBS_STREAM)).config
    assert stream.retention == "workqueue"
    assert stream.max_age == LEASE_SECONDS
    assert stream.duplicate_window == LEASE_SECONDS
    consumer = (await js.consumer_info(subjects.JOBS_STREAM, subjects.jobs_consumer("default"))).config
    assert consumer.filter_subject == subjects.jobs("default")
    assert (consumer.max_deliver, consumer.max_ack_pending) == (-1, -1)


async def test_a_lapsed_lease_is_judged_only_after_a_proven_path(scheduler: Scheduler, executor: Executor) -> None:
    created = await create(scheduler)
    await executor.heartbeat()
    job = await executor.job()
    run = executor.run(job)
    await run.start()
    await until_status(scheduler, created.id, Status.RUNNING)
    began = time.monotonic()
    await until_status(scheduler, created.id, Status.QUEUED)  # nobody beats for it any more
    assert time.monotonic() - began > LEASE_SECONDS * 0.9
    # Its late result still counts, until the next lease is taken.
    assert (await executor.heartbeat(run.held)).runs[0].abandon == Abandon.ABANDON_UNSPECIFIED
    await run.succeed()  # the claimed run's late result counts until the next lease is taken
    await until_status(scheduler, created.id, Status.COMPLETED)


async def test_a_store_that_died_is_no_answer_and_a_retryable_error(
    loaded_database_url: str, fresh_nats: NatsServer, tmp_path: Path, executor: Executor
) -> None:
    store = Store(loaded_database_url, fresh_nats.url, tmp_path)
    async with store.process, Scheduler(store.address, fresh_nats.url).running() as scheduler:
        await scheduler.until_serving()
        await create(scheduler)
        store.process.kill()
        with pytest.raises(nats.errors.TimeoutError):
            await executor.heartbeat()
        error = await refused(scheduler.commands.CreateEvaluation(pb2.CreateEvaluationRequest(evaluation=evaluation())))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
        assert error.retry_after is not None
        store.process.start()
        await executor.job_after_heartbeats()


async def test_as_a_process_it_waits_for_its_store_and_ends_cleanly(
    loaded_database_url: str, fresh_nats: NatsServer, tmp_path: Path
) -> None:
    store = Store(loaded_database_url, fresh_nats.url, tmp_path)
    admin = f"127.0.0.1:{free_port()}"
    process = ServiceProcess(
        "crucible_scheduler",
        env={
            "CRUCIBLE_STORE_URL": store.address,
            "CRUCIBLE_NATS_URL": fresh_nats.url,
            "CRUCIBLE_GRPC_LISTEN": f"127.0.0.1:{free_port()}",
            "CRUCIBLE_ADMIN_LISTEN": admin,
        },
        log=tmp_path / "scheduler.log",
        ready_url=f"http://{admin}/readyz",
    )
    process.start()
    async with asyncio.timeout(SECONDS):
        while "start.waiting" not in process.log_text:  # noqa: ASYNC110  another process writes it
            await asyncio.sleep(0.05)
    async with store.process:
        await process.wait_ready()
        async with connect_messaging(fresh_nats.url, name="probe") as messaging:
            answer = await messaging.request(subjects.HEARTBEAT, b"")
            assert heartbeat_pb2.HeartbeatReply.FromString(answer.data) == heartbeat_pb2.HeartbeatReply()
        assert await process.terminate() == 0
        assert signal.SIGTERM.name in process.log_text
