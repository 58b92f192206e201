"""A small real process built as a service is: what it does is the first argument."""

import asyncio
import sys
from contextlib import suppress

from echo_service import Context, EchoServicer, Word, any_policy, echo_server
from google.protobuf.descriptor import MethodDescriptor

from crucible_chassis.logs import get_logger
from crucible_chassis.messaging import connect_messaging
from crucible_chassis.metrics import AdminServer
from crucible_chassis.process import Lifetime, run
from crucible_chassis.settings import ServiceSettings, load_settings

log = get_logger("small")


class Settings(ServiceSettings):
    """What the small process is told."""

    grpc_listen: str = "127.0.0.1:0"
    admin_listen: str = "127.0.0.1:0"
    nats_url: str = "nats://127.0.0.1:1"


async def behave(request: Word, context: Context) -> None:
    if request.text.startswith("sleep "):
        log.info("call.sleeping")
        await asyncio.sleep(float(request.text.removeprefix("sleep ")))


async def live() -> None:
    await asyncio.Event().wait()


async def die() -> None:
    await asyncio.sleep(0.2)
    raise RuntimeError("the side task broke")


async def end() -> None:
    await asyncio.sleep(0.2)


def no_policy(method: MethodDescriptor) -> object | None:
    return None


async def serve(lifetime: Lifetime[Settings]) -> None:
    role = sys.argv[1]
    settings = lifetime.settings
    if role == "fail-at-start":
        raise RuntimeError("no start today")
    if role == "return-early":
        return
    if role == "wait-for-nats":
        await lifetime.stack.enter_async_context(connect_messaging(settings.nats_url, name="small"))
    server = echo_server(
        EchoServicer(behave),
        lifetime.telemetry,
        listen=settings.grpc_listen,
        grace_seconds=settings.grace_seconds,
        method_policy=no_policy if role == "no-policy" else any_policy,
    )
    await lifetime.stack.enter_async_context(AdminServer(settings.admin_listen, lambda: server.ready))
    await lifetime.stack.enter_async_context(server)
    lifetime.tasks.spawn("first", live())
    lifetime.tasks.spawn("second", live())
    match role:
        case "dead-task":
            lifetime.tasks.spawn("consumer", die())
        case "ended-task":
            lifetime.tasks.spawn("consumer", end())
        case "dead-job":
            lifetime.tasks.spawn_job("consumer", die())
        case "ended-job":
            lifetime.tasks.spawn_job("consumer", end())
        case _:
            pass
    await server.set_ready(True)
    log.info("small.ready")
    await lifetime.until_stopped()
    if role in ("slow-to-leave", "stuck"):
        with suppress(asyncio.CancelledError):
            await live()
    if role == "stuck":
        await live()
    await server.drain()


if __name__ == "__main__":
    run(serve, service="small", settings=load_settings(Settings), leaving_seconds=1)
