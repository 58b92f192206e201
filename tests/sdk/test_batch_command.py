"""`crucible batch`: checked first, bounded in flight, resumable, every line answered once."""

import asyncio
import json
import signal
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from command import Command, end
from google.protobuf.message import Message
from recorded_platform import Failure, Hang, RecordedPlatform
from samples import completed, evaluation, runtimes

from crucible.v1 import evaluation_pb2, evaluation_query_service_pb2, evaluation_service_pb2
from crucible_client.cli.batch_file import read_batch
from crucible_client.cli.strict_json import FaultError, read_message, read_object
from crucible_gateway import json_reader, strict_json


class Scheduler:
    """Accepts like the real one: the same request id gives the same evaluation. Each is final when it is waited for."""

    def __init__(self, platform: RecordedPlatform, *, end: str = "COMPLETED") -> None:
        self.accepted: dict[str, evaluation_pb2.Evaluation] = {}
        self.waiting = 0
        self.most_in_flight = 0
        self._final: dict[str, evaluation_pb2.Evaluation] = {}
        self._end = end
        platform.always("ListRuntimes", runtimes())
        platform.always("BatchCreateEvaluations", self._create)
        platform.always("WaitEvaluation", self.wait)

    def _create(self, request: evaluation_service_pb2.BatchCreateEvaluationsRequest) -> Message | Failure:
        for item in request.requests:
            if item.evaluation.args[:1] == ["refuse"]:
                index = [*request.requests].index(item)
                violation = (f"requests[{index}].evaluation.limits.memory_bytes", "must not be refused")
                return Failure(grpc.StatusCode.INVALID_ARGUMENT, reason="INVALID_FIELD", violations=(violation,))
        for item in request.requests:
            if item.request_id not in self.accepted:
                new = evaluation(evaluation_id=f"e{len(self.accepted)}", source=item.evaluation.source)
                self.accepted[item.request_id] = new
        present = [self.accepted[item.request_id] for item in request.requests]
        self.most_in_flight = max(self.most_in_flight, len(self.accepted) - len(self._final))
        return evaluation_service_pb2.BatchCreateEvaluationsResponse(
            evaluations=[self._final.get(one.id, one) for one in present]
        )

    def wait(self, request: evaluation_query_service_pb2.WaitEvaluationRequest) -> Message:
        """The answer to a wait: its end."""
        final = completed(stdout=b"1\n") if self._end == "COMPLETED" else evaluation(self._end)
        final.id = request.id
        self._final[request.id] = final
        return final


def write(crucible: Command, programs: Sequence[dict[str, Any]], name: str = "batch.jsonl") -> str:
    (crucible.home / name).write_text("".join(json.dumps(program) + "\n" for program in programs))
    return name


def program(number: int, **more: Any) -> dict[str, Any]:  # noqa: ANN401  JSON
    return {"runtime": "python", "source": f"print({number})", **more}


async def test_every_line_is_run_once_and_a_rerun_repeats_nothing(
    platform: RecordedPlatform, crucible: Command
) -> None:
    scheduler = Scheduler(platform)
    file = write(crucible, [program(i) for i in range(700)] + [program(700, requestId="mine")])
    ended = await crucible("batch", file, "--in-flight", "50")
    assert ended.code == 0, ended.stderr
    results = [json.loads(line) for line in ended.stdout.splitlines()]
    assert sorted(result["line"] for result in results) == list(range(1, 702))
    assert {result["requestId"] for result in results} == set(scheduler.accepted)
    assert "mine" in scheduler.accepted
    assert all(result["evaluation"]["result"]["stdout"]["text"] == "1\n" for result in results)
    assert not any("source" in result["evaluation"] for result in results)
    assert scheduler.most_in_flight <= 50
    assert "701 of 701 done" in ended.stderr
    assert "701 evaluations: 701 COMPLETED" in ended.stderr

    platform.calls.clear()
    again = await crucible("batch", file, "--output", "results.jsonl", "--quiet")
    assert (again.code, again.stdout, again.stderr) == (0, b"", "")
    assert len(scheduler.accepted) == 701
    assert platform.called("WaitEvaluation") == [], "all were final already"
    rerun = [json.loads(line) for line in (crucible.home / "results.jsonl").read_text().splitlines()]
    assert sorted(rerun, key=lambda r: r["line"]) == sorted(results, key=lambda r: r["line"])

    assert (await crucible("batch", file, "--key", "second time", "--quiet")).code == 0
    assert len(scheduler.accepted) == 701 + 700, "only the line with an id of its own is the same"


async def test_a_batch_that_was_interrupted_continues(platform: RecordedPlatform, crucible: Command) -> None:
    scheduler = Scheduler(platform)
    platform.always("WaitEvaluation", Hang())  # none but those prepared ends before the interruption
    platform.prepare("WaitEvaluation", *[scheduler.wait] * 15)
    file = write(crucible, [program(i) for i in range(300)])
    process = await crucible.start("batch", file, "--in-flight", "10")
    await platform.wait_called("WaitEvaluation", 20)
    process.send_signal(signal.SIGINT)
    ended = await end(process)
    assert ended.code == 130
    assert "run the same command again" in ended.stderr
    assert 0 < len(scheduler.accepted) < 300
    platform.always("WaitEvaluation", scheduler.wait)
    continued = await crucible("batch", file)
    assert continued.code == 0
    assert len(scheduler.accepted) == 300
    assert len(continued.stdout.splitlines()) == 300


async def test_a_platform_that_goes_away_in_the_middle_is_waited_for(
    platform: RecordedPlatform, crucible: Command
) -> None:
    scheduler = Scheduler(platform)
    process = await crucible.start("batch", write(crucible, [program(i) for i in range(300)]), "--in-flight", "20")
    await platform.wait_called("WaitEvaluation", 50)
    await platform.stop()
    await asyncio.sleep(0.5)
    await platform.start()
    ended = await end(process)
    assert ended.code == 0, ended.stderr
    assert len(scheduler.accepted) == len(ended.stdout.splitlines()) == 300


async def test_bad_lines_are_named_before_anything_is_sent(platform: RecordedPlatform, crucible: Command) -> None:
    platform.prepare("ListRuntimes", runtimes())
    bad = [
        b'{"runtime": "python", "source": "print(1)"}',
        b"{",
        b"",
        b'["python"]',
        b'{"runtime": "python", "sauce": "print(1)"}',
        b'{"runtime": "python", "source": "1", "limits": {"wallTime": "soon"}}',
        b'{"runtime": "pyhton", "source": "1"}',
        b'{"source": "1"}',
        b'{"runtime": "python"}',
        b'{"runtime": "python", "source": "1", "requestId": "a b"}',
        b'{"runtime": "python", "source": "1", "requestId": "same"}',
        b'{"runtime": "python", "source": "2", "requestId": "same"}',
        b'{"runtime": "python", "source": "\xff"}',
        b'{"runtime": "python", "source": 1}',
    ]
    (crucible.home / "bad.jsonl").write_bytes(b"\n".join(bad))
    ended = await crucible("batch", "bad.jsonl")
    assert (ended.code, ended.stdout) == (2, b"")
    assert [call.method for call in platform.calls] == ["ListRuntimes"]
    told = {int(line.split()[2].rstrip(":")): line for line in ended.stderr.splitlines()}
    assert set(told) == {2, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14}
    assert "is not JSON" in told[2]
    assert "must be an object" in told[4]
    assert "sauce: there is no such field" in told[5]
    assert 'line 6: limits.wallTime: must be a duration in seconds, such as "1.5s"' in told[6]
    assert "'pyhton' is not known: one of bash, python" in told[7]
    assert "runtime: is missing" in told[8]
    assert "source: is missing: send the program as source or as files" in told[9]
    assert "requestId: must be printable" in told[10]
    assert "requestId: 'same' is already used in line 11" in told[12]
    assert "is not UTF-8" in told[13]
    assert "line 14: source: must be a string, not a number" in told[14]


async def test_a_line_that_the_platform_refuses_costs_no_other(platform: RecordedPlatform, crucible: Command) -> None:
    scheduler = Scheduler(platform)
    ended = await crucible("batch", write(crucible, [program(1), program(2, args=["refuse"]), program(3)]))
    assert ended.code == 2
    results = {result["line"]: result for result in map(json.loads, ended.stdout.splitlines())}
    assert set(results) == {1, 2, 3}
    assert results[2]["error"]["reason"] == "INVALID_FIELD"
    assert results[2]["error"]["message"] == "limits.memoryBytes: must not be refused"
    assert "crucible: line 2: limits.memoryBytes: must not be refused\n" in ended.stderr
    assert len(scheduler.accepted) == 2


async def test_a_platform_that_is_full_refuses_no_line(platform: RecordedPlatform, crucible: Command) -> None:
    scheduler = Scheduler(platform)
    full = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!")
    platform.prepare("BatchCreateEvaluations", full, full)
    ended = await crucible("batch", write(crucible, [program(1), program(2)]))
    assert ended.code == 0, ended.stderr
    assert len(scheduler.accepted) == 2


async def test_results_that_cannot_be_written_are_a_mistake(platform: RecordedPlatform, crucible: Command) -> None:
    Scheduler(platform)
    ended = await crucible("batch", write(crucible, [program(1)]), "--json", "-o", "no/such/folder")
    assert (ended.code, ended.stdout) == (2, b"")
    assert "--output: cannot write 'no/such/folder'" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("status", ["FAILED", "CANCELLED"])
async def test_one_without_a_verdict_is_the_platforms_failure(
    platform: RecordedPlatform, crucible: Command, status: str
) -> None:
    Scheduler(platform, end=status)
    ended = await crucible("batch", "-", stdin=json.dumps(program(1)).encode())
    assert ended.code == 125
    assert json.loads(ended.stdout)["evaluation"]["status"] == status
    assert f"1 {status}" in ended.stderr


async def test_a_terminal_gets_a_bar(platform: RecordedPlatform, crucible: Command) -> None:
    Scheduler(platform)
    file = write(crucible, [program(i) for i in range(30)])
    ended = await crucible.on_terminal("batch", file, "--output", "results.jsonl")
    assert ended.code == 0
    assert "━".encode() in ended.stdout
    assert b"30/30" in ended.stdout
    assert len((crucible.home / "results.jsonl").read_text().splitlines()) == 30


def test_request_ids_are_of_the_content_and_the_line() -> None:
    content = b'{"runtime": "python", "source": "1"}\n' * 2
    first, second = read_batch(content, runtimes=["python"], key=None)[0]
    assert first.request_id != second.request_id
    assert read_batch(content, runtimes=["python"], key=None)[0][0].request_id == first.request_id
    assert read_batch(content + b"\n", runtimes=["python"], key=None)[0][0].request_id != first.request_id
    keyed = read_batch(content, runtimes=["python"], key="k")[0][0].request_id
    assert read_batch(content + b"\n", runtimes=["python"], key="k")[0][0].request_id == keyed
    assert read_batch(content, runtimes=["python"], key="\udcff")[0], "any argument is a key"


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ('"stdinBytes": "hello, world!"', "stdinBytes: must be base64"),
        ('"stdin_bytes": "!!"', "stdin_bytes: must be base64"),
        ('"stdinBytes": 5', "stdinBytes: must be a base64 string, not a number"),
        ('"files": [{"path": "a", "data": "YQ=Q"}]', "files[0].data: must be base64"),
        ('"files": [{"path": "a", "text": "b", "data": "YQ=="}]', "files[0].data: cannot be combined with text"),
        ('"source": "2"', "source: is given twice in one object: keep one"),
        ('"env": {"A": "1", "A": "2"}', "A: is given twice in one object: keep one"),
        ('"stdinBytes": "", "stdin_bytes": ""', "is given twice, as stdinBytes and stdin_bytes: keep one"),
        ('"limits": {"wallTime": "1s", "wall_time": null}', "limits.wall_time: is given twice, as wallTime and wall"),
        ('"limits": {"processes": ' + "9" * 5000 + "}", "limits.processes: must be an integer from "),
        ('"limits": {"processes": "1_0"}', "limits.processes: must be an integer from "),
        ('"limits": {"processes": NaN}', "is not JSON: NaN"),
        ('"limits": {"wallTime": "1_0s"}', "limits.wallTime: must be a duration"),
        ('"limits": {"colour": 1}', "limits.colour: there is no such field"),
        ('"limits": []', "limits: must be an object, not an array"),
        ('"priority": true', "priority: must be one of LOW, NORMAL, HIGH"),
        ('"priority": "\\ud800"', "priority: must be one of LOW, NORMAL, HIGH"),
        ('"args": [1]', "args[0]: must be a string, not a number"),
        ('"args": ["\\ud800"]', "args[0]: contains an unpaired surrogate"),
        ('"env": {"A": null}', 'env["A"]: must not be null'),
    ],
)
def test_what_a_reader_would_have_to_bend_is_refused_with_its_field(members: str, told: str) -> None:
    lines, bad = read_batch(
        f'{{"runtime": "python", "source": "1", {members}}}'.encode(), runtimes=["python"], key=None
    )
    assert lines == []
    assert told in str(bad[0])


def test_a_line_is_read_as_the_gateway_reads_a_body() -> None:
    """Each field with each of many values: accepted by both, as the same message, or by neither."""
    fields = evaluation_pb2.Evaluation.DESCRIPTOR.fields
    names = sorted({name for field in fields for name in (field.name, field.json_name)})
    limits = sorted(field.json_name for field in evaluation_pb2.Limits.DESCRIPTOR.fields)
    bodies = [
        *(f'{{"{name}": {value}}}' for name in names for value in VALUES),
        *(f'{{"limits": {{"{name}": {value}}}}}' for name in limits for value in VALUES),
        *(f'{{"files": [{{"path": "a", "data": {value}}}]}}' for value in VALUES),
    ]
    accepted = 0
    for body in bodies:
        ours, theirs = read_here(body.encode()), read_by_gateway(body.encode())
        assert ours == theirs, body
        accepted += ours is not None
    assert 100 < accepted < len(bodies)


VALUES = [
    *("null", "true", "5", "1.0", "1.5", "-1", "1e3", "2147483648", "9223372036854775808", "9" * 5000, "NaN", "1e400"),
    *('"5"', '"1_0"', '" 5"', '"+5"', '"LOW"', '"low"', '"2"', '""', '"é"'),
    *('"1s"', '"1.5s"', '"-1s"', '"+1s"', '"1_0s"', '" 1s"', '"999999999999s"', '"0.1234567891s"'),
    *('"2026-01-31T00:00:00Z"', '"2026-02-30T00:00:00Z"', '"2026-01-31T00:00:00+02:00"', '"2026-01-31"'),
    *('"YQ=="', '"YQ"', '"YQ====="', '"-_-_"', '"+/+/"', '"-/+_"', '"!!"', '"YQ=Q"', '"Y"', '"YQ==\\n"'),
    *("[]", "{}", "[null]", "[1]", '["a"]', '{"a": null}', '{"a": 1}', '{"a": "b"}', '{"a": "b", "a": "c"}'),
    *('[{"path": "a", "text": "b"}]', '[{"path": "a", "text": "b", "data": "YQ=="}]', '{"wallTime": "1s"}'),
]


def read_here(body: bytes) -> evaluation_pb2.Evaluation | None:
    message = evaluation_pb2.Evaluation()
    try:
        read_message(read_object(body), message)
    except FaultError:
        return None
    return message


def read_by_gateway(body: bytes) -> evaluation_pb2.Evaluation | None:
    message, faults = evaluation_pb2.Evaluation(), json_reader.Faults()
    try:
        json_reader.read_message(strict_json.read_json(body), message, "", faults)
    except strict_json.MalformedJsonError:
        return None
    return None if faults.found else message
