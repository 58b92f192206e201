"""The whole stack as users start and stop it: real services, real sandboxes, and nothing left behind."""

import json
import os
import pwd
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import httpx
import pytest

from crucible_local.kernel import ProcessIdentity
from crucible_local.layout import Layout, is_held
from crucible_local.options import service_user
from crucible_local.ports import free_port
from crucible_local.state import StackState
from crucible_testkit import children_of, scratch_folder
from crucible_testkit.stack import IMAGES, SHARED_IMAGES, Stack

pytestmark = pytest.mark.timeout(600)  # the first start of a machine builds images

SERVICE_BYTES = 120 * 1024 * 1024
UNPRIVILEGED = ("nats", "postgres", "store", "scheduler", "gateway")


@pytest.fixture(scope="module")
def stack() -> Generator[Stack]:
    with Stack() as running:
        yield running


@pytest.fixture
def layout() -> Generator[Layout]:
    """A stack that was never started."""
    with scratch_folder() as folder:
        layout = Layout(folder / "data")
        yield layout
        crucible("down", "--purge", layout=layout)


def command(*arguments: str, layout: Layout) -> list[str]:
    return [sys.executable, "-m", "crucible_client.cli", arguments[0], "--data", str(layout.data), *arguments[1:]]


def crucible(*arguments: str, layout: Layout, config: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CRUCIBLE_")} | SHARED_IMAGES
    if config is not None:
        environment["XDG_CONFIG_HOME"] = str(config)
    return subprocess.run(
        command(*arguments, layout=layout), capture_output=True, text=True, timeout=400, check=False, env=environment
    )


def until(condition: Callable[[], bool], timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def processes_of(layout: Layout) -> list[str]:
    """Every process that has the stack's folders in its command line or its environment."""
    traces = (str(layout.data).encode(), str(layout.runtime).encode())
    found: list[str] = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            known = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if int(entry.name) != os.getpid() and any(trace in known for trace in traces):
            found.append(known.replace(b"\0", b" ")[:200].decode(errors="replace"))
    return found


def require_nothing_left(layout: Layout) -> None:
    assert processes_of(layout) == []
    assert str(layout.data) not in Path("/proc/self/mountinfo").read_text()
    assert not layout.runtime.exists()
    assert not is_held(layout.lock)


def hello(address: str) -> dict[str, Any]:
    """Runs a program; the final evaluation."""
    answer = httpx.post(
        f"{address}/v1/evaluations:run?timeout=60s", json={"runtime": "python", "source": "print('hello')"}, timeout=90
    )
    assert answer.status_code == 200, answer.text
    evaluation = answer.json()
    assert evaluation["result"]["stdout"]["text"] == "hello\n"
    return evaluation


def test_a_program_runs_and_every_process_can_be_seen(stack: Stack) -> None:
    assert hello(stack.state.addresses["gateway"])
    status = json.loads(crucible("status", "--json", layout=stack.layout).stdout)
    assert status["phase"] == "ready"
    assert {process["name"]: process["state"] for process in status["processes"]} == dict.fromkeys(
        (*UNPRIVILEGED, "executor"), "ready"
    )
    for process in status["processes"]:
        assert process["pid"]
        assert process["address"]
        assert Path(process["log"]).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to give up")
def test_each_idle_service_is_small(stack: Stack) -> None:
    sizes = {name: stack.resident_bytes(name) for name in ("gateway", "scheduler", "executor", "store")}
    assert all(size < SERVICE_BYTES for size in sizes.values()), sizes


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_only_the_executors_launcher_has_privileges(stack: Stack) -> None:
    shown = json.loads(crucible("status", "--json", layout=stack.layout).stdout)["processes"]
    users = {process["name"]: process["user"] for process in shown}
    user = service_user(os.environ)
    for name in (*UNPRIVILEGED, "executor"):
        fields = status_of(stack.pid(name))
        assert (name, int(fields["CapEff"], 16), int(fields["CapBnd"], 16)) == (name, 0, 0)
        assert (name, fields["NoNewPrivs"]) == (name, "1")
        assert users[name] == pwd.getpwuid(int(fields["Uid"].split()[1])).pw_name
        if name != "postgres":
            assert (name, users[name]) == (name, user.name if user else "root")
    assert users["postgres"] != "root"
    (launcher,) = children_of(stack.pid("executor"))
    fields = status_of(launcher)
    assert set(fields["Uid"].split()) == {"0"}
    assert fields["NoNewPrivs"] == "1"
    assert int(fields["CapBnd"], 16) == int(fields["CapEff"], 16)
    assert 0 < int(fields["CapEff"], 16).bit_count() <= 4


def test_folders_are_open_to_those_who_need_them(stack: Stack) -> None:
    user = service_user(os.environ)
    services = user.uid if user else 0
    modes = {
        folder: (entry.st_uid, stat.S_IMODE(entry.st_mode))
        for folder in (stack.layout.objects, stack.layout.streams, IMAGES)
        for entry in (folder.stat(),)
    }
    assert modes == {
        stack.layout.objects: (services, 0o2770),
        stack.layout.streams: (services, 0o700),
        IMAGES: (0, 0o755),  # a launcher takes no image that another could have written
    }


def test_up_again_finds_the_stack_that_runs(stack: Stack) -> None:
    before = stack.state.supervisor
    again = crucible("up", "--port-base", "0", layout=stack.layout)
    assert again.returncode == 0, again.stderr
    assert "is already running" in again.stderr
    assert f"CRUCIBLE_STORE_URL={stack.state.addresses['store']}" in again.stderr, "how other commands find it"
    assert stack.state.supervisor == before


def test_a_killed_service_is_started_again(stack: Stack) -> None:
    for name in ("scheduler", "nats"):
        pid, restarts = stack.pid(name), stack.process(name).restarts
        stack.kill(name)
        until(lambda name=name, before=restarts: stack.process(name).restarts > before)
        stack.wait_until_ready()
        assert stack.pid(name) != pid
    assert hello(stack.state.addresses["gateway"])


def test_a_taken_port_is_named_before_anything_starts(stack: Stack, layout: Layout) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        port = taken.getsockname()[1]
        answer = crucible("up", "--port-base", str(port - 2), layout=layout)
    assert answer.returncode == 2
    assert f"port {port} on 127.0.0.1, for the store, is already in use" in answer.stderr
    assert "--port-base" in answer.stderr
    assert "CRUCIBLE_PORT_BASE" in answer.stderr
    assert StackState.read(layout.state) is None
    assert not layout.data.exists(), "nothing was made"
    gateway = stack.state.addresses["gateway"].rpartition(":")[2]
    answer = crucible("up", "--port-base", "0", "--port", gateway, layout=layout)
    assert f"port {gateway} on 127.0.0.1, for the gateway, is already in use; choose another" in answer.stderr
    require_nothing_left(layout)


def test_a_second_stack_lives_dies_and_comes_back_beside_the_first(
    stack: Stack, layout: Layout, tmp_path: Path
) -> None:
    config = tmp_path / "crucible/client.toml"
    up = ("up", "--port-base", "0", "--json", "--write-config")
    started = crucible(*up, layout=layout, config=tmp_path)
    assert started.returncode == 0, started.stderr
    first = json.loads(started.stdout)
    evaluation = hello(first["addresses"]["gateway"])
    assert hello(stack.state.addresses["gateway"])
    assert f'store = "{first["addresses"]["store"]}"' in config.read_text()

    state = StackState.read(layout.state)
    assert state is not None
    left = [process.identity for process in state.processes if process.identity]
    state.supervisor.send(signal.SIGKILL)
    until(lambda: not is_held(layout.lock))
    assert crucible("status", layout=layout).returncode == 3

    again = crucible(*up, layout=layout, config=tmp_path)
    assert again.returncode == 0, again.stderr
    assert not any(identity.alive for identity in left), "a dead supervisor takes its processes along"
    gateway = json.loads(again.stdout)["addresses"]["gateway"]
    assert httpx.get(f"{gateway}/v1/evaluations/{evaluation['id']}").json()["status"] == "COMPLETED"

    stopped = crucible("down", layout=layout)
    assert stopped.returncode == 0, stopped.stderr
    require_nothing_left(layout)
    assert not config.exists()
    assert layout.database.is_dir(), "data outlive the stack"
    assert crucible("status", layout=layout).returncode == 3
    idle = crucible("down", layout=layout)
    assert (idle.returncode, idle.stdout) == (0, "no stack is running\n")
    purged = crucible("down", "--purge", "--json", layout=layout)
    assert purged.returncode == 0
    assert json.loads(purged.stdout) == {
        "phase": "stopped", "data": str(layout.data), "wasRunning": False, "removed": True
    }  # fmt: skip
    assert not layout.data.exists()
    assert hello(stack.state.addresses["gateway"])


@pytest.mark.parametrize("moment", ["postgres", "store"])
def test_ctrl_c_in_the_middle_of_a_start_leaves_nothing(layout: Layout, moment: str) -> None:
    up = command("up", "--port-base", "0", layout=layout)
    with subprocess.Popen(up, stderr=subprocess.PIPE, text=True, env=os.environ | SHARED_IMAGES) as start:
        until(lambda: _has_begun(layout, moment))
        start.send_signal(signal.SIGINT)
        _, errors = start.communicate(timeout=90)
    assert start.returncode == 130
    assert "interrupted by SIGINT; nothing is left running" in errors
    require_nothing_left(layout)


def _has_begun(layout: Layout, name: str) -> bool:
    state = StackState.read(layout.state)
    return state is not None and any(
        process.name == name and process.identity is not None for process in state.processes
    )


def test_purge_keeps_off_a_folder_that_is_no_stack(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    answer = crucible("down", "--purge", layout=Layout(tmp_path))
    assert answer.returncode == 2
    assert "nothing was removed" in answer.stderr
    answer = crucible("up", "--port-base", "0", layout=Layout(tmp_path))
    assert answer.returncode == 2
    assert "holds other files (thesis.txt)" in answer.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_process_is_known_beyond_its_pid() -> None:
    own = ProcessIdentity.of(os.getpid())
    assert own is not None
    assert own.alive
    assert not ProcessIdentity(own.pid, own.start_ticks - 1, own.boot_id).alive
