"""A real process under test: started, watched, killed, its output in a file."""

import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

START_TIMEOUT = 60.0
STOP_TIMEOUT = 20.0
TAIL_BYTES = 8192


class ChildError(RuntimeError):
    """A process did not start or stop as it should; the message ends with the last it wrote."""


class Child:
    """One process; its output is appended to `log`. Start it from the main thread (see crucible_local.confinement)."""

    def __init__(self, command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None) -> None:
        self.command = list(command)
        self.log = log
        self.env = env
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id. Raises ChildError when it was never started."""
        if self._process is None:
            raise ChildError(f"{self.command[0]} was not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Its exit code, negative for a signal, None while it runs or before it was started."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Starts it and returns at once."""
        if self.running:
            raise ChildError(f"{self.command[0]} runs already")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command, env=self.env, cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,  # Ctrl-C goes to pytest alone, which stops its servers in order
            )  # fmt: skip

    def wait_until(self, ready: Callable[[], bool], *, timeout: float = START_TIMEOUT) -> None:
        """Blocks until `ready`. Raises ChildError when the process ends or the time is over before."""
        deadline = time.monotonic() + timeout
        while not ready():
            if not self.running:
                raise ChildError(f"{self.command} ended with {self.exit_code}\n{self.tail()}")
            if time.monotonic() > deadline:
                raise ChildError(f"{self.command} was not ready within {timeout} s\n{self.tail()}")
            time.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        """Sends a signal; nothing when it has ended."""
        if self._process is not None:
            self._process.send_signal(number)

    def wait(self, timeout: float = STOP_TIMEOUT) -> int:
        """Blocks until it ends and gives its exit code. Raises ChildError."""
        if self._process is None:
            raise ChildError(f"{self.command[0]} was not started")
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ChildError(f"{self.command} did not end within {timeout} s\n{self.tail()}") from None

    def kill(self) -> None:
        """SIGKILL, and waits until it is gone. Nothing when it has ended."""
        if self.running:
            self.send(signal.SIGKILL)
            self.wait()

    def stop(self, number: signal.Signals = signal.SIGTERM, *, timeout: float = STOP_TIMEOUT) -> int | None:
        """Asks it to end by that signal, kills it when it does not, and gives its exit code."""
        if self.running:
            self.send(number)
            try:
                return self.wait(timeout)
            except ChildError:
                self.kill()
                raise
        return self.exit_code

    def tail(self) -> str:
        """The last it wrote."""
        if not self.log.exists():
            return ""
        return self.log.read_bytes()[-TAIL_BYTES:].decode(errors="replace")


def children_of(pid: int) -> list[int]:
    """The processes that `pid` started and that it has not reaped; none where it is gone."""
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text(encoding="ascii").split()]
    except OSError:
        return []
