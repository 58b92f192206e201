"""The servers every other test stands on."""

# pyright: reportUnknownMemberType=false
# nats-py types its keyword options as Unknown

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nats
import psycopg
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from crucible_testkit import NatsServer, OtlpReceiver, PostgresServer


def test_a_fresh_database_is_empty_and_gone_after_its_test(postgres_server: PostgresServer) -> None:
    template = postgres_server.ensure_template("template_with_a_table", _make_table)
    with postgres_server.fresh_database(template=template) as url, psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM things").fetchone() == (0,)
        connection.execute("INSERT INTO things VALUES (1)")
        connection.commit()
    with postgres_server.fresh_database(template=template) as other, psycopg.connect(other) as connection:
        assert other != url
        assert connection.execute("SELECT count(*) FROM things").fetchone() == (0,)
    with psycopg.connect(postgres_server.url()) as connection:
        names = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
    assert names == {"postgres", "template0", "template1", "template_with_a_table"} | (names & {"store_template"})


def _make_table(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE things (id int)")


def test_a_killed_postgres_comes_back_with_its_data() -> None:
    with PostgresServer() as server:
        _make_table(url := server.create_database())
        server.kill()
        server.start()
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT count(*) FROM things").fetchone() == (0,)


async def test_a_killed_nats_comes_back_with_its_streams(fresh_nats: NatsServer) -> None:
    client = await nats.connect(fresh_nats.url)
    await client.jetstream().add_stream(name="S", subjects=["s.>"])
    await client.jetstream().publish("s.1", b"kept")
    await client.close()
    url = fresh_nats.url
    fresh_nats.kill()
    fresh_nats.start()
    client = await nats.connect(url)
    message = await client.jetstream().get_msg("S", seq=1)
    await client.close()
    assert message.data == b"kept"


def test_spans_arrive_decoded(otlp_receiver: OtlpReceiver) -> None:
    provider = TracerProvider(resource=Resource({"service.name": "probe"}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{otlp_receiver.endpoint}/v1/traces")))
    with provider.get_tracer("t").start_as_current_span("parent", attributes={"n": 3}):
        provider.get_tracer("t").start_span("child").end()
    provider.shutdown()
    child, parent = otlp_receiver.wait_for(lambda spans: len(spans) == 2)
    assert (child.name, parent.name, parent.service) == ("child", "parent", "probe")
    assert child.parent_id == parent.span_id
    assert child.trace_id == parent.trace_id
    assert parent.attributes == {"n": 3}


def test_servers_die_with_a_killed_test_run(tmp_path: Path) -> None:
    program = """
import pathlib, sys, time
from crucible_testkit import NatsServer, PostgresServer
with NatsServer() as nats, PostgresServer() as postgres:
    pathlib.Path(sys.argv[1]).write_text(f"{nats._child.pid} {postgres._child.pid} {postgres._cluster.data}")
    time.sleep(60)
"""
    report = tmp_path / "pids"
    with subprocess.Popen([sys.executable, "-c", program, str(report)]) as run:
        _wait(lambda: report.exists() and report.read_text().count(" ") == 2)
        first, second, data = report.read_text().split()
        run.kill()
    _wait(lambda: not _alive(int(first)) and not _alive(int(second)))
    with NatsServer():  # the next run sweeps what the killed one left
        assert not Path(data).exists()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def _wait(condition: Callable[[], bool], timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
