"""The other commands: on a terminal and in a pipe, their failures, what they add and what they load."""

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import grpc
import pytest
from click.testing import CliRunner
from command import Command, end, full_disk, lines
from recorded_platform import Failure, Messages, RecordedPlatform
from samples import ID, TRACE, body, completed, evaluation, event, finished, output, queued, runtimes

from crucible.v1 import evaluation_query_service_pb2, event_pb2
from crucible.v1.containment_pb2 import Containment
from crucible_client import ConfigurationError
from crucible_client.addresses import Addresses, find_addresses
from crucible_client.cli import LOCAL, PLUGIN_GROUP, cli
from crucible_client.cli.units import parse_bytes, parse_seconds, show_bytes, show_seconds

NASTY = "evil\x1b]0;title\x07\x1b[31m"


def listing() -> evaluation_query_service_pb2.ListEvaluationsResponse:
    return evaluation_query_service_pb2.ListEvaluationsResponse(
        evaluations=[completed("SIGNALED", signal="SIGSEGV"), evaluation("QUEUED", display_name=NASTY)]
    )


async def test_list_is_lines_in_a_pipe_and_a_table_on_a_terminal(platform: RecordedPlatform, crucible: Command) -> None:
    platform.always("ListEvaluations", listing())
    piped = await crucible("list")
    first, second = (line.split("\t") for line in lines(piped.stdout))
    assert first[:6] == [ID, "COMPLETED", "SIGNALED", "SIGSEGV", "python", "250 ms"]
    assert second[2] == "QUEUED"
    assert "\x1b" not in piped.stdout.decode()

    shown = (await crucible.on_terminal("list")).stdout
    assert b"VERDICT" in shown
    assert b"\x1b[31mSIGNALED" in shown
    assert b"\x1b]0;" not in shown, "what a caller wrote drives no terminal"
    plain = (await crucible.on_terminal("list", env={"NO_COLOR": "1"})).stdout
    assert b"\x1b[31m" not in plain

    narrow = (await crucible.on_terminal("list", env={"COLUMNS": "60"})).stdout.decode()
    assert ID in narrow, "an id is there to be copied"
    assert "SIGNALED" in narrow
    assert "CREATED" not in narrow
    assert all(len(re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip()) <= 60 for line in narrow.splitlines())

    as_json = await crucible("list", "--json")
    assert [json.loads(line)["status"] for line in lines(as_json.stdout)] == ["COMPLETED", "QUEUED"]


async def test_list_turns_its_options_into_a_filter(platform: RecordedPlatform, crucible: Command) -> None:
    platform.always("ListEvaluations", listing())
    ended = await crucible(
        *("list", "--status", "completed", "--runtime", "python", "--label", 'team=a "b"\\'),
        *("--since", "2026-01-31T10:00:00+01:00", "--filter", 'cause = "LIMIT"', "--limit-count", "1"),
    )
    assert ended.code == 0
    assert len(lines(ended.stdout)) == 1
    [call] = platform.calls
    assert call.request.filter == (
        'cause = "LIMIT" AND status = "COMPLETED" AND runtime = "python" AND labels.team = "a \\"b\\"\\\\" '
        'AND create_time >= "2026-01-31T09:00:00.000000Z"'
    )
    assert call.request.page_size == 1
    assert (await crucible("list", "--since", "yesterday")).code == 2


async def test_get_shows_all_about_one(platform: RecordedPlatform, crucible: Command) -> None:
    final = completed(stdout=b"1\n" + NASTY.encode())
    evidence = final.result.containment
    evidence.inside.held.extend([Containment.TCP_EGRESS, Containment.DNS])
    evidence.before.exceptions.add(check=Containment.ROOT_IMAGE, verdict=Containment.NOT_CHECKED)
    evidence.after.held.append(Containment.PROCESSES_GONE)
    platform.always("GetEvaluation", final)
    shown = (await crucible("get", ID)).stdout.decode()
    assert f"id        {ID}" in shown
    assert f"trace     {TRACE}" in shown
    assert "status    COMPLETED" in shown
    assert "verdict   SUCCEEDED" in shown
    assert "contained 3 checks held, ROOT_IMAGE NOT_CHECKED" in shown
    assert "1\nevil\\x1b]0;title\\x07" in shown
    parsed = json.loads((await crucible("get", "--json", ID)).stdout)
    assert parsed["result"]["stdout"]["sizeBytes"] == str(final.result.stdout.size_bytes)
    assert b"\x1b[32mSUCCEEDED" in (await crucible.on_terminal("get", ID)).stdout


async def test_get_shows_what_held_a_program_up(platform: RecordedPlatform, crucible: Command) -> None:
    final = completed()
    usage = final.result.usage
    usage.throttled_time.FromMilliseconds(1500)
    usage.pressure.scope = usage.pressure.MACHINE
    usage.pressure.cpu.FromMilliseconds(250)
    usage.pressure.io.FromMilliseconds(0)
    platform.always("GetEvaluation", final)
    (line,) = [row for row in (await crucible("get", ID)).stdout.decode().splitlines() if row.startswith("waited")]
    assert re.fullmatch(r"waited +1.5\d* s throttled, (0.25 s|250 ms) for cpu, counted over the whole machine", line)
    shown = json.loads((await crucible("get", "--json", ID)).stdout)["result"]["usage"]
    assert (shown["throttledTime"], shown["pressure"]) == ("1.500s", {"scope": "MACHINE", "cpu": "0.250s", "io": "0s"})


async def test_watch_writes_events_as_they_come(platform: RecordedPlatform, crucible: Command) -> None:
    events = [
        queued(1),
        output(2, b"a\nb"),
        event(3, usage=event_pb2.UsageSample(memory_bytes=2**20)),
        finished(4),
    ]
    platform.always("WatchEvaluation", Messages(events))
    kinds = [line.split()[2] for line in lines((await crucible("watch", ID)).stdout)]
    assert kinds == ["queued", "output", "usage", "finished"]
    platform.always("WatchEvaluation", Messages(events[2:]))
    as_json = await crucible("watch", "--json", "--after", "2", ID)
    assert [json.loads(line)["sequence"] for line in lines(as_json.stdout)] == [3, 4]
    assert platform.calls[-1].request.after_sequence == 2


@pytest.mark.parametrize("arguments", [("list", "--json"), ("output", ID), ("get", ID), ("watch", ID)])
async def test_output_that_cannot_be_written_is_one_line(
    platform: RecordedPlatform, crucible: Command, arguments: tuple[str, ...]
) -> None:
    platform.always("ListEvaluations", listing())
    platform.always("ReadOutput", body(b"bytes"))
    platform.always("GetEvaluation", completed(stdout=b"text"))
    platform.always("WatchEvaluation", Messages([queued(1), finished(2)]))
    with full_disk() as full:
        ended = await end(await crucible.start(*arguments, stdout=full))
    assert ended.code == 125
    assert ended.stderr == "crucible: cannot write the output: No space left on device\n"


async def test_output_is_exact(platform: RecordedPlatform, crucible: Command) -> None:
    platform.always("ReadOutput", Messages([body(b"\x00\xff\r\n", offset=0, length=4, size=4)]))
    assert (await crucible("output", ID)).stdout == b"\x00\xff\r\n"
    ended = await crucible("output", "--stream", "stderr", "--offset", "-4", "--limit", "4", "--json", ID)
    assert json.loads(ended.stdout) == {"evaluationId": ID, "stream": "stderr", "sizeBytes": 4, "data": "AP8NCg=="}
    request = platform.calls[-1].request
    assert (request.stream, request.offset, request.limit) == ("stderr", -4, 4)


async def test_cancel_requeue_and_runtimes(platform: RecordedPlatform, crucible: Command) -> None:
    platform.prepare("CancelEvaluation", evaluation("CANCELLED"), evaluation("CANCELLED"))
    assert f"CANCELLED  id {ID}" in (await crucible("cancel", ID)).stdout.decode()
    assert json.loads((await crucible("cancel", "--json", ID)).stdout)["status"] == "CANCELLED"
    platform.prepare("RequeueEvaluation", evaluation("QUEUED"))
    assert (await crucible("requeue", ID)).code == 0
    platform.prepare("ListRuntimes", runtimes(), runtimes())
    assert [line.split()[0] for line in lines((await crucible("runtimes")).stdout)] == ["bash", "python"]
    as_json = await crucible("runtimes", "--json")
    assert [json.loads(line)["name"] for line in lines(as_json.stdout)] == ["bash", "python"]


@pytest.mark.parametrize(
    ("failure", "code", "told"),
    [
        (
            Failure(grpc.StatusCode.NOT_FOUND, "no evaluation has this id", reason="EVALUATION_NOT_FOUND"),
            2,
            "crucible: no evaluation has this id. See: crucible list\n",
        ),
        (
            Failure(grpc.StatusCode.INTERNAL, "a fault", reason="INTERNAL", metadata={"trace_id": TRACE}),
            125,
            f"crucible: a fault\n  INTERNAL INTERNAL, trace {TRACE}\n",
        ),
        (
            Failure(
                grpc.StatusCode.FAILED_PRECONDITION,
                "it cannot be cancelled",
                reason="EVALUATION_FINAL",
                metadata={"status": "COMPLETED"},
            ),
            2,
            "crucible: it cannot be cancelled; it is COMPLETED\n",
        ),
        (
            Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much.", reason="QUOTA"),
            2,
            "crucible: too much. Try again later",
        ),
    ],
    ids=["the user's", "the platform's", "a state", "quota"],
)
async def test_a_failure_is_told_with_what_to_do(
    platform: RecordedPlatform, crucible: Command, failure: Failure, code: int, told: str
) -> None:
    platform.prepare("GetEvaluation", failure)
    ended = await crucible("get", ID)
    assert (ended.code, ended.stdout) == (code, b"")
    assert ended.stderr.startswith(told)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["get", "\udcff"], "crucible: ID: is not text: UTF-8 has no '\\udcff' (character 1)\n"),
        (["list", "--filter", "a\udcff"], "crucible: --filter: is not text"),
        (["output", "x", "--offset", "9" * 20], "crucible: --offset: value out of range: 9"),
        (["watch", "x", "--after", "9" * 11], "crucible: --after: value out of range: 9"),
        (["--store", "\udcff", "get", "x"], "crucible: '\\udcff' is not an address such as 127.0.0.1:8081"),
    ],
)
async def test_what_cannot_be_sent_is_a_mistake_by_its_name(
    platform: RecordedPlatform, crucible: Command, arguments: list[str], told: str
) -> None:
    ended = await crucible(*arguments)
    assert (ended.code, ended.stdout) == (2, b"")
    assert ended.stderr.startswith(told)
    assert platform.calls == []


def test_help_loads_no_grpc_and_lists_every_command() -> None:
    code = (
        "import sys, contextlib\nfrom crucible_client.cli import main\nsys.argv = ['crucible', '--help']\n"
        "with contextlib.suppress(SystemExit):\n    main()\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('grpc', 'google', 'rich', 'crucible', 'asyncio')))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    *help_lines, loaded = shown.splitlines()
    assert loaded == "[]"
    for command in ("run", "batch", "get", "list", "watch", "output", "cancel", "requeue", "runtimes"):
        assert any(line.strip().startswith(command) for line in help_lines)


def test_every_command_has_help_with_an_example_and_json() -> None:
    context = click.Context(cli)
    for name in cli.list_commands(context):
        result = CliRunner().invoke(cli, [name, "--help"])
        assert result.exit_code == 0
        command = cli.get_command(context, name)
        assert command is not None
        assert command.help
        assert f"\n  crucible {name}" in result.output.partition("Usage: ")[2].partition("Options:")[0]
        assert "--json" in result.output


class _EntryPoint:
    def __init__(self, name: str) -> None:
        self.name = name

    def load(self) -> click.Command:
        return click.Command(self.name, callback=lambda: click.echo("from a plugin"))


def _install(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def entry_points(*, group: str) -> list[_EntryPoint]:
        assert group == PLUGIN_GROUP
        return [_EntryPoint(name) for name in names]

    monkeypatch.setattr("crucible_client.cli.entry_points", entry_points)


def test_commands_of_the_local_stack_come_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch)
    for name in LOCAL:
        absent = CliRunner().invoke(cli, [name])
        assert absent.exit_code == 2
        assert "pip install crucible-local" in absent.output
    assert "up " not in CliRunner().invoke(cli, ["--help"]).output
    assert "No such command" in CliRunner().invoke(cli, ["nothing"]).output

    _install(monkeypatch, "up", "run")
    assert CliRunner().invoke(cli, ["up"]).output == "from a plugin\n"
    assert LOCAL["up"] in CliRunner().invoke(cli, ["--help"]).output
    assert "in a sandbox" in CliRunner().invoke(cli, ["run", "--help"]).output, "ours is not replaced"


def test_addresses_are_found_in_their_order(tmp_path: Path) -> None:
    home = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert find_addresses(environment=home) == Addresses("127.0.0.1:8081", "127.0.0.1:8082")
    (tmp_path / "crucible").mkdir()
    file = tmp_path / "crucible" / "client.toml"
    file.write_text('scheduler = "file:1"\nstore = "file:2"\ngateway = "file:3"\n')
    assert find_addresses(environment=home) == Addresses("file:1", "file:2")
    assert find_addresses(environment=home | {"CRUCIBLE_STORE_URL": "env:2"}) == Addresses("file:1", "env:2")
    both = home | {"CRUCIBLE_SCHEDULER_URL": "env:1", "CRUCIBLE_STORE_URL": "env:2"}
    assert find_addresses("argument:1", environment=both) == Addresses("argument:1", "env:2")
    file.write_text("scheduler = 1\n")
    with pytest.raises(ConfigurationError, match="scheduler must be a string"):
        find_addresses(environment=home)
    file.write_text("scheduler")
    with pytest.raises(ConfigurationError, match="cannot read the addresses in"):
        find_addresses(environment=home)
    assert find_addresses(environment=both) == Addresses("env:1", "env:2"), "the file is not needed"


@pytest.mark.parametrize(
    ("text", "seconds"), [("5", 5), ("5s", 5), ("500ms", 0.5), ("1.5m", 90), ("2 h", 7200), ("1d", 86400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("1k", 1024), ("512MiB", 2**29), ("1 GiB", 2**30), ("1MB", 10**6), ("1.5kib", 1536)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "s", "-1s", "5 parsecs", "1e3", "NaN", "5s5"])
def test_figures_that_are_none(text: str) -> None:
    for parse in (parse_seconds, parse_bytes):
        with pytest.raises(ValueError, match="is not a"):
            parse(text)


def test_figures_without_end_are_refused() -> None:
    for parse in (parse_seconds, parse_bytes):
        with pytest.raises(ValueError, match="too large a figure"):
            parse("9" * 400)


def test_figures_as_people_read_them() -> None:
    assert [show_seconds(s) for s in (0, 0.0124, 3.214, 61, 3700)] == [
        "0 ms",
        "12 ms",
        "3.21 s",
        "1 min 1 s",
        "1 h 1 min",
    ]
    assert [show_bytes(b) for b in (0, 2048, 12 * 2**20, 2**31)] == ["0 B", "2.0 KiB", "12.0 MiB", "2.00 GiB"]
