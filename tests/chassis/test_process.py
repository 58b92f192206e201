"""Real small processes: how they start, stop, fail and what they say."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import grpc
import grpc.aio
import psutil
import pytest
from echo_service import EchoStub, eventually, word
from grpc_health.v1 import health_pb2, health_pb2_grpc

from crucible_chassis.client import open_channel
from crucible_testkit import Child, NatsServer, OtlpReceiver

SCRIPT = str(Path(__file__).with_name("small_process.py"))
IDLE_BYTES = 120 * 1024 * 1024


class Small:
    """The process and what it logged."""

    def __init__(self, child: Child) -> None:
        self.child = child

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    @property
    def text(self) -> str:
        return self.child.tail()

    def said(self, event: str) -> bool:
        return f'"event": "{event}"' in self.text

    def address(self, event: str) -> str:
        [line] = [line for line in self.lines if line["event"] == event]
        return line["address"]

    @property
    def failures(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["level"] in ("error", "critical")]


Start = Callable[..., Small]


@pytest.fixture
def start(tmp_path: Path) -> Generator[Start]:
    children: list[Child] = []

    def begin(role: str, env: Mapping[str, str] | None = None, *, until: str | None = "small.ready") -> Small:
        child = Child(
            [sys.executable, SCRIPT, role],
            log=tmp_path / f"{len(children)}.log",
            env={"PATH": os.environ["PATH"], **(env or {})},
        )
        children.append(child)
        child.start()
        small = Small(child)
        if until is not None:
            child.wait_until(lambda: small.said(until))
        return small

    yield begin
    for child in children:
        child.kill()


async def test_sigterm_drains_flushes_and_exits_with_zero(start: Start, otlp_receiver: OtlpReceiver) -> None:
    # Exports only what is flushed at the end: the batch itself would wait a minute.
    env = {**otlp_receiver.environment, "OTEL_BSP_SCHEDULE_DELAY": "60000", "CRUCIBLE_GRACE_SECONDS": "20"}
    small = start("serve", env)
    async with open_channel(small.address("grpc.listening")) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        stub = EchoStub(channel)
        running = asyncio.ensure_future(stub.unary(word("sleep 1")))
        await eventually(lambda: small.said("call.sleeping"))
        assert otlp_receiver.spans == []

        small.child.send(signal.SIGTERM)

        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert (await running).text == "sleep 1"
    assert await asyncio.to_thread(small.child.wait) == 0
    assert small.failures == []
    events = [line["event"] for line in small.lines]
    assert events[-4:] == ["process.stopping", "grpc.draining", "grpc.stopped", "process.stopped"]
    assert [span.name for span in otlp_receiver.spans] == ["test.echo.Echo/Unary"]


async def test_a_call_that_outlasts_the_grace_is_ended(start: Start) -> None:
    small = start("serve", {"CRUCIBLE_GRACE_SECONDS": "0.3"})
    async with grpc.aio.insecure_channel(small.address("grpc.listening")) as channel:
        running = asyncio.ensure_future(EchoStub(channel).unary(word("sleep 60")))
        await eventually(lambda: small.said("call.sleeping"))
        small.child.send(signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert await asyncio.to_thread(small.child.wait) == 0


@pytest.mark.parametrize(
    ("role", "error"),
    [
        ("dead-task", "RuntimeError: the side task broke"),
        ("dead-job", "RuntimeError: the side task broke"),
        ("ended-task", "returned"),
    ],
)
def test_a_dead_side_task_ends_the_process_with_one_line(start: Start, role: str, error: str) -> None:
    small = start(role)
    assert small.child.wait() == 70
    [line] = small.failures
    assert (line["event"], line["task"], line["error"]) == ("task.died", "consumer", error)


def test_a_job_may_end(start: Start) -> None:
    small = start("ended-job")
    with pytest.raises(Exception, match="did not end"):
        small.child.wait(timeout=1)
    assert small.child.stop() == 0
    assert small.failures == []


@pytest.mark.parametrize(
    ("role", "error"),
    [
        ("fail-at-start", "RuntimeError: no start today"),
        ("no-policy", "RefusedToStartError: no policy is stated for"),
        ("return-early", "main returned before it was asked to stop"),
    ],
)
def test_a_failed_start_is_one_line_and_exit_code_70(start: Start, role: str, error: str) -> None:
    small = start(role, until=None)
    assert small.child.wait() == 70
    [line] = small.failures
    assert line["event"] == "process.failed"
    assert line["error"].startswith(error)


def test_a_start_that_waits_can_be_stopped(start: Start) -> None:
    small = start("wait-for-nats", until="nats.waiting")
    assert small.child.stop() == 0
    assert small.failures == []


def test_a_process_with_nats_stops_cleanly(start: Start, nats_server: NatsServer) -> None:
    small = start("wait-for-nats", {"CRUCIBLE_NATS_URL": nats_server.url})
    assert small.child.stop(signal.SIGINT) == 0
    assert small.failures == []


@pytest.mark.parametrize(("role", "last"), [("slow-to-leave", "process.grace_exceeded"), ("stuck", "process.stuck")])
def test_a_process_that_does_not_leave_is_ended(start: Start, role: str, last: str) -> None:
    small = start(role, {"CRUCIBLE_GRACE_SECONDS": "0"})
    assert small.child.stop() == 70
    assert last in [line["event"] for line in small.failures]


def test_bad_telemetry_settings_are_one_line_and_exit_code_78(start: Start) -> None:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "carrier-pigeon"}
    small = start("serve", env, until=None)
    assert small.child.wait() == 78
    [line] = small.lines
    assert "OTEL_EXPORTER_OTLP_PROTOCOL" in line["error"]


def test_a_second_signal_ends_at_once(start: Start) -> None:
    small = start("stuck", {"CRUCIBLE_GRACE_SECONDS": "3600"})
    small.child.send(signal.SIGTERM)
    small.child.wait_until(lambda: small.said("process.stopping"))
    assert small.child.stop() == 70
    assert small.said("process.killed")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("CRUCIBLE_GRACE_SECONDS", "soon"), ("CRUCIBLE_LOG_LEVEL", "loud"), ("CRUCIBLE_GRACE_SECONDS", "-1")],
)
def test_a_bad_setting_is_one_line_and_exit_code_78(start: Start, variable: str, value: str) -> None:
    small = start("serve", {variable: value}, until=None)
    assert small.child.wait() == 78
    [line] = small.text.splitlines()
    assert line.startswith(f"bad settings: {variable}: ")
    assert value not in line


async def test_an_idle_process_is_small_and_answers_its_probes(start: Start) -> None:
    small = start("serve")
    async with open_channel(small.address("grpc.listening")) as channel:
        await EchoStub(channel).unary(word("x"))
    assert psutil.Process(small.child.pid).memory_info().rss < IDLE_BYTES

    def get(path: str) -> tuple[int, str]:
        try:
            with urlopen(f"http://{small.address('admin.listening')}{path}", timeout=5) as response:
                return response.status, response.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    assert get("/healthz") == (200, "ok\n")
    assert get("/readyz") == (200, "ready\n")
    assert get("/nothing")[0] == 404
    status, text = get("/metrics")
    assert status == 200
    assert 'grpc_server_seconds_count{code="OK",method="Unary",service="test.echo.Echo"} 1.0' in text
    assert "process_resident_memory_bytes" in text


def test_every_line_is_json_with_its_identity(start: Start) -> None:
    small = start("serve")
    small.child.stop()
    for line in small.lines:
        assert list(line)[:4] == ["time", "level", "event", "service"]
        assert line["service"] == "small"
