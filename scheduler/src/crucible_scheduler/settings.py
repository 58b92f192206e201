"""What a scheduler can be told."""

from pydantic import Field

from crucible_chassis.settings import ServiceSettings
from crucible_contracts import DEFAULT_POOL


class SchedulerSettings(ServiceSettings):
    """Read from `CRUCIBLE_<FIELD>`."""

    grpc_listen: str = "127.0.0.1:8081"
    """Where EvaluationService is served, `host:port`."""

    admin_listen: str = "127.0.0.1:8091"
    """Where /metrics, /healthz and /readyz are served."""

    store_url: str = "127.0.0.1:8082"
    """gRPC target of the stores."""

    nats_url: str = "nats://127.0.0.1:8083"
    """NATS servers, a comma list."""

    pool: str = Field(default=DEFAULT_POOL, pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    """The pool whose executors run what is submitted here."""
