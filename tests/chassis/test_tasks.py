"""Supervised tasks: nothing dies in silence, nothing is left behind."""

import asyncio
from typing import Any

import pytest

from crucible_chassis.tasks import TaskSupervisor


async def test_tasks_are_cancelled_last_first_and_awaited(structured_logs: list[dict[str, Any]]) -> None:
    ended: list[str] = []
    died: list[str] = []

    async def live(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.02)
            ended.append(name)

    async with TaskSupervisor(died.append) as tasks:
        for name in ("first", "second"):
            task = tasks.spawn(name, live(name))
            assert task.get_name() == name
        tasks.spawn_job("third", live("third"))
        await asyncio.sleep(0)
    assert ended == ["third", "second", "first"]
    assert died == []
    assert structured_logs == []


async def test_a_failure_while_stopping_is_reported_and_stops_nothing(structured_logs: list[dict[str, Any]]) -> None:
    ended: list[str] = []

    async def clumsy() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("clumsy")
            raise RuntimeError("while leaving")

    died: list[str] = []
    async with TaskSupervisor(died.append) as tasks:
        tasks.spawn("first", clumsy())
        tasks.spawn("second", clumsy())
        await asyncio.sleep(0)
    assert ended == ["clumsy", "clumsy"]
    assert died == []
    assert [line["event"] for line in structured_logs] == ["task.failed_while_stopping"] * 2


async def test_a_job_is_awaited_for_its_result_and_may_be_cancelled() -> None:
    died: list[str] = []

    async def compute() -> int:
        return 17

    async with TaskSupervisor(died.append) as tasks:
        assert await tasks.spawn_job("compute", compute()) == 17
        job = tasks.spawn_job("cancelled", asyncio.sleep(60))
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        await asyncio.sleep(0)
    assert died == []


async def test_a_living_task_that_is_cancelled_by_others_is_a_death(structured_logs: list[dict[str, Any]]) -> None:
    died: list[str] = []
    async with TaskSupervisor(died.append) as tasks:
        tasks.spawn("victim", asyncio.sleep(60)).cancel()
        await asyncio.sleep(0.01)
    assert died == ["victim"]
    assert [(line["event"], line["error"]) for line in structured_logs] == [("task.died", "cancelled")]


async def test_the_cancellation_of_the_owner_is_not_swallowed() -> None:
    ended: list[str] = []

    async def slow_to_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.2)
            ended.append("task")

    async def own() -> None:
        async with TaskSupervisor(lambda _: None) as tasks:
            tasks.spawn("slow", slow_to_end())
            await asyncio.sleep(0)

    owner = asyncio.ensure_future(own())
    await asyncio.sleep(0.05)  # in its exit by now
    owner.cancel()
    with pytest.raises(asyncio.CancelledError):
        await owner
    await asyncio.sleep(0.3)
    assert ended == ["task"]


async def test_nothing_is_spawned_while_closing() -> None:
    tasks = TaskSupervisor(lambda _: None)
    async with tasks:
        pass
    with pytest.raises(RuntimeError, match="closing"):
        tasks.spawn("late", asyncio.sleep(0))
