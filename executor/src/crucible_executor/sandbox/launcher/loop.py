"""The launcher's one thread: descriptors, timers, and jobs that wait by saying for how long.

A job is a generator: each number that it yields is the seconds until it goes on. Jobs and callbacks raise nothing.
"""

from __future__ import annotations

import heapq
import itertools
import selectors
import time
from collections.abc import Callable, Generator
from typing import Final

Job = Generator[float, None, None]


_FEW: Final = 64
"""So many timers are not worth a look at which of them were cancelled."""


class Timer:
    """A call to come, until it is cancelled."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call

    @property
    def cancelled(self) -> bool:
        """It will do nothing."""
        return self._call is None

    def cancel(self) -> None:
        """Not any more, and nothing that it would have used is held for it; idempotent."""
        self._call = None

    def fire(self) -> None:
        """Call now, unless cancelled."""
        if self._call is not None:
            self._call()


class Loop:
    """Runs until `stop`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._many = _FEW
        self._order = itertools.count()
        self._stopped = False

    def watch(self, descriptor: int, ready: Callable[[], None], *, events: int = selectors.EVENT_READ) -> None:
        """Call whenever the descriptor is ready; a second call for it replaces the first."""
        if descriptor in self._selector.get_map():
            self._selector.modify(descriptor, events, ready)
        else:
            self._selector.register(descriptor, events, ready)

    def forget(self, descriptor: int) -> None:
        """Watch it no more."""
        self._selector.unregister(descriptor)

    def later(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Call once, after so many seconds."""
        if len(self._timers) > self._many:  # most deadlines are cancelled long before their time
            self._timers = [entry for entry in self._timers if not entry[2].cancelled]
            heapq.heapify(self._timers)
            self._many = 2 * len(self._timers) + _FEW
        timer = Timer(call)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), timer))
        return timer

    def start(self, job: Job) -> None:
        """Begin a job at once; it goes on by itself."""
        try:
            seconds = next(job)
        except StopIteration:
            return
        self.later(seconds, lambda: self.start(job))

    def stop(self) -> None:
        """`run` returns after what is being done now."""
        self._stopped = True

    def run(self) -> None:
        """Serve until stopped."""
        while not self._stopped:
            for key, _ in self._selector.select(self._patience()):
                key.data()
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2].fire()
        self._selector.close()

    def _patience(self) -> float | None:
        while self._timers and self._timers[0][2].cancelled:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
