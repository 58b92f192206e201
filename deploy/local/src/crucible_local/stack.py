"""The steps of Crucible on one machine: which processes, with which settings and privileges, in which order."""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from crucible_local import jaeger
from crucible_local.confinement import Account, Privileges, confined, give
from crucible_local.layout import Layout
from crucible_local.nats import Broker
from crucible_local.options import StackOptions
from crucible_local.postgres import Cluster, install_programs, postgres_account
from crucible_local.probes import answers_ok, available_runtimes
from crucible_local.specification import Daemon, Gate, Job, Stage, Step

LOOPBACK = "127.0.0.1"
DATABASE = "postgres"
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")
EXECUTOR_GRACE_SECONDS = 55.0
"""Longer than a service's: running programs are given the executor's own grace, and their sandboxes are removed."""


@dataclass(frozen=True)
class External:
    """Servers of one's own that the stack uses instead of starting its own; empty where there is none."""

    nats_url: str
    database_url: str
    object_store_url: str
    otlp_endpoint: str

    @staticmethod
    def of(environment: Mapping[str, str]) -> "External":
        """As the environment names them."""
        return External(
            nats_url=environment.get("CRUCIBLE_NATS_URL", ""),
            database_url=environment.get("CRUCIBLE_DATABASE_URL", ""),
            object_store_url=environment.get("CRUCIBLE_OBJECT_STORE_URL", ""),
            otlp_endpoint=environment.get("OTEL_EXPORTER_OTLP_ENDPOINT", ""),
        )


class Stack:
    """One stack, not started. Making its stages prepares folders and PostgreSQL's data directory."""

    def __init__(self, options: StackOptions, environment: Mapping[str, str], user: Account | None) -> None:
        self._options = options
        self._ports = options.ports
        self._layout = Layout(options.data)
        self._environment = environment
        self._external = External.of(environment)
        self._user = user

    @property
    def addresses(self) -> dict[str, str]:
        """Where clients find it."""
        found = {
            "gateway": f"http://{LOOPBACK}:{self._ports.gateway}",
            "scheduler": f"{LOOPBACK}:{self._ports.scheduler}",
            "store": f"{LOOPBACK}:{self._ports.store}",
            "nats": self._external.nats_url or f"nats://{LOOPBACK}:{self._ports.nats}",
        }
        if self._options.jaeger:
            found["jaeger"] = f"http://{LOOPBACK}:{self._ports.jaeger_ui}"
        return found

    def stages(self) -> Sequence[Stage]:
        """What starts, in order. Raises PostgresError, ConfinementError, NatsError, JaegerError, LayoutError."""
        own(self._layout.streams, self._user)
        own(self._layout.objects, self._user, mode=0o2770)  # what the executor writes is the store's to remove
        ground: list[Step] = [self._images()]
        if not self._external.nats_url:
            ground.append(self._nats())
        database_url = self._external.database_url
        if not database_url:
            cluster = self._cluster()
            database_url = cluster.url(DATABASE)
            ground.append(self._postgres(cluster))
        if self._options.jaeger:
            ground.append(
                jaeger.daemon(self._layout, self._ports.jaeger_ui, self._ports.jaeger_otlp, self._environment)
            )
        store = {"CRUCIBLE_DATABASE_URL": database_url}
        migrate = Job(
            name="migrate",
            command=self._python("crucible_store", "migrate", "--runtimes", str(runtimes_source())),
            env=self._settings(store),
            purpose="bring the schema up to date, load the runtimes",
        )
        gate = Gate(name="runtimes", ready=self._offers_runtimes, purpose="wait for an executor that offers a runtime")
        return [ground, [migrate], self._services(store), [gate]]

    def _services(self, store: Mapping[str, str]) -> Stage:
        ports = self._ports
        return [
            self._service("store", ports.store, ports.store_admin, store),
            self._service("scheduler", ports.scheduler, ports.scheduler_admin, {}),
            self._executor(),
            self._gateway(),
        ]

    def _service(self, name: str, port: int, admin: int, settings: Mapping[str, str]) -> Daemon:
        listen = {"CRUCIBLE_GRPC_LISTEN": f"{LOOPBACK}:{port}", "CRUCIBLE_ADMIN_LISTEN": f"{LOOPBACK}:{admin}"}
        ready_url = f"http://{LOOPBACK}:{admin}/readyz"
        return Daemon(
            name=name,
            command=self._python(f"crucible_{name}"),
            env=self._settings({**settings, **listen}),
            ready=lambda: answers_ok(ready_url),
            address=f"{LOOPBACK}:{port}",
            ready_url=ready_url,
        )

    def _gateway(self) -> Daemon:
        listen = f"{LOOPBACK}:{self._ports.gateway}"
        ready_url = f"http://{listen}/readyz"
        return Daemon(
            name="gateway",
            command=self._python("crucible_gateway"),
            env=self._settings({"CRUCIBLE_HTTP_LISTEN": listen}),
            ready=lambda: answers_ok(ready_url),
            address=f"http://{listen}",
            ready_url=ready_url,
        )

    def _executor(self) -> Daemon:
        listen = f"{LOOPBACK}:{self._ports.executor_admin}"
        settings = {
            "CRUCIBLE_ADMIN_LISTEN": listen,
            "CRUCIBLE_RUNTIMES_DIR": str(self._images_folder),
            "CRUCIBLE_USER": self._user.name if self._user else "",
        }
        ready_url = f"http://{listen}/readyz"
        return Daemon(
            name="executor",
            command=self._python("crucible_executor", privileges=Privileges.ALL),
            env=self._settings(settings),
            ready=lambda: answers_ok(ready_url),
            address=f"http://{listen}",
            ready_url=ready_url,
            grace_seconds=EXECUTOR_GRACE_SECONDS,
            umask=0o002,
        )

    def _nats(self) -> Daemon:
        broker = Broker(self._ports.nats, self._layout.streams)
        return Daemon(
            name="nats",
            command=broker.command(account=self._user),
            env=self._basic_environment,
            ready=broker.accepts_connections,
            address=broker.url,
        )

    def _cluster(self) -> Cluster:
        cluster = Cluster(
            programs=install_programs(self._layout.programs),
            data=self._layout.database,
            sockets=self._layout.sockets,
            account=postgres_account(),
            clients_gid=self._user.gid if self._user else os.getegid(),
        )
        cluster.initialise()
        return cluster

    def _postgres(self, cluster: Cluster) -> Daemon:
        return Daemon(
            name="postgres",
            command=cluster.command(),
            env=cluster.environment,
            ready=cluster.accepts_connections,
            address=str(cluster.socket),
            stop_signal=cluster.stop_signal,
        )

    @property
    def _images_folder(self) -> Path:
        configured = self._environment.get("CRUCIBLE_RUNTIMES_DIR")
        return Path(configured) if configured else self._layout.images

    def _images(self) -> Job:
        arguments = ("--source", str(runtimes_source()), "--output", str(self._images_folder))
        return Job(
            name="images",
            command=self._python("crucible_executor.build_images", *arguments, privileges=Privileges.ALL),
            env=self._basic_environment,
            purpose="build the runtimes' images",
        )

    def _offers_runtimes(self) -> bool:
        return bool(available_runtimes(self.addresses["gateway"]))

    @property
    def _basic_environment(self) -> dict[str, str]:
        return {name: self._environment[name] for name in PASSED_ON if name in self._environment}

    def _settings(self, own_settings: Mapping[str, str]) -> dict[str, str]:
        """A service's whole environment: the caller's CRUCIBLE_* and OTEL_* choices, then what only we can know."""
        chosen = {k: v for k, v in self._environment.items() if k.startswith(("CRUCIBLE_", "OTEL_"))}
        chosen.pop("CRUCIBLE_DATABASE_URL", None)  # the store's alone
        common = {
            "CRUCIBLE_SCHEDULER_URL": self.addresses["scheduler"],
            "CRUCIBLE_STORE_URL": self.addresses["store"],
            "CRUCIBLE_NATS_URL": self.addresses["nats"],
            "CRUCIBLE_OBJECT_STORE_URL": self._external.object_store_url or f"file://{self._layout.objects}",
            "PYTHONUNBUFFERED": "1",
        }
        if self._options.jaeger:
            common |= {
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{LOOPBACK}:{self._ports.jaeger_otlp}",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            }
        return {**self._basic_environment, **chosen, **common, **own_settings}

    def _python(self, module: str, *arguments: str, privileges: Privileges = Privileges.NONE) -> list[str]:
        # -P: no module is ever taken from the folder a process happens to stand in
        command = [sys.executable, "-P", "-m", module, *arguments]
        if privileges is Privileges.ALL:  # SIGTERM, so that an executor that loses its supervisor removes its sandboxes
            return confined(command, privileges=privileges, death_signal="TERM")
        return confined(command, account=self._user)


def runtimes_source() -> Path:
    """The definitions of the runtimes, in the repository this package is installed from."""
    return Path(__file__).resolve().parents[3] / "runtimes"


def own(folder: Path, user: Account | None, *, mode: int = 0o700) -> None:
    """Makes the folder the user's; one that another user had is given with all that is in it."""
    give(folder, None, mode=mode)
    uid, gid = (user.uid, user.gid) if user else (os.geteuid(), os.getegid())
    if folder.stat().st_uid != uid:
        for parent, folders, files in os.walk(folder):
            for name in (*folders, *files):
                os.chown(Path(parent, name), uid, gid, follow_symlinks=False)
        shutil.chown(folder, uid, gid)
        folder.chmod(mode)  # chown clears the set-group-id bit
