"""The small parts of a sandbox by themselves: exit events, clean-up, the quoting of words."""

from __future__ import annotations

import asyncio
import struct
import subprocess

import pytest

from crucible_executor.sandbox.cleanup import Cleanup
from crucible_executor.sandbox.gvisor.bundle import quote
from crucible_executor.sandbox.gvisor.exit_events import InitThreads

CLONE, TASK_EXIT = 2, 5


def packet(kind: int, message: bytes, dropped: int = 0) -> bytes:
    return struct.pack("<HHI", 8, kind, dropped) + message


def exit_of(group: int, status: bytes = b"") -> bytes:
    return packet(TASK_EXIT, b"\x0a\x02\x20" + bytes([group]) + (b"\x10" + status if status else b""))


def clone_into(group: int) -> bytes:
    # As the sentry of 2024-07 sends it: created thread, created group, start time, flags.
    return packet(
        CLONE, b"\x18\x07\x20" + bytes([group]) + b"\x28\xb4\xe6\xd8\x8d\xae\x9c\xfd\xf4\x18\x30\x80\x9e\xf4\x01"
    )


def test_the_exit_of_the_only_thread() -> None:
    assert InitThreads().take(exit_of(1)) == 0
    assert InitThreads().take(exit_of(1, b"\x80\x0a")) == 5 << 8
    assert InitThreads().take(exit_of(1, b"\x0b")) == 11


def test_only_the_last_thread_of_the_first_process_counts() -> None:
    threads = InitThreads()
    told = [
        threads.take(each) for each in (clone_into(1), clone_into(2), exit_of(1), exit_of(2, b"\x09"), clone_into(1))
    ]
    assert told == [None] * 5
    assert threads.take(exit_of(1)) is None
    assert threads.take(exit_of(1, b"\x80\x0e")) == 7 << 8


def test_after_a_dropped_point_no_status_is_told() -> None:
    assert InitThreads().take(packet(TASK_EXIT, b"\x0a\x02\x20\x01", dropped=1)) is None


@pytest.mark.parametrize("word", ["", "plain", "a b", "'", "''\"$`\\", "$(id)", "\n", "-n", "ü", "a=b;c", "*", "~"])
def test_a_quoted_word_is_that_word_for_the_shell(word: str) -> None:
    script = f"printf %s {quote(word)}"
    assert subprocess.run(["/bin/sh", "-c", script], capture_output=True, check=True).stdout.decode() == word


async def test_cleaning_up_goes_backwards_to_its_end_and_tells_every_error() -> None:
    done: list[str] = []
    cleanup = Cleanup("test")

    async def slow() -> None:
        await asyncio.sleep(0.01)
        done.append("slow")

    def broken() -> None:
        done.append("broken")
        raise OSError("no")

    cleanup.push("first", lambda: done.append("first"))
    cleanup.push("broken", broken)
    cleanup.push("slow", slow)
    cleanup.push("broken too", broken)
    with pytest.raises(ExceptionGroup) as caught:
        await cleanup.run()
    assert done == ["broken", "slow", "broken", "first"]
    assert len(caught.value.exceptions) == 2
    with pytest.raises(ExceptionGroup):
        await cleanup.run()
    assert len(done) == 4


async def test_cleaning_up_ends_although_the_caller_is_cancelled() -> None:
    ended = asyncio.Event()
    cleanup = Cleanup("test")

    async def slow() -> None:
        await asyncio.sleep(0.05)
        ended.set()

    cleanup.push("slow", slow)
    task = asyncio.create_task(cleanup.run(), name="close")
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(ended.wait(), 5)
    await cleanup.run()
