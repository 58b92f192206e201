"""Real servers for tests: PostgreSQL, NATS, an OTLP receiver, and Crucible's services as processes."""

from crucible_local.ports import free_port
from crucible_testkit.child import Child, ChildError, children_of
from crucible_testkit.nats import NatsServer
from crucible_testkit.otlp import OtlpReceiver, ReceivedSpan
from crucible_testkit.postgres import PostgresServer
from crucible_testkit.scratch import scratch_folder
from crucible_testkit.service import ServiceProcess

__all__ = [
    "Child",
    "ChildError",
    "NatsServer",
    "OtlpReceiver",
    "PostgresServer",
    "ReceivedSpan",
    "ServiceProcess",
    "children_of",
    "free_port",
    "scratch_folder",
]
