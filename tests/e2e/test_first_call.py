"""What a newcomer's first calls must answer."""

from pathlib import Path
from typing import Any

import pytest

from crucible_testkit.stack import Stack


def test_the_first_call_answers_with_a_verdict(stack: Stack) -> None:
    evaluation = stack.run({"runtime": "python", "source": "print(1)"})
    assert evaluation["status"] == "COMPLETED"
    result = evaluation["result"]
    assert (result["outcome"], result["cause"], result["exitCode"]) == ("SUCCEEDED", "PROGRAM", 0)
    assert result["stdout"] == {
        "text": "1\n",
        "sizeBytes": "2",
        "sha256": "4355a46b19d348dc2f57c046f8ef63d4538ebb936000f3c9ee954a27460dd865",
        "truncated": False,
        "lossy": False,
        "omittedBytes": "0",
    }
    assert float(result["usage"]["wallTime"].rstrip("s")) > 0
    assert float(result["usage"]["cpuTime"].rstrip("s")) > 0
    assert int(result["usage"]["peakMemoryBytes"]) > 1_000_000
    timings = [result["timings"][name] for name in ("queued", "dispatched", "started", "ready", "finished")]
    assert timings == sorted(timings)
    assert len(result["imageDigest"]) == 64
    assert result["executor"]["id"]
    assert [stage["name"] for stage in result["stages"]] == ["run"]
    assert len(evaluation["traceId"]) == 32
    assert evaluation["limits"]["memoryBytes"] == str(256 * 1024 * 1024)
    assert evaluation["priority"] == "NORMAL"


@pytest.mark.parametrize("runtime", ["python", "bash"])
def test_args_env_stdin_and_files_arrive(stack: Stack, runtime: str) -> None:
    source = {
        "python": "import os, sys; print(sys.argv[1:], os.environ['NAME'], sys.stdin.read(), open('data/x').read())",
        "bash": 'echo "$@" "$NAME" "$(cat)" "$(cat data/x)"',
    }[runtime]
    main = {"python": "main.py", "bash": "main.sh"}[runtime]
    evaluation = stack.run(
        {
            "runtime": runtime,
            "files": [{"path": main, "text": source}, {"path": "data/x", "data": "aGVsbG8="}],
            "args": ["a", "b c"],
            "env": {"NAME": "crucible"},
            "stdin": "input",
        }
    )
    expected = {"python": "['a', 'b c'] crucible input hello\n", "bash": "a b c crucible input hello\n"}[runtime]
    assert evaluation["result"]["stdout"]["text"] == expected


CRASH = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
FLOOD = "import os\nblock = b'x' * 65536\nwhile True: os.write(1, block)"
ALLOCATE = "block = bytearray(10 * 1024 ** 3)"


@pytest.mark.parametrize(
    ("source", "limits", "outcome", "cause", "termination"),
    [
        ("exit(3)", {}, "NONZERO_EXIT", "PROGRAM", {"exitCode": 3}),
        ("exit(137)", {}, "NONZERO_EXIT", "PROGRAM", {"exitCode": 137}),
        ("exit(139)", {}, "NONZERO_EXIT", "PROGRAM", {"exitCode": 139}),
        ("exit(2)", {}, "NONZERO_EXIT", "PROGRAM", {"exitCode": 2}),
        (CRASH, {}, "SIGNALED", "PROGRAM", {"signal": "SIGSEGV"}),
        ("while True: pass", {"wallTime": "1s"}, "WALL_TIME_EXCEEDED", "LIMIT", {}),
        ("while True: pass", {"cpuTime": "0.5s"}, "CPU_TIME_EXCEEDED", "LIMIT", {}),
        (ALLOCATE, {}, "MEMORY_EXCEEDED", "LIMIT", {}),
        (FLOOD, {}, "OUTPUT_EXCEEDED", "LIMIT", {}),
    ],
)
def test_each_end_has_its_own_outcome(
    stack: Stack, source: str, limits: dict[str, str], outcome: str, cause: str, termination: dict[str, Any]
) -> None:
    evaluation = stack.run({"runtime": "python", "source": source, "limits": limits})
    result = evaluation["result"]
    assert (evaluation["status"], result["outcome"], result["cause"]) == ("COMPLETED", outcome, cause)
    for key, value in termination.items():
        assert result[key] == value
    if cause == "LIMIT":
        assert result["findings"][0]["outcome"] == outcome
    if outcome == "WALL_TIME_EXCEEDED":
        wall = float(result["usage"]["wallTime"].rstrip("s"))
        assert 1 <= wall < 2, "stopped within a second of the limit"
    if outcome == "OUTPUT_EXCEEDED":
        assert result["stdout"]["sizeBytes"] == str(1024 * 1024)
        assert result["stdout"]["truncated"]


def test_limits_that_a_program_may_meet_and_go_on_hold_inside(stack: Stack) -> None:
    source = """
import errno, os, time
def meets(do):
    try:
        while True: do()
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
meets(lambda: os.fork() or time.sleep(60))
meets(lambda: os.dup(0))
print(os.sysconf("SC_OPEN_MAX"))
os.closerange(3, 32)
for place in ("/work/big", "/tmp/big", "/dev/shm/big"):
    file = open(place, "wb", buffering=0)
    meets(lambda: file.write(bytes(1 << 20)))
"""
    limits = {"processes": 8, "openFiles": 32, "diskBytes": str(4 << 20)}
    result = stack.run({"runtime": "python", "source": source, "limits": limits})["result"]
    assert result["stdout"]["text"].split() == ["EAGAIN", "EMFILE", "32", "ENOSPC", "ENOSPC", "ENOSPC"]
    if Path("/proc/pressure/cpu").exists():
        assert result["usage"]["pressure"]["scope"] in ("SANDBOX", "MACHINE")
        assert float(result["usage"]["pressure"]["cpu"].rstrip("s")) >= 0


def test_a_memory_hog_that_touches_its_memory_is_out_of_memory(stack: Stack) -> None:
    source = "chunks = []\nwhile True: chunks.append(bytearray(b'x' * 8_000_000))"
    result = stack.run({"runtime": "python", "source": source})["result"]
    assert (result["outcome"], result["cause"]) == ("MEMORY_EXCEEDED", "LIMIT")


def test_a_timeout_of_the_call_answers_with_the_present_state(stack: Stack) -> None:
    response = stack.http.post(
        "/v1/evaluations:run?timeout=0.5s", json={"runtime": "bash", "source": "sleep 3; echo done"}
    )
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    evaluation = response.json()
    assert evaluation["status"] in {"QUEUED", "DISPATCHED", "RUNNING"}
    final = stack.wait(evaluation["id"])
    assert final["result"]["stdout"]["text"] == "done\n"


def test_cancel_stops_a_running_program(stack: Stack) -> None:
    created = stack.create({"runtime": "bash", "source": "echo begun; sleep 100", "limits": {"wallTime": "120s"}})
    stack.wait_for_status(created["id"], "RUNNING")
    cancelled = stack.http.post(f"/v1/evaluations/{created['id']}:cancel").json()
    assert (cancelled["status"], cancelled["cause"]) == ("CANCELLED", "USER")
    stack.require_no_leftovers(timeout=90)  # long before the program's own end
    again = stack.http.post(f"/v1/evaluations/{created['id']}:cancel")
    assert again.status_code == 200
