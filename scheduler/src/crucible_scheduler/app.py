"""The scheduler put together: which class serves which role, and in which order they start and stop."""

# pyright: reportUnknownMemberType=false
# nats-py leaves a parameter of `subscribe` without a type.

from __future__ import annotations

from typing import NoReturn

from crucible.v1 import evaluation_service_pb2, evaluation_service_pb2_grpc
from crucible_chassis.client import open_channel
from crucible_chassis.messaging import connect_messaging
from crucible_chassis.metrics import AdminServer
from crucible_chassis.process import Lifetime, run
from crucible_chassis.server import GrpcServer, Registration
from crucible_chassis.settings import load_settings
from crucible_contracts import ERROR_DOMAIN, subjects
from crucible_contracts.limits import LEASE_SECONDS, MESSAGE_BYTES
from crucible_contracts.policy import method_policy
from crucible_scheduler import heartbeats, ledger
from crucible_scheduler.commands import EvaluationCommands
from crucible_scheduler.dispatch import Dispatcher
from crucible_scheduler.domain.reaper import Reaper
from crucible_scheduler.heartbeats import HeartbeatResponder
from crucible_scheduler.patience import persist
from crucible_scheduler.reaping import ReaperLoop
from crucible_scheduler.runtimes import RuntimeCatalogue
from crucible_scheduler.service import MAX_RUN_SECONDS, EvaluationServicer
from crucible_scheduler.settings import SchedulerSettings
from crucible_scheduler.streams import JobsStream
from crucible_scheduler.submission import Submitter

SERVICE = "scheduler"


async def serve(lifetime: Lifetime[SchedulerSettings]) -> None:
    """Runs a scheduler until the process is asked to stop."""
    settings, stack, tasks = lifetime.settings, lifetime.stack, lifetime.tasks
    channel = await stack.enter_async_context(
        open_channel(
            settings.store_url,
            service_names=ledger.SERVICE_NAMES,
            max_message_bytes=MESSAGE_BYTES,
            telemetry=lifetime.telemetry,
        )
    )
    messaging = await stack.enter_async_context(connect_messaging(settings.nats_url, name=SERVICE))
    store = ledger.StoreLedger(channel)
    jobs = JobsStream(messaging.js, settings.pool)
    dispatcher = Dispatcher(store, messaging, lifetime.telemetry.tracer, pool=settings.pool, mend=jobs.mend)
    responder = HeartbeatResponder(store, messaging)
    reaper = ReaperLoop(store, messaging, Reaper(lease_seconds=LEASE_SECONDS))
    submitter = Submitter(store, RuntimeCatalogue(store), pool=settings.pool, dispatch=dispatcher)
    commands = EvaluationCommands(store, messaging, queued=dispatcher.wake)
    server = GrpcServer(
        settings.grpc_listen,
        [
            Registration(
                evaluation_service_pb2.DESCRIPTOR.services_by_name["EvaluationService"],
                evaluation_service_pb2_grpc.add_EvaluationServiceServicer_to_server,
                EvaluationServicer(submitter, commands),
            )
        ],
        error_domain=ERROR_DOMAIN,
        method_policy=method_policy,
        telemetry=lifetime.telemetry,
        grace_seconds=settings.grace_seconds,
        max_message_bytes=MESSAGE_BYTES,
        default_unary_seconds=MAX_RUN_SECONDS + ledger.WAIT_GRACE_SECONDS,
    )
    await stack.enter_async_context(server)
    await stack.enter_async_context(
        AdminServer(settings.admin_listen, lambda: server.ready and messaging.is_connected and reaper.path_works)
    )
    await persist("stream", jobs.ensure)
    await responder.subscribe()
    for number in range(heartbeats.WORKERS):
        tasks.spawn(f"heartbeats-{number}", responder.work())
    await persist("store", store.probe)
    await messaging.nc.subscribe(subjects.queue(settings.pool), cb=dispatcher.nudged)
    tasks.spawn("dispatch", dispatcher.run())
    tasks.spawn("publish", dispatcher.publish())
    tasks.spawn("reaper", reaper.run())
    await server.set_ready(True)
    await lifetime.until_stopped()
    submitter.stop()
    await server.drain()


def main() -> NoReturn:
    """Runs the scheduler as this process."""
    run(serve, service=SERVICE, settings=load_settings(SchedulerSettings))
