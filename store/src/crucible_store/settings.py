"""What a store can be told."""

from pydantic import Field

from crucible_chassis.settings import ServiceSettings


class StoreSettings(ServiceSettings):
    """Settings of `python -m crucible_store`, each read from `CRUCIBLE_<FIELD>`."""

    database_url: str = Field(pattern=r"^postgres(ql)?://")
    """libpq URL of the database; `?host=/socket/folder` for a unix socket."""

    nats_url: str = "nats://127.0.0.1:8083"
    """NATS servers, a comma list."""

    object_store_url: str = "file:///var/lib/crucible/objects"
    """Where large outputs and programs lie: `file:///folder`, `s3://bucket/prefix`."""

    grpc_listen: str = "127.0.0.1:8082"
    """`host:port` of the gRPC server."""

    admin_listen: str = "127.0.0.1:8092"
    """`host:port` of /metrics, /healthz and /readyz."""

    database_connections: int = Field(default=16, ge=2, le=200)
    """Connections held at most: half of them for reads, half for state changes."""

    attempts_max_bytes: int = Field(default=8 * 1024**3, ge=16 * 1024**2)
    """What the stream ATTEMPTS may hold on disk while no store takes from it, in bytes."""

    parked_days: int = Field(default=30, ge=1, le=36_500)
    """Days for which messages that could not be stored are kept for the operator."""


class MigrationSettings(ServiceSettings):
    """Settings of `python -m crucible_store migrate`."""

    database_url: str = Field(pattern=r"^postgres(ql)?://")
    """libpq URL of the database."""

    migration_seconds: float = Field(default=60, gt=0, le=3600)
    """How long to wait for the database, and for another migration to end."""
