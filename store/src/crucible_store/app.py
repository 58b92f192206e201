"""Wiring: what a store is made of, in the order in which it enters."""

from __future__ import annotations

from typing import NoReturn

from crucible.internal.v1 import ledger_service_pb2, ledger_service_pb2_grpc
from crucible.v1 import (
    evaluation_query_service_pb2,
    evaluation_query_service_pb2_grpc,
    runtime_service_pb2,
    runtime_service_pb2_grpc,
)
from crucible_chassis.messaging import connect_messaging
from crucible_chassis.metrics import AdminServer
from crucible_chassis.process import Lifetime
from crucible_chassis.process import run as run_process
from crucible_chassis.server import GrpcServer, Registration
from crucible_chassis.settings import load_settings
from crucible_contracts import ERROR_DOMAIN
from crucible_contracts.limits import MESSAGE_BYTES
from crucible_contracts.policy import method_policy
from crucible_store import housekeeping
from crucible_store.announcing import Announcer
from crucible_store.attempts_consumer import AttemptsConsumer
from crucible_store.database import open_database
from crucible_store.histories import Histories
from crucible_store.ledger import Ledger
from crucible_store.ledger_service import LedgerService
from crucible_store.objects import open_objects
from crucible_store.outputs import Outputs
from crucible_store.query_service import EvaluationQueryService
from crucible_store.runtime_service import RuntimeService
from crucible_store.settings import StoreSettings
from crucible_store.watching import Watchtower


def run() -> NoReturn:
    """The process."""
    run_process(serve, service="store", settings=load_settings(StoreSettings))


async def serve(lifetime: Lifetime[StoreSettings]) -> None:
    """Serves until it is told to stop."""
    settings, enter = lifetime.settings, lifetime.stack.enter_async_context
    server: GrpcServer | None = None
    consumer: AttemptsConsumer | None = None

    database = await enter(
        open_database(settings.database_url, connections=settings.database_connections, application="crucible-store")
    )

    def ready() -> bool:
        return (
            database.reachable
            and server is not None
            and server.ready
            and consumer is not None
            and consumer.ready
            and not lifetime.stopping.is_set()
        )

    await enter(AdminServer(settings.admin_listen, ready))
    objects = open_objects(settings.object_store_url)
    await housekeeping.wait_for_schema(database)
    messaging = await enter(connect_messaging(settings.nats_url, name="crucible-store", echo=False))
    tower = Watchtower(messaging)
    ledger = Ledger(database, Announcer(messaging, tower), objects)
    histories = Histories(database, tower)
    consumer = AttemptsConsumer(
        messaging, ledger, lifetime.telemetry.tracer, stream_max_bytes=settings.attempts_max_bytes
    )
    queries = EvaluationQueryService(database, histories, Outputs(database, objects))
    server = await enter(
        GrpcServer(
            settings.grpc_listen,
            [
                Registration(
                    evaluation_query_service_pb2.DESCRIPTOR.services_by_name["EvaluationQueryService"],
                    evaluation_query_service_pb2_grpc.add_EvaluationQueryServiceServicer_to_server,
                    queries,
                    watches=frozenset({"WaitEvaluation", "WatchEvaluation"}),
                ),
                Registration(
                    runtime_service_pb2.DESCRIPTOR.services_by_name["RuntimeService"],
                    runtime_service_pb2_grpc.add_RuntimeServiceServicer_to_server,
                    RuntimeService(database),
                ),
                Registration(
                    ledger_service_pb2.DESCRIPTOR.services_by_name["LedgerService"],
                    ledger_service_pb2_grpc.add_LedgerServiceServicer_to_server,
                    LedgerService(ledger),
                ),
            ],
            error_domain=ERROR_DOMAIN,
            method_policy=method_policy,
            telemetry=lifetime.telemetry,
            grace_seconds=settings.grace_seconds,
            max_message_bytes=MESSAGE_BYTES,
        )
    )
    lifetime.tasks.spawn("database-probe", housekeeping.probe(database))
    lifetime.tasks.spawn("counts", housekeeping.count(database, parked_days=settings.parked_days))
    lifetime.tasks.spawn("attempts-keep", consumer.keep())
    # A job: it may return, once it was told to stop.
    lifetime.tasks.spawn_job("attempts", consumer.run())
    await server.set_ready(True)
    await lifetime.until_stopped()
    await consumer.stop()
    await server.drain()
