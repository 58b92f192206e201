"""`crucible run`: byte-exact output, exit codes, files and figures, Ctrl-C, attempts that are lost."""

import asyncio
import fcntl
import json
import os
import signal
import termios
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
from command import Command, end, full_disk
from google.protobuf.message import Message
from recorded_platform import Failure, Messages, RecordedPlatform, eventually
from samples import ID, TRACE, body, completed, evaluation, event, finished, output, queued, runtimes

from crucible.v1 import evaluation_pb2, evaluation_service_pb2, event_pb2, execution_pb2
from crucible_client.cli.spelling import as_typed
from crucible_client.cli.units import parse_limits
from crucible_client.program import Limits, to_duration

NO_TEXT = os.fsdecode(b"\xff")
"""An argument that is no UTF-8."""

BYTES = bytes(range(256)) + "é\r\n".encode()


@pytest.fixture
def program(crucible: Command) -> str:
    (crucible.home / "program.py").write_text("print(1)\n")
    return "program.py"


def prepare(platform: RecordedPlatform, final: evaluation_pb2.Evaluation, *events: event_pb2.Event) -> None:
    platform.prepare("CreateEvaluation", evaluation())
    platform.prepare("WatchEvaluation", Messages(events or [queued(1), finished(2)]))
    platform.prepare("GetEvaluation", final)


async def test_output_is_written_byte_for_byte_and_the_end_is_told(
    platform: RecordedPlatform, crucible: Command, program: str
) -> None:
    final = completed(stdout=BYTES, stderr=b"warned\n")
    prepare(
        platform,
        final,
        queued(1),
        output(2, BYTES[:100]),
        output(3, b"warned\n", stream="STDERR"),
        output(4, BYTES[100:], offset=100),
        finished(5),
    )
    ended = await crucible("run", "--runtime", "python", program)
    assert ended.stdout == BYTES
    assert ended.stderr == (
        "warned\n"
        "crucible: SUCCEEDED  exit 0  cause PROGRAM  wall 250 ms  cpu 125 ms  memory 12.0 MiB"
        f"  id {ID}  trace {TRACE}\n"
    )
    assert ended.code == 0
    traceparents = {call.metadata["traceparent"] for call in platform.calls}
    assert len(traceparents) == 1, "one command is one trace"


async def test_what_is_not_sent_live_is_read_at_the_end(
    platform: RecordedPlatform, crucible: Command, program: str
) -> None:
    prepare(
        platform,
        completed(stdout=b"abcdef", stderr=b"xyz"),
        output(1, b"ab"),
        event(2, output_elided=event_pb2.OutputElided(stream=event_pb2.OutputChunk.STDOUT, offset=2)),
        event(3, message_parked=event_pb2.MessageParked(number=3)),
        output(4, b"z", offset=2, stream="STDERR"),
        finished(5),
    )
    platform.prepare(
        "ReadOutput",
        lambda request: Messages([body({"stdout": b"abcdef", "stderr": b"xyz"}[request.stream][request.offset :])]),
        lambda request: Messages([body({"stdout": b"abcdef", "stderr": b"xyz"}[request.stream][request.offset :])]),
    )
    ended = await crucible("run", "--quiet", "--runtime", "python", program)
    assert (ended.stdout, ended.stderr, ended.code) == (b"abcdef", "xyz", 0)


async def test_a_lost_attempt_is_announced_and_never_mixed_with_the_next(
    platform: RecordedPlatform, crucible: Command, program: str
) -> None:
    prepare(
        platform,
        completed(stdout=b"one\n"),
        output(1, b"on"),
        event(2, requeued=event_pb2.Requeued(cause=execution_pb2.ExecutionResult.INFRASTRUCTURE)),
        output(3, b"one\n", attempt=2),
        finished(4, attempt=2),
    )
    ended = await crucible("run", "--runtime", "python", program)
    assert ended.stdout == b"onone\n"
    assert "crucible: attempt 1 was lost; another one follows\n" in ended.stderr
    assert "crucible: attempt 2 begins; its output starts anew\n" in ended.stderr


def final_states() -> Sequence[tuple[str, evaluation_pb2.Evaluation, int, str]]:
    failed = evaluation("FAILED", status_reason=4, cause=5)
    return [
        ("exit 3", completed("NONZERO_EXIT", exit_code=3), 3, "NONZERO_EXIT  exit 3"),
        ("exit 137", completed("NONZERO_EXIT", exit_code=137), 137, "exit 137"),
        ("killed", completed("SIGNALED", signal="SIGSEGV"), 139, "SIGNALED  SIGSEGV"),
        ("real-time signal", completed("SIGNALED", signal="SIGRTMIN+1"), 163, "SIGRTMIN+1"),
        ("wall", completed("WALL_TIME_EXCEEDED", detail="5 s are over"), 124, "crucible: 5 s are over\n"),
        ("memory", completed("MEMORY_EXCEEDED"), 124, "MEMORY_EXCEEDED"),
        ("oom that killed init", completed("MEMORY_EXCEEDED", signal="SIGKILL"), 124, "MEMORY_EXCEEDED  SIGKILL"),
        ("failed", failed, 125, f"the platform gave up (ATTEMPTS_EXHAUSTED). Try again with: crucible requeue {ID}"),
        ("cancelled elsewhere", evaluation("CANCELLED", status_reason=6, cause=6), 130, "CANCELLED_BY_CALLER"),
    ]


@pytest.mark.parametrize("case", final_states(), ids=[case[0] for case in final_states()])
async def test_each_end_has_its_exit_code(
    platform: RecordedPlatform, crucible: Command, program: str, case: tuple[str, evaluation_pb2.Evaluation, int, str]
) -> None:
    _, final, code, told = case
    prepare(platform, final)
    ended = await crucible("run", "--runtime", "python", program)
    assert ended.code == code
    assert told in ended.stderr


async def test_json_is_the_final_evaluation_alone(platform: RecordedPlatform, crucible: Command, program: str) -> None:
    platform.prepare("CreateEvaluation", evaluation())
    platform.prepare("WaitEvaluation", completed("NONZERO_EXIT", exit_code=3, stdout=b"1\n"))
    ended = await crucible("run", "--json", "--quiet", "--runtime", "python", program)
    assert (ended.code, ended.stderr) == (3, "")
    parsed = json.loads(ended.stdout)
    assert parsed["result"]["exitCode"] == 3
    assert parsed["result"]["stdout"]["text"] == "1\n"
    assert parsed["status"] == "COMPLETED"


async def test_every_option_reaches_the_evaluation(platform: RecordedPlatform, crucible: Command) -> None:
    (crucible.home / "main.py").write_text("import other\n")
    (crucible.home / "other=1.py").write_bytes(b"\xff")
    (crucible.home / "input").write_text("in")
    platform.prepare("ListRuntimes", runtimes())
    prepare(platform, completed())
    ended = await crucible(
        *("run", "main.py", "--file", "other=1.py", "--file", "input=data/in.txt", "--stdin", "input"),
        *("--arg", "one", "--env", "A=b=c", "--label", "team=red", "--priority", "high", "--name", "mine"),
        *("--limit", "wall_time=500ms", "--limit", "cpu-time=2m", "--limit", "memory_bytes=512MiB"),
        *("--limit", "disk_bytes=1GB", "--limit", "processes=4", "--request-id", "r1", "--", "--two", "-x"),
    )
    assert ended.code == 0, ended.stderr
    [call] = platform.called("CreateEvaluation")
    assert call.request == evaluation_service_pb2.CreateEvaluationRequest(
        request_id="r1",
        evaluation=evaluation_pb2.Evaluation(
            runtime="python",
            files=[
                evaluation_pb2.File(path="main.py", text="import other\n"),
                evaluation_pb2.File(path="other=1.py", data=b"\xff"),
                evaluation_pb2.File(path="data/in.txt", text="in"),
            ],
            entrypoint="main.py",
            args=["one", "--two", "-x"],
            env={"A": "b=c"},
            stdin="in",
            limits=evaluation_pb2.Limits(
                wall_time=to_duration(0.5),
                cpu_time=to_duration(120),
                memory_bytes=512 * 2**20,
                disk_bytes=10**9,
                processes=4,
            ),
            priority=evaluation_pb2.Evaluation.HIGH,
            labels={"team": "red"},
            display_name="mine",
        ),
    )


async def test_a_program_comes_from_standard_input_too(platform: RecordedPlatform, crucible: Command) -> None:
    prepare(platform, completed())
    ended = await crucible("run", "--runtime", "bash", "-", stdin=b"echo 1")
    assert ended.code == 0
    assert platform.calls[0].request.evaluation == evaluation_pb2.Evaluation(
        runtime="bash", source="echo 1", limits=evaluation_pb2.Limits()
    )


async def test_the_extension_tells_the_runtime(platform: RecordedPlatform, crucible: Command) -> None:
    platform.always("ListRuntimes", runtimes(("bash", "main.sh"), ("python-numpy", "main.py"), ("python", "main.py")))
    (crucible.home / "a.py").write_text("1")
    prepare(platform, completed())
    assert (await crucible("run", "a.py")).code == 0
    assert platform.called("CreateEvaluation")[0].request.evaluation.runtime == "python"
    (crucible.home / "a.rb").write_text("1")
    unknown = await crucible("run", "a.rb")
    assert unknown.code == 2
    assert "use --runtime with one of bash, python-numpy, python" in unknown.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["missing.py"], "does not exist"),
        (["program.py", "--limit", "wall_time=soon"], "wall_time: 'soon' is not a duration such as 5s"),
        (["program.py", "--limit", "mem=1"], "write NAME=VALUE with one of wall_time"),
        (["program.py", "--limit", "memory=5 parsecs"], "--limit: memory_bytes: '5 parsecs' is not a size"),
        (["program.py", "--limit", "memory=1g", "--limit", "memory_bytes=1g"], "'memory_bytes' is given twice"),
        (["program.py", "--env", "A"], "'A': write NAME=VALUE"),
        (["program.py", "--env", "A=1", "--env", "A=2"], "'A' is given twice"),
        (["program.py", "--file", "program.py"], "is the program's own name"),
        (["program.py", "--file", "nowhere"], "--file: cannot read 'nowhere'"),
        (["program.py", "--stdin", "nowhere"], "--stdin: cannot read 'nowhere'"),
        (["-", "--stdin", "-"], "the program itself is read from standard input"),
        (["--runtime=python", "program.py", "--limit", "processes=99999999999"], "--limit processes: value out of"),
        (["--runtime=python", "program.py", "--limit", "memory=9" + "0" * 20], "--limit memory_bytes: value out of"),
        (["--runtime=python", "program.py", "--limit", "wall_time=99999999999999d"], "--limit wall_time: is out of"),
        (["--runtime=python", "program.py", "--", "a", NO_TEXT], "ARGUMENT 2: is not text: UTF-8 has no "),
        (["--runtime=python", "program.py", "--name", NO_TEXT], "--name: is not text"),
        (["--runtime=python", "program.py", "--file", f"program.py={NO_TEXT}"], "--file number 1: is not text"),
    ],
)
async def test_a_wrong_command_line_is_told_before_anything_is_sent(
    platform: RecordedPlatform, crucible: Command, program: str, arguments: list[str], told: str
) -> None:
    ended = await crucible("run", *arguments)
    assert ended.code == 2, ended.stderr
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr
    assert platform.calls == []


def sleeps(pid: int) -> bool:
    """It is in a call of the kernel's; a signal that comes between two of Python's own calls waits for the second."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "S"


async def test_ctrl_c_while_the_program_is_read_is_ctrl_c(platform: RecordedPlatform, crucible: Command) -> None:
    theirs, ours = os.pipe()
    process = await crucible.start("run", "--runtime", "bash", "-", stdin=theirs)
    os.close(theirs)
    os.write(ours, b"echo half of a pro")
    await eventually(lambda: fcntl.ioctl(ours, termios.FIONREAD, bytes(4)) == bytes(4) and sleeps(process.pid))
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(60):
        told = await process.communicate()
    os.close(ours)
    assert (process.returncode, told) == (130, (b"", b""))
    assert platform.calls == []


async def test_what_the_platform_refuses_is_told_field_by_field(
    platform: RecordedPlatform, crucible: Command, program: str
) -> None:
    platform.prepare(
        "CreateEvaluation",
        Failure(
            grpc.StatusCode.INVALID_ARGUMENT,
            reason="INVALID_FIELD",
            violations=(
                ("evaluation.limits.memory_bytes", "must be at most 4294967296"),
                ('evaluation.env["A B"]', "no NUL"),
            ),
        ),
        Failure(
            grpc.StatusCode.INVALID_ARGUMENT,
            reason="UNKNOWN_RUNTIME",
            violations=(("evaluation.runtime", "'cobol' is not known; did you mean 'bash'?"),),
        ),
    )
    ended = await crucible("run", "--runtime", "python", program)
    assert ended.code == 2
    assert ended.stderr == (
        "crucible: the request breaks several rules\n"
        "  --limit memory_bytes: must be at most 4.00 GiB\n"
        "  --env A B: no NUL\n"
    )
    ended = await crucible("run", "--runtime", "cobol", program)
    assert ended.stderr == "crucible: --runtime: 'cobol' is not known; did you mean 'bash'? See: crucible runtimes\n"
    assert ended.code == 2


def test_limits_may_be_named_without_their_unit() -> None:
    limits = parse_limits(("wall=5s", "memory=512MiB", "disk=1g", "output=4096", "processes=3"))
    assert limits == Limits(wall_time=5, memory_bytes=2**29, disk_bytes=2**30, output_bytes=4096, processes=3)


@pytest.mark.parametrize(
    ("field", "typed"),
    [
        ("evaluation.limits.memory_bytes", "--limit memory_bytes"),
        ("evaluation.runtime", "--runtime"),
        ("evaluation.source", "FILE"),
        ("evaluation.files[0].path", "FILE"),
        ("evaluation.files[2].path", "--file number 2"),
        ("evaluation.args", "ARGUMENT"),
        ("evaluation.args[3]", "ARGUMENT 4"),
        ('evaluation.env["A B[1].c"]', "--env A B[1].c"),
        ('evaluation.labels["Team"]', "--label Team"),
        ("evaluation.display_name", "--name"),
        ("request_id", "--request-id"),
        ("id", "ID"),
        ("filter", "--filter"),
        ("something.new[1]", "something.new[1]"),
    ],
)
def test_fields_are_spelled_as_they_are_typed(field: str, typed: str) -> None:
    assert as_typed(field) == typed


async def test_nobody_there_is_one_line_with_the_next_step(crucible: Command, program: str) -> None:
    nobody = {"CRUCIBLE_SCHEDULER_URL": "127.0.0.1:1", "http_proxy": "http://127.0.0.1:2"}
    ended = await crucible("run", "--runtime", "python", program, env=nobody)
    assert ended.code == 125
    assert ended.stderr == ("crucible: cannot reach the scheduler at 127.0.0.1:1. Is the stack up? Try: crucible up\n")


async def interrupted(platform: RecordedPlatform, crucible: Command, *arguments: str) -> Process:
    """A command whose evaluation runs until it is cancelled, at the moment its output has come."""
    platform.prepare("CreateEvaluation", evaluation())
    platform.prepare("WatchEvaluation", Messages([queued(1), output(2, b"begun\n")], hang=True))
    process = await crucible.start("run", "--runtime", "python", *arguments, stdin=PIPE)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"begun\n"
    return process


def cancelled(platform: RecordedPlatform) -> Messages:
    """What a watch that resumes sees."""
    return Messages([event(3, cancelled=event_pb2.Cancelled())])


async def end_watch(platform: RecordedPlatform) -> None:
    """The stream that hangs breaks; the command resumes it."""
    await platform.wait_called("CancelEvaluation")
    await platform.stop()
    await platform.start()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_signal_cancels_at_the_platform_first(
    platform: RecordedPlatform, crucible: Command, program: str, number: signal.Signals, code: int
) -> None:
    process = await interrupted(platform, crucible, program)
    platform.prepare("CancelEvaluation", evaluation("CANCELLED"))
    platform.prepare("WatchEvaluation", cancelled(platform))
    platform.prepare("GetEvaluation", evaluation("CANCELLED", status_reason=6, cause=6))
    process.send_signal(number)
    await end_watch(platform)
    ended = await end(process)
    assert ended.code == code
    assert f": cancelling {ID}\n" in ended.stderr
    assert "CANCELLED  CANCELLED_BY_CALLER  cause USER" in ended.stderr


async def test_a_cancel_that_comes_too_late_leaves_the_verdict(
    platform: RecordedPlatform, crucible: Command, program: str
) -> None:
    process = await interrupted(platform, crucible, program)
    platform.prepare("CancelEvaluation", Failure(grpc.StatusCode.FAILED_PRECONDITION, reason="EVALUATION_FINAL"))
    platform.prepare("WatchEvaluation", Messages([finished(3)]))
    platform.prepare("GetEvaluation", completed("NONZERO_EXIT", exit_code=7, stdout=b"begun\n"))
    process.send_signal(signal.SIGINT)
    await end_watch(platform)
    assert (await end(process)).code == 7


async def test_a_second_signal_leaves_at_once(platform: RecordedPlatform, crucible: Command, program: str) -> None:
    process = await interrupted(platform, crucible, program)
    platform.prepare("CancelEvaluation", Messages([], hang=True))
    process.send_signal(signal.SIGINT)
    await platform.wait_called("CancelEvaluation")
    process.send_signal(signal.SIGINT)
    ended = await end(process)
    assert ended.code == 130
    assert f"it may still run: crucible cancel {ID}" in ended.stderr


async def test_one_that_waits_in_the_queue_says_why(
    platform: RecordedPlatform, crucible: Command, program: str
) -> None:
    platform.prepare("CreateEvaluation", evaluation())
    platform.prepare("WatchEvaluation", Messages([queued(1)], hang=True), Messages([finished(2)]))
    waiting = evaluation(status_reason=evaluation_pb2.Evaluation.WAITING_FOR_CAPACITY)
    platform.prepare("GetEvaluation", waiting, completed())
    process = await crucible.start("run", "--runtime", "python", program)
    assert process.stderr is not None
    told = await process.stderr.readline()
    assert told == f"crucible: {ID} waits in the queue: every slot is taken; it runs when one is free\n".encode()
    await platform.stop()
    await platform.start()
    assert (await end(process)).code == 0


async def test_a_timeout_cancels_and_is_a_limit(platform: RecordedPlatform, crucible: Command, program: str) -> None:
    process = await interrupted(platform, crucible, program, "--timeout", "1s")
    platform.prepare("CancelEvaluation", evaluation("CANCELLED"))
    platform.prepare("WatchEvaluation", cancelled(platform))
    platform.prepare("GetEvaluation", evaluation("CANCELLED", status_reason=6, cause=6))
    await end_watch(platform)
    ended = await end(process)
    assert ended.code == 124
    assert "--timeout is over: cancelling" in ended.stderr


async def test_a_cancel_that_nobody_answers_says_that_it_may_still_run(
    platform: RecordedPlatform, crucible: Command, program: str
) -> None:
    process = await interrupted(platform, crucible, program)
    platform.prepare("CancelEvaluation", Failure(grpc.StatusCode.INTERNAL, "a fault", reason="INTERNAL"))
    process.send_signal(signal.SIGINT)
    ended = await end(process)
    assert ended.code == 130
    assert f"could not cancel: a fault; it may still run: crucible cancel {ID}" in ended.stderr


async def test_output_that_cannot_be_written_ends_the_program(
    platform: RecordedPlatform, crucible: Command, program: str
) -> None:
    platform.prepare("CreateEvaluation", evaluation())
    platform.prepare("WatchEvaluation", Messages([queued(1), output(2, b"lost\n")], hang=True))
    platform.prepare("CancelEvaluation", evaluation("CANCELLED"))
    platform.prepare("WatchEvaluation", cancelled(platform))
    platform.prepare("GetEvaluation", evaluation("CANCELLED", status_reason=6, cause=6))
    with full_disk() as full:
        process = await crucible.start("run", "--runtime", "python", program, stdout=full)
    await end_watch(platform)
    ended = await end(process)
    assert ended.code == 125
    assert f"cannot write the output (No space left on device): cancelling {ID}\n" in ended.stderr


async def test_a_reader_that_leaves_ends_the_program(
    platform: RecordedPlatform, crucible: Command, program: str
) -> None:
    flood: list[Message] = [output(n + 1, b"x" * 65536, offset=n * 65536) for n in range(16)]
    platform.prepare("CreateEvaluation", evaluation())
    platform.prepare("WatchEvaluation", Messages(flood, hang=True))
    platform.prepare("CancelEvaluation", evaluation("CANCELLED"))
    platform.prepare("WatchEvaluation", Messages([event(17, cancelled=event_pb2.Cancelled())]))
    platform.prepare("GetEvaluation", evaluation("CANCELLED"))
    process = await crucible.start("run", "--runtime", "python", program)
    assert process.stdout is not None
    await process.stdout.read(10)
    process.stdout._transport.close()  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType, reportAttributeAccessIssue]  # the pipe's reading end, as `head` closes it
    await end_watch(platform)
    async with asyncio.timeout(60):
        assert await process.wait() == 141
