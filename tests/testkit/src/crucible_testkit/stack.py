"""The whole stack as users start it, for end-to-end tests."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import httpx

from crucible_local.layout import Layout
from crucible_local.state import ProcessState, StackState
from crucible_testkit.child import children_of
from crucible_testkit.freezing import frozen_group
from crucible_testkit.scratch import scratch_folder

IMAGES = Path("/var/lib/crucible/images")
START_SECONDS = 400
ID_LENGTH = 32
"""Of a sandbox's id, which names its folder."""
FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED"})

Json = dict[str, Any]


SHARED_IMAGES = {"CRUCIBLE_RUNTIMES_DIR": str(IMAGES)}
"""For the environment of a stack: it has the images that this machine has, which spares it the building of its own."""


class Stack:
    """`crucible up` on free ports with a data folder of its own, `crucible down` at the end; a context manager."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._extra = dict(environment or {})
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._folder = stack.enter_context(scratch_folder())
            self.layout = Layout(self._folder / "data")
            # Before the start: an interrupted start leaves something to stop, too.
            stack.callback(self._command, "down", timeout=60)
            self._command("up", "--port-base", "0", timeout=START_SECONDS)
            self.http = stack.enter_context(httpx.Client(base_url=self.state.addresses["gateway"], timeout=100))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def state(self) -> StackState:
        """The stack as its supervisor last saw it."""
        state = StackState.read(self.layout.state)
        assert state is not None, "the stack has a state while it runs"
        return state

    @property
    def address(self) -> str:
        """The gateway's `host:port`."""
        return self.state.addresses["gateway"].removeprefix("http://")

    @property
    def environment(self) -> dict[str, str]:
        """For programs that use this stack: the client's addresses, and the `crucible` command on PATH."""
        scripts = str(Path(sys.executable).parent)
        return {
            **os.environ,
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "CRUCIBLE_SCHEDULER_URL": self.state.addresses["scheduler"],
            "CRUCIBLE_STORE_URL": self.state.addresses["store"],
        }

    # -- calls ----------------------------------------------------------------------------------------------------

    def run(self, evaluation: Json) -> Json:
        """Runs to the end over REST."""
        response = self.http.post("/v1/evaluations:run?timeout=90s", json=evaluation)
        assert response.status_code == 200, response.text
        return response.json()

    def create(self, evaluation: Json) -> Json:
        """Submits over REST."""
        response = self.http.post("/v1/evaluations", json=evaluation)
        assert response.status_code == 200, response.text
        return response.json()

    def patiently(self, method: str, path: str, *, body: Json | None = None, timeout: float = 60) -> Json:
        """The answer to a call that is safe to repeat, through whatever dies meanwhile. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        seen: object = None
        while time.monotonic() < deadline:
            try:
                response = self.http.request(method, path, json=body)
                if response.status_code == 200:
                    return response.json()
                seen = response.text
                assert response.status_code in {503, 504}, seen
            except httpx.TransportError as error:
                seen = error
            time.sleep(0.1)
        raise TimeoutError(f"{method} {path} was not answered within {timeout} s: {seen}")

    def wait(self, evaluation_id: str, *, timeout: float = 90) -> Json:
        """Waits for a final state, through whatever dies meanwhile. Raises TimeoutError with the last that was seen."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            evaluation = self.patiently("GET", f"/v1/evaluations/{evaluation_id}:wait?timeout=20s", timeout=left)
            if evaluation["status"] in FINAL:
                return evaluation
        raise TimeoutError(f"{evaluation_id} is not final after {timeout} s")

    def wait_for_status(self, evaluation_id: str, status: str, *, timeout: float = 30) -> None:
        """Polls until the evaluation has this status."""
        deadline = time.monotonic() + timeout
        while (now := self.http.get(f"/v1/evaluations/{evaluation_id}").json()["status"]) != status:
            if time.monotonic() > deadline or now in FINAL:
                raise TimeoutError(f"{evaluation_id} is {now}, not {status}")
            time.sleep(0.05)

    def watch(self, evaluation_id: str, *, last_event_id: int = 0) -> Iterator[tuple[int, str, str]]:
        """(number, kind, text of an output) of each event, over SSE."""
        headers = {"accept": "text/event-stream"} | ({"last-event-id": str(last_event_id)} if last_event_id else {})
        path = f"/v1/evaluations/{evaluation_id}/events:watch"
        with self.http.stream("GET", path, headers=headers) as response:
            assert response.status_code == 200
            fields: dict[str, str] = {}
            for line in response.iter_lines():
                if line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                elif "event" in fields:
                    data = json.loads(fields["data"])
                    yield int(fields["id"]), fields["event"], data.get("output", {}).get("text", "")
                    fields = {}

    def events(self, evaluation_id: str) -> list[Json]:
        """All events of an evaluation."""
        found: list[Json] = []
        while True:
            after = found[-1]["sequence"] if found else 0
            page = self.patiently("GET", f"/v1/evaluations/{evaluation_id}/events?after_sequence={after}")
            found += page["events"]
            if not page["more"]:
                return found

    def count(self) -> int:
        """Evaluations stored, up to 1,000."""
        return len(self.http.get("/v1/evaluations?page_size=1000").json()["evaluations"])

    # -- processes ------------------------------------------------------------------------------------------------

    def process(self, name: str) -> ProcessState:
        """One process of the stack."""
        return next(process for process in self.state.processes if process.name == name)

    def pid(self, name: str) -> int:
        """Its process id."""
        identity = self.process(name).identity
        assert identity is not None, f"{name} runs"
        return identity.pid

    def kill(self, name: str) -> None:
        """SIGKILL, as a crash would."""
        os.kill(self.pid(name), signal.SIGKILL)

    def terminate(self, name: str) -> None:
        """SIGTERM, as an operator's restart would."""
        os.kill(self.pid(name), signal.SIGTERM)

    @contextmanager
    def stuttering(self, name: str, *, seconds: float, every: float) -> Generator[None]:
        """Until the end of the block the process stands still for so long, again and again, as on a machine held up."""
        over = threading.Event()

        def stutter() -> None:
            while not over.wait(every):
                pid = self.pid(name)
                os.kill(pid, signal.SIGSTOP)
                try:
                    over.wait(seconds)
                finally:
                    os.kill(pid, signal.SIGCONT)

        stuttering = threading.Thread(target=stutter, name=f"stutter-{name}")
        stuttering.start()
        try:
            yield
        finally:
            over.set()
            stuttering.join()

    def resident_bytes(self, name: str) -> int:
        """Resident memory of one process."""
        status = Path(f"/proc/{self.pid(name)}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))

    def wait_until_ready(self, *, timeout: float = 60) -> None:
        """Blocks until every process is ready again."""
        deadline = time.monotonic() + timeout
        while True:
            unready = [p.name for p in self.state.processes if p.kind == "daemon" and p.condition != "ready"]
            if not unready and self._gateway_ready():
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"not ready after {timeout} s: {unready}")
            time.sleep(0.1)

    def _gateway_ready(self) -> bool:
        try:
            return self.http.get("/readyz", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    # -- what must not be left ------------------------------------------------------------------------------------

    def require_no_leftovers(self, *, timeout: float = 90) -> None:
        """Raises AssertionError when after `timeout` a sandbox runs, or files of one are left that is gone.

        Those that wait for a program are frozen, and are meant to be there; one that boots ahead gives way to all else
        on the machine, and may take long.
        """
        deadline = time.monotonic() + timeout
        while found := self._leftovers():
            assert time.monotonic() < deadline, f"left on the machine: {found}"
            time.sleep(0.1)

    def _leftovers(self) -> list[str]:
        executor = self.process("executor").identity
        if executor is None:
            return ["the executor is not back yet"]
        known: set[Path] = set()
        found: list[str] = []
        for supervisor in (pid for launcher in children_of(executor.pid) for pid in children_of(launcher)):
            root = re.search(rb"--root=(.+?)/root\0", _command_line(supervisor))
            if root is None:
                continue
            known.add(Path(os.fsdecode(root[1])))
            frozen = [frozen_group(sandbox) is not None for sandbox in children_of(supervisor)]
            if frozen != [True]:
                found.append(f"sandbox {os.fsdecode(root[1])}")
        folders = {entry for folder in {path.parent for path in known} for entry in folder.iterdir() if entry.is_dir()}
        return [*found, *(f"files in {folder}" for folder in folders - known if len(folder.name) == ID_LENGTH)]

    def _command(self, *arguments: str, timeout: float) -> None:
        command = [
            sys.executable,
            "-m",
            "crucible_client.cli",
            arguments[0],
            "--data",
            str(self.layout.data),
            *arguments[1:],
        ]
        done = subprocess.run(
            command,
            env={**os.environ, **SHARED_IMAGES, **self._extra},
            timeout=timeout,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
