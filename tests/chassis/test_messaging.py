"""The connection to a real NATS: waiting for it, losing it, leaving it."""

import asyncio
from typing import Any

import pytest
from echo_service import eventually
from nats.aio.msg import Msg

from crucible_chassis import messaging as module
from crucible_chassis.messaging import connect_messaging
from crucible_testkit import NatsServer


async def test_a_lost_connection_comes_back_and_is_reported(
    fresh_nats: NatsServer, structured_logs: list[dict[str, Any]]
) -> None:
    async with connect_messaging(fresh_nats.url, name="test") as messaging:
        assert messaging.is_connected
        subscription = await messaging.subscribe("comes.back")
        await messaging.nc.flush()
        await asyncio.to_thread(fresh_nats.kill)
        await eventually(lambda: not messaging.is_connected)
        await asyncio.to_thread(fresh_nats.start)
        await eventually(lambda: messaging.is_connected)
        await messaging.publish("comes.back", b"again")
        assert (await subscription.next_msg(timeout=5)).data == b"again"
    events = [line["event"] for line in structured_logs if line["event"].startswith("nats.")]
    assert events[0] == "nats.connected"
    assert "nats.disconnected" in events
    assert "nats.reconnected" in events
    assert "nats.closed" not in events


async def test_it_waits_for_the_first_connection_and_says_so(
    fresh_nats: NatsServer, structured_logs: list[dict[str, Any]]
) -> None:
    await asyncio.to_thread(fresh_nats.stop)
    entered = asyncio.Event()

    async def connect() -> None:
        async with connect_messaging(fresh_nats.url, name="test") as messaging:
            assert messaging.is_connected
            entered.set()

    task = asyncio.ensure_future(connect())
    await eventually(lambda: any(line["event"] == "nats.waiting" for line in structured_logs))
    await asyncio.sleep(1)
    assert not entered.is_set()
    await asyncio.to_thread(fresh_nats.start)
    await task
    # The log names the state; it does not repeat it at every attempt.
    assert len([line for line in structured_logs if line["event"] == "nats.waiting"]) == 1


async def test_waiting_can_be_cancelled() -> None:
    async def connect() -> None:
        async with connect_messaging("nats://127.0.0.1:1", name="test"):
            pytest.fail("connected to nobody")

    task = asyncio.ensure_future(connect())
    await asyncio.sleep(0.5)
    task.cancel()
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_leaving_drains_what_is_being_handled(nats_server: NatsServer) -> None:
    handled: list[bytes] = []
    begun = asyncio.Event()

    async def slowly(message: Msg) -> None:
        begun.set()
        await asyncio.sleep(0.3)
        handled.append(message.data)

    async with connect_messaging(nats_server.url, name="test") as messaging:
        await messaging.subscribe("leaving.drain", slowly)
        await messaging.nc.flush()
        for number in range(3):
            await messaging.publish("leaving.drain", str(number).encode())
        await begun.wait()
    assert handled == [b"0", b"1", b"2"]


async def test_leaving_is_bounded_with_the_server_gone(fresh_nats: NatsServer) -> None:
    async with asyncio.timeout(module.DRAIN_SECONDS + 10):
        async with connect_messaging(fresh_nats.url, name="test") as messaging:
            await messaging.subscribe("gone")
            await asyncio.to_thread(fresh_nats.kill)
            await eventually(lambda: not messaging.is_connected)


async def test_dropped_messages_are_an_event(nats_server: NatsServer, structured_logs: list[dict[str, Any]]) -> None:
    async with connect_messaging(nats_server.url, name="test") as messaging:
        never = asyncio.Event()

        async def hold(message: Msg) -> None:
            await never.wait()

        await messaging.subscribe("dropped", hold, pending_messages=1)
        for _ in range(10):
            await messaging.publish("dropped", b"x")
        await messaging.nc.flush()
        await eventually(lambda: any(line["event"] == "nats.messages_dropped" for line in structured_logs))
        never.set()


async def test_a_handler_that_raises_is_an_event_and_goes_on(
    nats_server: NatsServer, structured_logs: list[dict[str, Any]]
) -> None:
    seen: list[bytes] = []

    async def fail_once(message: Msg) -> None:
        seen.append(message.data)
        if message.data == b"bad":
            raise RuntimeError("handler broke")

    async with connect_messaging(nats_server.url, name="test") as messaging:
        await messaging.subscribe("handler.raises", fail_once, queue="some")
        for data in (b"bad", b"good"):
            await messaging.publish("handler.raises", data)
        await messaging.nc.flush()
        await eventually(lambda: seen == [b"bad", b"good"])
    [line] = [line for line in structured_logs if line["event"] == "nats.error"]
    assert "handler broke" in line["error"]


async def test_who_waits_for_a_confirmation_may_leave_at_any_moment(fresh_nats: NatsServer) -> None:
    async with connect_messaging(fresh_nats.url, name="test") as messaging:
        subscription = await messaging.subscribe("still.heard")
        for steps in range(20):
            waiting = asyncio.ensure_future(messaging.confirm())
            for _ in range(steps):
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
        await messaging.confirm()
        await messaging.publish("still.heard", b"heard")
        assert (await subscription.next_msg(timeout=5)).data == b"heard"


async def test_a_confirmed_subscription_is_known_to_the_server(fresh_nats: NatsServer) -> None:
    async with (
        connect_messaging(fresh_nats.url, name="listener") as listener,
        connect_messaging(fresh_nats.url, name="speaker") as speaker,
    ):
        for number in range(50):
            subscription = await listener.subscribe(f"word.{number}")
            await listener.confirm()
            await speaker.publish(f"word.{number}", b"said")
            assert (await subscription.next_msg(timeout=5)).data == b"said"
