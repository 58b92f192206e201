"""From submit to verdict over REST, as a client with one open connection sees it: warm, cold, and with no pause."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass, field
from typing import Any

from bench.baseline import BareRunsc
from bench.percentiles import percentile
from bench.processes import pids, until_full
from bench.report import Report
from crucible_testkit.stack import Stack

PROGRAM = "print(1)"
EXPECTED = "1\n"
OTHER_DISK = str(48 * 1024 * 1024)
"""No sandbox waits with this disk: such a program has one booted for it."""
CALM_SECONDS = 0.05
"""After the pool is full: for the last boot's odds and ends."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One evaluation as its caller saw it."""

    seconds: float
    began_ns: int
    """Since the epoch, as spans have it."""
    trace_id: str


class Submitter:
    """Runs evaluations one after the other over one connection."""

    def __init__(self, address: str) -> None:
        self._connection = http.client.HTTPConnection(address, timeout=60)

    def run(self, *, disk_bytes: str | None = None) -> Answer:
        """Raises when the verdict is not what the program deserves."""
        asked: dict[str, Any] = {"runtime": "python", "source": PROGRAM}
        if disk_bytes is not None:
            asked["limits"] = {"diskBytes": disk_bytes}
        body = json.dumps(asked)
        began_ns, began = time.time_ns(), time.perf_counter()
        self._connection.request("POST", "/v1/evaluations:run", body, {"content-type": "application/json"})
        response = self._connection.getresponse()
        text = response.read()
        took = time.perf_counter() - began
        evaluation = json.loads(text)
        if evaluation.get("status") != "COMPLETED" or evaluation["result"]["stdout"]["text"] != EXPECTED:
            raise RuntimeError(f"not the expected verdict: {evaluation}")
        return Answer(took, began_ns, response.headers["crucible-trace-id"])

    def ping(self) -> None:
        """Keeps the connection open, or opens it again."""
        try:
            self._ping()
        except (http.client.HTTPException, OSError):
            self._connection.close()
            self._ping()

    def _ping(self) -> None:
        self._connection.request("GET", "/healthz")
        self._connection.getresponse().read()

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()


@dataclass(slots=True)
class Client:
    """A submitter and the pool that it waits for."""

    stack: Stack
    pool: int
    submitter: Submitter = field(init=False)
    executor: int = field(init=False)

    def __post_init__(self) -> None:
        self.submitter = Submitter(self.stack.address)
        self.executor = pids(self.stack)["executor"]

    def calm(self) -> None:
        """Wait until nothing is under way."""
        until_full(self.executor, self.pool)
        self.submitter.ping()
        time.sleep(CALM_SECONDS)


def measure(report: Report, client: Client, bare: BareRunsc, runs: int) -> None:
    """Each kind in turn, so that all have the same of the machine's moods."""
    rows: dict[str, list[float]] = {name: [] for name in ("bare cold runsc run", "warm", "cold boot", "no pause")}
    for _ in range(3):  # caches of files and of connections, on both sides
        bare.run(EXPECTED.encode())
        client.submitter.run()
    for number in range(runs):
        client.calm()
        rows["bare cold runsc run"].append(bare.run(EXPECTED.encode()))
        client.calm()
        rows["warm"].append(client.submitter.run().seconds)
        if number % 3 == 0:
            client.calm()
            rows["cold boot"].append(client.submitter.run(disk_bytes=OTHER_DISK).seconds)
    for _ in range(runs // 2):
        rows["no pause"].append(client.submitter.run().seconds)
    report.table("submit to verdict over REST", rows)
    cold, warm = rows["bare cold runsc run"], rows["warm"]
    report.figure("bare p50 / warm p50", percentile(cold, 0.5) / percentile(warm, 0.5), "wanted: 10 or more")
    report.figure("warm p99 / warm p50", percentile(warm, 0.99) / percentile(warm, 0.5), "wanted: under 2")
