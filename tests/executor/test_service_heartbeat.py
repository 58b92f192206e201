"""When an executor's heart beats."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import nats.aio.msg
import pytest

from crucible.internal.v1 import heartbeat_pb2
from crucible.v1 import executor_pb2
from crucible_chassis.messaging import connect_messaging
from crucible_contracts import subjects
from crucible_executor import heartbeat
from crucible_executor.heartbeat import Heart
from crucible_testkit import NatsServer


class NoRuns:
    """An executor that holds nothing."""

    def held(self) -> Sequence[heartbeat_pb2.HeldRun]:
        return ()

    def confirm(self, run_id: str, stored: int, asked_at: float) -> None:
        raise AssertionError

    def abandon(self, run_id: str, reason: str) -> None:
        raise AssertionError

    def abandon_token(self, token: str) -> None:
        raise AssertionError


async def test_pulls_in_quick_succession_share_a_heartbeat(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "PACE_SECONDS", 0.5)  # whatever else the machine does meanwhile
    beats: list[float] = []
    came = asyncio.Event()
    loop = asyncio.get_running_loop()

    async with connect_messaging(nats_server.url, name="test") as messaging:

        async def answer(message: nats.aio.msg.Msg) -> None:
            beats.append(loop.time())
            came.set()
            await message.respond(heartbeat_pb2.HeartbeatReply().SerializeToString())

        subscription = await messaging.subscribe(subjects.HEARTBEAT, answer)
        me = executor_pb2.ExecutorReference(id="an-executor", host="here")
        heart = Heart(messaging, heartbeat_pb2.ExecutorAnnouncement(executor=me))
        beating = asyncio.create_task(heart.run(NoRuns()), name="heart")
        try:
            async with asyncio.timeout(10):
                await came.wait()
                while not heart.answered:  # noqa: ASYNC110  it sets no event
                    await asyncio.sleep(0.01)
                came.clear()
                first_news = loop.time()
                for _ in range(3):
                    heart.beat_soon()
                    await asyncio.sleep(0.05)
                await came.wait()
            assert beats[1] - first_news >= 0.4
            await asyncio.sleep(0.7)
            assert len(beats) == 2
        finally:
            beating.cancel()
            await subscription.unsubscribe()
