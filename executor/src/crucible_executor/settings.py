"""What an executor can be told."""

import os
from pathlib import Path

from pydantic import Field

from crucible_chassis.settings import ServiceSettings
from crucible_contracts import DEFAULT_POOL
from crucible_executor.sandbox.image import DEFAULT_IMAGES_DIR


class ExecutorSettings(ServiceSettings):
    """Read from `CRUCIBLE_<FIELD>`."""

    admin_listen: str = "127.0.0.1:8093"
    """Where /metrics, /healthz and /readyz are served, `host:port`."""

    nats_url: str = "nats://127.0.0.1:8083"
    """NATS servers, a comma list."""

    object_store_url: str = "file:///var/lib/crucible/objects"
    """Where long outputs go and large programs come from: `file:///folder`, `s3://bucket/prefix`."""

    runtimes_dir: Path = DEFAULT_IMAGES_DIR
    """Folder of the built runtime images."""

    pool: str = Field(default=DEFAULT_POOL, pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    """The pool whose jobs it takes."""

    slots: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=1024)
    """Sandboxes it runs at one time; the number of cores unless told."""

    ready_sandboxes: int | None = Field(default=None, ge=0, le=1024)
    """Sandboxes it keeps ready of each runtime; as many as slots unless told, 0 for none."""

    user: str = ""
    """System user to run as, once the launcher of sandboxes holds root's privileges. Unless told the user id stays, and
    only the privileges go."""
