"""Supervised tasks: named, ended in reverse, and never dead in silence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from crucible_chassis.logs import get_logger

T = TypeVar("T")

log = get_logger(__name__)


class TaskSupervisor:
    """Owns the side tasks of a process: an async context manager, and `on_death` is told when one dies.

    A task that must live (`spawn`) dies by ending in any way, a job (`spawn_job`) by raising. A death is logged as one
    line, `task.died`, and reported once a task. On exit the tasks are cancelled and awaited one by one, last first.
    """

    def __init__(self, on_death: Callable[[str], None]) -> None:
        self._on_death = on_death
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._closing = False

    def spawn(self, name: str, coro: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Starts a task that must live as long as the process."""
        return self._start(name, coro, self._ended)

    def spawn_job(self, name: str, coro: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Starts a finite task: it may return, and its owner may cancel it; an exception is a death."""
        return self._start(name, coro, self._job_ended)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing = True
        while self._tasks:
            task, _ = self._tasks.popitem()
            task.cancel()
            # `wait`, not `await task`: our own cancellation must stay distinguishable from the task's.
            await asyncio.wait({task})
            if not task.cancelled() and (error := task.exception()) is not None:
                log.warning("task.failed_while_stopping", task=task.get_name(), exc_info=error)

    def _start(
        self, name: str, coro: Coroutine[Any, Any, T], ended: Callable[[asyncio.Task[T]], None]
    ) -> asyncio.Task[T]:
        if self._closing:
            coro.close()
            msg = f"task {name!r} was spawned while its supervisor is closing"
            raise RuntimeError(msg)
        task = asyncio.create_task(coro, name=name)
        self._tasks[task] = None
        task.add_done_callback(ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if self._closing:
            return
        self._tasks.pop(task, None)
        if task.cancelled():
            log.critical("task.died", task=task.get_name(), error="cancelled")
        elif (error := task.exception()) is not None:
            log.critical("task.died", task=task.get_name(), error=_brief(error), exc_info=error)
        else:
            log.critical("task.died", task=task.get_name(), error="returned")
        self._on_death(task.get_name())

    def _job_ended(self, task: asyncio.Task[Any]) -> None:
        if self._closing:
            return
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("task.died", task=task.get_name(), error=_brief(error), exc_info=error)
            self._on_death(task.get_name())


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
