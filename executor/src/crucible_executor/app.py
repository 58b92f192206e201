"""The executor put together: which class serves which role, and in which order they start and stop.

The process that root starts begins a launcher, which keeps what sandboxes need of root's privileges, and gives up its
own for good before it opens any connection.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, NoReturn

import uuid_utils

from crucible.internal.v1 import heartbeat_pb2
from crucible_chassis.logs import configure_logging, get_logger
from crucible_chassis.messaging import connect_messaging
from crucible_chassis.metrics import AdminServer
from crucible_chassis.process import Lifetime, run
from crucible_chassis.settings import EX_CONFIG, load_settings
from crucible_executor import convert
from crucible_executor.fitness import Fitness
from crucible_executor.heartbeat import Heart
from crucible_executor.jobs import JobPuller
from crucible_executor.objects import open_object_store
from crucible_executor.publisher import AttemptsOutbox
from crucible_executor.run import Tools
from crucible_executor.runs import HeldRuns
from crucible_executor.sandbox.gvisor.driver import GvisorConfig, open_driver
from crucible_executor.sandbox.launcher.privileges import Account, PrivilegeError, drop_all
from crucible_executor.sandbox.launcher.process import LauncherProcess, start_launcher
from crucible_executor.sandbox.pool import open_pool
from crucible_executor.sandbox.port import SandboxDriver
from crucible_executor.settings import ExecutorSettings

SERVICE = "executor"
MOST_RUNTIMES: Final = 16
"""That a launcher has room for ready sandboxes of."""

DriverOpener = Callable[[ExecutorSettings], AbstractAsyncContextManager[SandboxDriver]]

log = get_logger(__name__)


def ready_sandboxes(settings: ExecutorSettings) -> int:
    """Sandboxes to keep ready of each runtime."""
    return settings.slots if settings.ready_sandboxes is None else settings.ready_sandboxes


def most_sandboxes(settings: ExecutorSettings) -> int:
    """More than it ever needs at one time, those that are being removed among them: a launcher makes no more for it."""
    return 2 * settings.slots + MOST_RUNTIMES * (ready_sandboxes(settings) + 1)


def opener(lifetime: Lifetime[ExecutorSettings], config: GvisorConfig, launcher: LauncherProcess) -> DriverOpener:
    """Opens the product's sandboxes, booted ahead, on a launcher; the executor ends when that is lost."""

    @asynccontextmanager
    async def open_gvisor(settings: ExecutorSettings) -> AsyncGenerator[SandboxDriver]:
        async with open_driver(config, launcher=launcher) as driver:
            lifetime.tasks.spawn("launcher", driver.lost())
            async with open_pool(driver, size=ready_sandboxes(settings)) as pool:
                yield pool

    return open_gvisor


async def serve(lifetime: Lifetime[ExecutorSettings], *, open_sandboxes: DriverOpener) -> None:
    """Runs an executor until the process is asked to stop."""
    settings, stack, tasks = lifetime.settings, lifetime.stack, lifetime.tasks
    driver = await stack.enter_async_context(open_sandboxes(settings))
    offerable = await driver.offerable_runtimes()
    for name, why in offerable.refused.items():
        log.error("runtime.refused", runtime=name, why=why)
    runtimes = [offer.name for offer in offerable.offers]
    log.info("runtime.offered", runtimes=runtimes)
    messaging = await stack.enter_async_context(connect_messaging(settings.nats_url, name=SERVICE))
    me = convert.executor(str(uuid_utils.uuid7()), socket.gethostname())
    tools = Tools(
        executor=me,
        driver=driver,
        objects=open_object_store(settings.object_store_url),
        outbox=AttemptsOutbox(messaging),
        tracer=lifetime.telemetry.tracer,
    )
    heart = Heart(
        messaging,
        heartbeat_pb2.ExecutorAnnouncement(executor=me, pool=settings.pool, slots=settings.slots, runtimes=runtimes),
    )
    runs = HeldRuns(tools, tasks, slots=settings.slots, began=heart.beat_soon)
    puller = JobPuller(messaging, runs, pool=settings.pool)
    fitness = Fitness()
    await stack.enter_async_context(
        AdminServer(
            settings.admin_listen,
            lambda: (
                bool(runtimes) and not fitness.why_not and messaging.is_connected and puller.bound and heart.answered
            ),
            lambda: fitness.why_not,
        )
    )
    await heart.listen(runs)
    tasks.spawn("heart", heart.run(runs))
    pulling = tasks.spawn_job("jobs", puller.run())
    tasks.spawn_job("fitness", fitness.keep(driver, heart, puller, pulling))
    await lifetime.until_stopped()
    heart.announce_no_slots()
    await puller.stop(pulling)
    await runs.drain(settings.grace_seconds)


def main() -> NoReturn:
    """Runs the executor as this process."""
    settings = load_settings(ExecutorSettings)
    config = GvisorConfig(images_dir=settings.runtimes_dir, most_sandboxes=most_sandboxes(settings))
    try:
        account = Account.named(settings.user) if settings.user else None
        launcher = start_launcher(config.for_launcher())
        if os.geteuid() == 0:  # as anybody else the launcher says what is amiss
            drop_all(account)
    except (OSError, PrivilegeError) as error:
        configure_logging(SERVICE, settings.log_level)
        log.critical("process.failed", error=str(error))
        sys.exit(EX_CONFIG)

    async def serve_launched(lifetime: Lifetime[ExecutorSettings]) -> None:
        await serve(lifetime, open_sandboxes=opener(lifetime, config, launcher))

    run(serve_launched, service=SERVICE, settings=settings)
