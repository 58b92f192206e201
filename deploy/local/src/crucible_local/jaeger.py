"""Jaeger v2 beside the stack: from a binary, else as a container."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from crucible_local.confinement import Privileges, confined
from crucible_local.layout import Layout
from crucible_local.probes import answers_ok
from crucible_local.specification import Daemon

IMAGE = "jaegertracing/jaeger:2.21.0"
CONFIGURATION = """\
service:
  extensions: [jaeger_storage, jaeger_query]
  pipelines:
    traces: {{receivers: [otlp], processors: [batch], exporters: [jaeger_storage_exporter]}}
  telemetry:
    metrics: {{level: none}}
extensions:
  jaeger_storage:
    backends:
      memory: {{memory: {{max_traces: 100000}}}}
  jaeger_query:
    storage: {{traces: memory}}
    http: {{endpoint: "{host}:{ui}"}}
    grpc: {{endpoint: "127.0.0.1:0"}}
receivers:
  otlp:
    protocols:
      http: {{endpoint: "{host}:{otlp}"}}
processors:
  batch: {{timeout: 200ms}}
exporters:
  jaeger_storage_exporter: {{trace_storage: memory}}
"""


class JaegerError(RuntimeError):
    """There is no Jaeger on this host; the message says how to get one."""


def require_jaeger(environment: Mapping[str, str]) -> Path | None:
    """The binary: CRUCIBLE_JAEGER, else `jaeger` on PATH; None: a container engine answers. Raises JaegerError."""
    named = environment.get("CRUCIBLE_JAEGER")
    found = shutil.which(named or "jaeger", path=environment.get("PATH"))
    if found is not None:
        return Path(found).resolve()
    if named:
        raise JaegerError(f"CRUCIBLE_JAEGER names {named}, which is not a program")
    docker = shutil.which("docker", path=environment.get("PATH"))
    if docker is not None:
        answer = subprocess.run([docker, "info"], capture_output=True, timeout=20, check=False)
        if answer.returncode == 0:
            return None
    raise JaegerError(
        "--jaeger needs a `jaeger` binary (version 2) on PATH or in CRUCIBLE_JAEGER, or a Docker engine that answers;"
        " there is neither. Binaries: https://www.jaegertracing.io/download/"
    )


def daemon(layout: Layout, ui: int, otlp: int, environment: Mapping[str, str]) -> Daemon:
    """Jaeger with its UI and its OTLP/HTTP receiver on loopback, traces in memory."""
    binary = require_jaeger(environment)
    configuration = layout.data / "jaeger.yaml"
    host = "127.0.0.1" if binary else "0.0.0.0"  # noqa: S104 - inside a container, published on loopback below
    configuration.write_text(CONFIGURATION.format(host=host, ui=ui, otlp=otlp))
    configuration.chmod(0o644)
    address = f"http://127.0.0.1:{ui}"
    plain = {name: environment[name] for name in ("PATH", "HOME", "DOCKER_HOST") if name in environment}
    if binary:
        command = confined([str(binary), f"--config={configuration}"])
        return Daemon("jaeger", command, plain, lambda: answers_ok(address), address)
    name = f"crucible-jaeger-{layout.identity}"

    def remove() -> None:
        subprocess.run(["docker", "rm", "--force", name], capture_output=True, timeout=30, check=False)

    inside = "/etc/jaeger-crucible.yaml"
    command = ["docker", "run", "--rm", f"--name={name}", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
    command += [f"--publish=127.0.0.1:{port}:{port}" for port in (ui, otlp)]
    command += [f"--volume={configuration}:{inside}:ro", IMAGE, f"--config={inside}"]
    return Daemon(
        "jaeger", confined(command, privileges=Privileges.ALL, death_signal="TERM"), plain, lambda: answers_ok(address),
        address, cleanup=remove,
    )  # fmt: skip
