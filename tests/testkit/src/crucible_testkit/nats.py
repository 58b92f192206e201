"""A real nats-server with JetStream for tests."""

import signal
from contextlib import ExitStack
from typing import Self

from crucible_local.nats import Broker
from crucible_local.ports import free_port
from crucible_testkit.child import Child
from crucible_testkit.scratch import scratch_folder


class NatsServer:
    """A server on a free port of loopback; a context manager. Its port and its streams outlive `kill` and `restart`."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = stack.enter_context(scratch_folder())
            self._broker = Broker(free_port(), folder / "streams")
            self._child = Child(self._broker.command(), log=folder / "nats.log")
            stack.callback(self.stop)
            self.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """Its address for clients."""
        return self._broker.url

    @property
    def port(self) -> int:
        """Its TCP port."""
        return self._broker.port

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._child.running

    def start(self) -> None:
        """Starts it (again), on the same port and streams, and waits until it greets clients."""
        self._child.start()
        self._child.wait_until(self._broker.accepts_connections)

    def stop(self) -> None:
        """A clean stop."""
        self._child.stop()

    def kill(self) -> None:
        """SIGKILL: what was acknowledged is still there after `start`."""
        self._child.kill()

    def pause(self) -> None:
        """SIGSTOP: its connections stay open, and nothing goes through them until `resume`."""
        self._child.send(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._child.send(signal.SIGCONT)

    def restart(self) -> None:
        """A clean stop and a start."""
        self.stop()
        self.start()
