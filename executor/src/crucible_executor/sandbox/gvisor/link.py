"""The service's end of the line to its launcher: questions with answers, orders without, and what it tells unasked."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from crucible_executor.sandbox.launcher import wire
from crucible_executor.sandbox.launcher.process import LauncherProcess
from crucible_executor.sandbox.port import Cause, SandboxFault

LEAVE_TIMEOUT: Final = 40.0
"""Seconds for a launcher to remove every sandbox and end: more than it takes for itself."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; whoever takes the descriptors closes them."""

    fields: Mapping[str, Any]
    descriptors: list[int]


class LauncherLostError(SandboxFault):
    """The launcher is gone, and every sandbox with it."""

    def __init__(self) -> None:
        super().__init__(Cause.INFRASTRUCTURE, "the launcher of sandboxes is gone, and all sandboxes with it")


class Link:
    """Open it in the event loop that uses it."""

    def __init__(self, launcher: LauncherProcess) -> None:
        self.pid = launcher.process.pid
        self._process = launcher.process
        self._socket = launcher.socket
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._unsent: deque[bytes] = deque()
        self._on_ended: dict[str, Callable[[int], None]] = {}
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._lost = asyncio.Event()
        self._exited = asyncio.Event()
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._receive)
        self._pidfd = os.pidfd_open(self.pid)
        self._loop.add_reader(self._pidfd, self._reap)

    async def opened(self) -> None:
        """Wait until the launcher has its ground; raises SandboxFault(INFRASTRUCTURE) when it has none."""
        await self._opened

    def on_ended(self, identity: str, call: Callable[[int], None]) -> None:
        """Call with the return code of a sandbox's supervisor when that is gone."""
        self._on_ended[identity] = call

    def forget(self, identity: str) -> None:
        """Nobody asks for that sandbox any more."""
        self._on_ended.pop(identity, None)

    async def ask(self, request: str, identity: str, **fields: object) -> Answer:
        """Send a request and wait for its answer; raises SandboxFault, LauncherLostError among them."""
        if self._lost.is_set():
            raise LauncherLostError
        number = next(self._numbers)
        future = self._waiting[number] = self._loop.create_future()
        self._send({"op": request, "id": identity, "n": number, **fields})
        try:
            answer = await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                _close_all(future.result().descriptors)
            raise
        wire.raise_fault(answer.fields)
        return answer

    def tell(self, order: str, identity: str, **fields: object) -> None:
        """Send an order; a launcher that is gone is no error."""
        self._send({"op": order, "id": identity, **fields})

    async def lost(self) -> None:
        """Wait until the launcher is gone, then raise LauncherLostError."""
        await self._lost.wait()
        raise LauncherLostError

    async def close(self) -> None:
        """Hang up and wait until the launcher has removed everything and ended; raises SandboxFault when it has not.

        That it was lost, or refused to begin, is not said a second time.
        """
        told = self._lost.is_set() or (self._opened.done() and self._opened.exception() is not None)
        self._hang_up()
        try:
            await asyncio.wait_for(self._exited.wait(), LEAVE_TIMEOUT)
        except TimeoutError as error:
            raise SandboxFault(Cause.INFRASTRUCTURE, f"the launcher, process {self.pid}, does not end") from error
        if self._process.returncode != 0 and not told:
            raise SandboxFault(Cause.INFRASTRUCTURE, f"the launcher ended with {self._process.returncode}")

    def _send(self, packet: Mapping[str, object]) -> None:
        if self._lost.is_set():
            return
        self._unsent.append(wire.pack(packet))
        if len(self._unsent) == 1:
            self._flush()

    def _flush(self) -> None:
        try:
            while self._unsent:
                self._socket.send(self._unsent[0])
                self._unsent.popleft()
        except BlockingIOError:
            self._loop.add_writer(self._socket, self._flush)
            return
        except OSError:
            self._hang_up()
            return
        self._loop.remove_writer(self._socket)

    def _receive(self) -> None:
        while not self._lost.is_set():
            try:
                data, descriptors, flags, _ = socket.recv_fds(
                    self._socket, wire.ANSWER_BYTES, len(wire.DESCRIPTORS), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError:
                data, descriptors, flags = b"", [], 0
            if not data or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                _close_all(descriptors)
                self._hang_up()
                return
            self._take(wire.unpack(data), descriptors)

    def _take(self, packet: dict[str, Any], descriptors: list[int]) -> None:
        event = packet.get("event")
        if event == "ended":
            if (call := self._on_ended.get(packet["id"])) is not None:
                call(packet["code"])
        elif event == "opened":
            self._opened.set_result(None)
        elif event == "refused":
            self._refuse(SandboxFault(Cause.INFRASTRUCTURE, packet["detail"]))
        else:
            future = self._waiting.pop(packet["n"])
            if future.done():  # who asked was cancelled
                _close_all(descriptors)
            else:
                future.set_result(Answer(packet, descriptors))

    def _hang_up(self) -> None:
        if self._lost.is_set():
            return
        self._lost.set()
        self._loop.remove_writer(self._socket)
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._refuse(LauncherLostError())
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(LauncherLostError())
        self._waiting.clear()

    def _refuse(self, fault: SandboxFault) -> None:
        if not self._opened.done():
            self._opened.set_exception(fault)
            self._opened.exception()  # it may be that nobody waits

    def _reap(self) -> None:
        if self._process.poll() is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._exited.set()


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
