"""The store as a process: its gRPC, and what is left of it when it dies."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from crucible.internal.v1 import ledger_service_pb2 as ledger_pb2
from crucible.internal.v1 import ledger_service_pb2_grpc as ledger_grpc
from crucible.v1 import evaluation_pb2
from crucible.v1 import evaluation_query_service_pb2 as query_pb2
from crucible.v1 import evaluation_query_service_pb2_grpc as query_grpc
from crucible_chassis.client import open_channel
from crucible_chassis.errors import from_rpc_error
from crucible_chassis.messaging import connect_messaging
from crucible_testkit import NatsServer, OtlpReceiver, PostgresServer, ServiceProcess, free_port

from .samples import Run, an_executor, evaluation, heartbeat

COMPLETED = evaluation_pb2.Evaluation.COMPLETED


class StoreProcess:
    """A store with its channel."""

    def __init__(self, database_url: str, nats_url: str, folder: Path, **env: str) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        admin = f"127.0.0.1:{free_port()}"
        self.process = ServiceProcess(
            "crucible_store",
            env={
                "CRUCIBLE_DATABASE_URL": database_url,
                "CRUCIBLE_NATS_URL": nats_url,
                "CRUCIBLE_OBJECT_STORE_URL": (folder / "objects").as_uri(),
                "CRUCIBLE_GRPC_LISTEN": self.address,
                "CRUCIBLE_ADMIN_LISTEN": admin,
                **env,
            },
            log=folder / "store.log",
            ready_url=f"http://{admin}/readyz",
        )

    @asynccontextmanager
    async def channel(self) -> AsyncGenerator[grpc.aio.Channel]:
        async with open_channel(self.address) as channel:
            yield channel


async def logged(store: StoreProcess, event: str) -> None:
    while event not in store.process.log_text:  # noqa: ASYNC110  a process writes it
        await asyncio.sleep(0.05)


async def leased(channel: grpc.aio.Channel, number: int) -> list[Run]:
    ledger = ledger_grpc.LedgerServiceStub(channel)
    await ledger.CreateEvaluations(
        ledger_pb2.CreateEvaluationsRequest(evaluations=[evaluation() for _ in range(number)])
    )
    await ledger.RecordHeartbeat(ledger_pb2.RecordHeartbeatRequest(heartbeat=heartbeat(an_executor())))
    answer = await ledger.LeaseEvaluations(ledger_pb2.LeaseEvaluationsRequest(pool="default", limit=number))
    return [Run(item.job) for item in answer.jobs]


async def test_a_killed_store_loses_nothing(
    store_database_url: str, fresh_nats: NatsServer, tmp_path: Path, otlp_receiver: OtlpReceiver
) -> None:
    store = StoreProcess(store_database_url, fresh_nats.url, tmp_path, **otlp_receiver.environment)
    async with store.process, store.channel() as channel, connect_messaging(fresh_nats.url, name="t") as messaging:
        runs = await leased(channel, 40)
        for place, run in enumerate(runs):
            for delivery in (run.started(), run.output(), run.usage(), run.verdict()):
                await messaging.jetstream_publish(
                    delivery.subject,
                    delivery.data,
                    message_id=delivery.message_id,
                    headers={"traceparent": f"00-{place + 1:032x}-{1:016x}-01"},
                )
            if place == 20:
                store.process.kill()
        store.process.start()
        await store.process.wait_ready()
        queries = query_grpc.EvaluationQueryServiceStub(channel)
        for run in runs:
            which = run.job.evaluation_id
            request = query_pb2.WaitEvaluationRequest(id=which, timeout=Duration(seconds=30))
            answer = await queries.WaitEvaluation(request, wait_for_ready=True)
            assert answer.status == COMPLETED
            events = (await queries.ListEvents(query_pb2.ListEventsRequest(evaluation_id=which))).events
            assert [event.sequence for event in events] == list(range(1, 7))
        spans = await asyncio.to_thread(
            otlp_receiver.wait_for,
            lambda spans: any(span.name == "commit" and span.trace_id == f"{40:032x}" for span in spans),
        )
        assert {span.attributes["crucible.message"] for span in spans if span.name == "commit"} == {
            "started", "verdict"
        }  # fmt: skip
    assert store.process.exit_code == 0, "it leaves cleanly when it is told to"


async def test_calls_say_what_is_away_and_it_comes_back(fresh_nats: NatsServer, tmp_path: Path) -> None:
    with PostgresServer() as postgres, postgres.store_database() as url:
        store = StoreProcess(url, fresh_nats.url, tmp_path)
        async with store.process, store.channel() as channel:
            queries = query_grpc.EvaluationQueryServiceStub(channel)
            (run,) = await leased(channel, 1)
            which = query_pb2.GetEvaluationRequest(id=run.job.evaluation_id)
            postgres.kill()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await queries.GetEvaluation(which)
            error = from_rpc_error(caught.value)
            assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
            assert error.metadata == {"part": "database"}
            assert error.retry_after is not None
            postgres.start()
            assert (await queries.GetEvaluation(which)).id == run.job.evaluation_id


async def test_it_waits_for_what_is_not_there_yet(tmp_path: Path) -> None:
    with NatsServer() as nats, PostgresServer() as postgres, postgres.store_database() as url:
        nats.stop()
        postgres.stop()
        store = StoreProcess(url, nats.url, tmp_path)
        store.process.start()
        await logged(store, "database.waiting")
        postgres.start()
        await logged(store, "nats.waiting")
        assert store.process.running
        nats.start()
        await store.process.wait_ready()
        assert await store.process.terminate() == 0


async def test_a_watcher_is_told_to_resume_elsewhere(
    store_database_url: str, fresh_nats: NatsServer, tmp_path: Path
) -> None:
    store = StoreProcess(store_database_url, fresh_nats.url, tmp_path)
    async with store.process, store.channel() as channel:
        (run,) = await leased(channel, 1)
        watch = query_grpc.EvaluationQueryServiceStub(channel).WatchEvaluation(
            query_pb2.WatchEvaluationRequest(evaluation_id=run.job.evaluation_id)
        )
        seen: list[int] = []

        async def follow() -> None:
            async for event in watch:
                seen.append(event.sequence)
                if len(seen) == 2:
                    os.kill(store.process.pid, signal.SIGTERM)

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await follow()
        assert seen == [1, 2]
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_what_a_caller_gets_wrong_is_named(
    store_database_url: str, fresh_nats: NatsServer, tmp_path: Path
) -> None:
    store = StoreProcess(store_database_url, fresh_nats.url, tmp_path)
    async with store.process, store.channel() as channel:
        queries = query_grpc.EvaluationQueryServiceStub(channel)
        ledger = ledger_grpc.LedgerServiceStub(channel)
        bad = evaluation()
        bad.pool, bad.evaluation.id = "", "x"
        for call, field in (
            (queries.GetEvaluation(query_pb2.GetEvaluationRequest(id="x")), "id"),
            (queries.ListEvaluations(query_pb2.ListEvaluationsRequest(page_size=1001)), "page_size"),
            (ledger.CreateEvaluations(ledger_pb2.CreateEvaluationsRequest()), "evaluations"),
            (ledger.CreateEvaluations(ledger_pb2.CreateEvaluationsRequest(evaluations=[bad])), "evaluations[0].pool"),
            (ledger.LeaseEvaluations(ledger_pb2.LeaseEvaluationsRequest(pool="default", limit=65)), "limit"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            error = from_rpc_error(caught.value)
            assert error.code is grpc.StatusCode.INVALID_ARGUMENT
            assert field in [violation.field for violation in error.violations]
        slices = query_pb2.OutputSlice()
        new = evaluation()
        await ledger.CreateEvaluations(ledger_pb2.CreateEvaluationsRequest(evaluations=[new]))
        async for body in queries.ReadOutput(
            query_pb2.ReadOutputRequest(evaluation_id=new.evaluation.id, stream="stderr")
        ):
            assert body.extensions[0].Unpack(slices)
        assert (slices.length, slices.size_bytes, slices.complete) == (0, 0, False)
        # The public spelling of an id may be in capitals.
        found = await queries.GetEvaluation(query_pb2.GetEvaluationRequest(id=new.evaluation.id.upper()))
        assert found.id == new.evaluation.id
