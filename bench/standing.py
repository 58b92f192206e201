"""What a stack costs while nothing runs, and right after it worked: memory and CPU time of each process."""

from __future__ import annotations

import time

from bench.latency import Client
from bench.processes import SERVICES, cpu_seconds, cpu_seconds_below, pids, resident_bytes, until_full
from bench.report import Report

IDLE_SECONDS = 5.0
MEBIBYTE = 1024 * 1024
FEW = "wanted: under 120"


def measure_memory(report: Report, client: Client, when: str) -> None:
    """Resident memory of each process."""
    report.heading(f"resident memory, {when} (MiB)")
    for name, pid in pids(client.stack).items():
        report.figure(f"  {name}", resident_bytes(pid) / MEBIBYTE, FEW if name in SERVICES else "")


def measure_idle(report: Report, client: Client) -> None:
    """CPU time of each process with a full pool and nothing to do."""
    until_full(client.executor, client.pool)
    time.sleep(1.0)
    found = pids(client.stack)
    before = {name: cpu_seconds(pid) for name, pid in found.items()}
    pool = cpu_seconds_below(found["launcher"])
    time.sleep(IDLE_SECONDS)
    report.heading(f"idle, {client.pool} sandboxes waiting (% of one core)")
    for name, pid in found.items():
        report.figure(f"  {name}", (cpu_seconds(pid) - before[name]) / IDLE_SECONDS * 100)
    pool = (cpu_seconds_below(found["launcher"]) - pool) / IDLE_SECONDS * 100
    report.figure("  the pool: launcher and waiting sandboxes", pool, "wanted: under 1")


def measure_work(report: Report, client: Client, runs: int) -> None:
    """CPU time that one evaluation takes of each process, the making of the next sandbox included."""
    until_full(client.executor, client.pool)
    found = pids(client.stack)
    before = {name: cpu_seconds(pid) for name, pid in found.items()}
    for _ in range(runs):
        client.submitter.run()
        client.calm()
    report.heading("CPU time of one evaluation, idling meanwhile included (ms)")
    for name, pid in found.items():
        report.figure(f"  {name}", (cpu_seconds(pid) - before[name]) / runs * 1000)
