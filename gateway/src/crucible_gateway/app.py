"""Wiring: settings, channels, routes and the HTTP server, in the order they live and die."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from google.protobuf.descriptor import ServiceDescriptor

from crucible.v1 import evaluation_query_service_pb2, evaluation_service_pb2, runtime_service_pb2
from crucible_chassis.client import open_channel
from crucible_chassis.logs import get_logger
from crucible_chassis.process import Lifetime, run
from crucible_chassis.settings import load_settings
from crucible_gateway import http_server, openapi, pages
from crucible_gateway.byte_stream import ByteStreamer
from crucible_gateway.contract import Kind, Route, routes
from crucible_gateway.edge import Edge
from crucible_gateway.exchange import Drain
from crucible_gateway.http_rule import Router, Template, parse_template
from crucible_gateway.settings import GatewaySettings
from crucible_gateway.sse import EventStreamer
from crucible_gateway.transcode import Handler, Transcoder
from crucible_gateway.upstreams import Upstream

SCHEDULER_SERVICES = (evaluation_service_pb2.DESCRIPTOR.services_by_name["EvaluationService"],)
STORE_SERVICES = (
    evaluation_query_service_pb2.DESCRIPTOR.services_by_name["EvaluationQueryService"],
    runtime_service_pb2.DESCRIPTOR.services_by_name["RuntimeService"],
)

LAST_CALL_SECONDS = 1.0
"""How long before the end of the grace clients that still wait are told to retry."""

ROOT = Template("/", segments=("",), variables=(), verb="")
"""A path that no rpc can state."""

log = get_logger(__name__)


def main() -> None:
    """Runs the gateway as this process."""
    run(serve, service="gateway", settings=load_settings(GatewaySettings))


async def serve(lifetime: Lifetime[GatewaySettings]) -> None:
    """The life of the gateway."""
    settings = lifetime.settings
    upstreams = (
        await _upstream(lifetime, "scheduler", settings.scheduler_url, SCHEDULER_SERVICES),
        await _upstream(lifetime, "store", settings.store_url, STORE_SERVICES),
    )
    drain = Drain()
    router = build_router(upstreams, drain)
    edge = Edge(router, allowed_hosts=settings.allowed_hosts, telemetry=lifetime.telemetry, drain=drain)
    sock = lifetime.stack.enter_context(http_server.bind(settings.http_listen))
    server = http_server.HttpServer(edge, settings.grace_seconds)
    serving = lifetime.tasks.spawn_job("http", server.serve(sockets=[sock]))
    log.info("http.listening", address=http_server.address_of(sock))

    await lifetime.until_stopped()

    drain.begun.set()
    server.stop()
    await asyncio.wait({serving}, timeout=max(0.0, settings.grace_seconds - LAST_CALL_SECONDS))
    drain.last.set()
    await asyncio.wait({serving})


def build_router(upstreams: Sequence[Upstream], drain: Drain) -> Router[Handler]:
    """Every route: those of the contract, and the gateway's own. Raises where the contract cannot be served."""

    def missing() -> list[str]:
        parts = [upstream.name for upstream in upstreams if not upstream.serving]
        return ["stopping", *parts] if drain.begun.is_set() else parts

    router: Router[Handler] = Router()
    served: list[Route] = []
    for upstream in upstreams:
        for route in routes(upstream.services):
            router.add(route.method, route.template, _handler(route, upstream))
            served.append(route)
    own: dict[str, Handler] = {
        "/healthz": pages.Health(),
        "/readyz": pages.Readiness(missing),
        "/metrics": pages.Metrics(),
        "/openapi.json": pages.openapi_page(openapi.document(served)),
        "/docs": pages.docs_page(),
    }
    for path, handler in own.items():
        router.add("GET", parse_template(path), handler)
    line = "Crucible: the API is documented at /docs and described by /openapi.json"
    router.add("GET", ROOT, pages.Redirect("/docs", line))
    return router


def _handler(route: Route, upstream: Upstream) -> Handler:
    match route.kind:
        case Kind.UNARY:
            return Transcoder(route, upstream)
        case Kind.EVENTS:
            return EventStreamer(route, upstream)
        case Kind.BYTES:
            return ByteStreamer(route, upstream)


async def _upstream(
    lifetime: Lifetime[GatewaySettings], name: str, target: str, services: Sequence[ServiceDescriptor]
) -> Upstream:
    names = [service.full_name for service in services]
    channel = await lifetime.stack.enter_async_context(
        open_channel(target, service_names=names, telemetry=lifetime.telemetry)
    )
    # So that the first request finds a connection.
    channel.get_state(try_to_connect=True)
    return Upstream(name, channel, services)
