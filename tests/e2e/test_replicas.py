"""Two of each service on one broker and one database: they share the work, and the death of any loses none of it."""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from crucible_testkit import ServiceProcess, free_port
from crucible_testkit.stack import Json, Stack

CROWD = 80


@dataclass
class Replicas:
    """The second of each service, and a gateway that knows both."""

    store: ServiceProcess
    scheduler: ServiceProcess
    executor: ServiceProcess
    http: httpx.AsyncClient


def settings_of(stack: Stack, name: str) -> dict[str, str]:
    """What a running service of the stack was told."""
    pairs = Path(f"/proc/{stack.pid(name)}/environ").read_bytes().decode().split("\0")
    settings = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    return {key: value for key, value in settings.items() if key.startswith("CRUCIBLE_")}


@pytest.fixture
async def replicas(stack: Stack, tmp_path: Path) -> AsyncIterator[Replicas]:
    async with AsyncExitStack() as open_ones:

        async def second(name: str, **told: str) -> tuple[ServiceProcess, str]:
            listen, admin = (f"127.0.0.1:{free_port()}" for _ in range(2))
            own = {"CRUCIBLE_GRPC_LISTEN": listen, "CRUCIBLE_HTTP_LISTEN": listen, "CRUCIBLE_ADMIN_LISTEN": admin}
            asked = listen if name == "gateway" else admin
            process = ServiceProcess(
                f"crucible_{name}",
                env={**settings_of(stack, name), **own, **told},
                log=tmp_path / f"{name}.log",
                ready_url=f"http://{asked}/readyz",
            )
            return await open_ones.enter_async_context(process), listen

        addresses = stack.state.addresses
        store, store_address = await second("store")
        stores = f"ipv4:{addresses['store']},{store_address}"
        scheduler, scheduler_address = await second("scheduler", CRUCIBLE_STORE_URL=stores)
        executor, _ = await second("executor")
        schedulers = f"ipv4:{addresses['scheduler']},{scheduler_address}"
        _, listen = await second("gateway", CRUCIBLE_STORE_URL=stores, CRUCIBLE_SCHEDULER_URL=schedulers)
        http = await open_ones.enter_async_context(httpx.AsyncClient(base_url=f"http://{listen}", timeout=100))
        yield Replicas(store, scheduler, executor, http)


async def submit(replicas: Replicas, prefix: str) -> list[str]:
    requests: list[Json] = [
        {
            "evaluation": {
                "runtime": "python",
                "source": "import sys, time; time.sleep(0.05); print(sys.argv[1])",
                "args": [str(number)],
                "limits": {"wallTime": "60s"},
            },
            "requestId": f"{prefix}-{os.getpid()}-{number}",
        }
        for number in range(CROWD)
    ]
    answer = await replicas.http.post("/v1/evaluations:batchCreate", json={"requests": requests})
    assert answer.status_code == 200, answer.text
    return [evaluation["id"] for evaluation in answer.json()["evaluations"]]


def require_each_once(stack: Stack, ids: list[str]) -> set[str]:
    """Gives who ran them."""
    executors: set[str] = set()
    for number, evaluation_id in enumerate(ids):
        evaluation = stack.wait(evaluation_id, timeout=240)
        assert evaluation["status"] == "COMPLETED", evaluation
        assert evaluation["result"]["stdout"]["text"] == f"{number}\n"
        events = stack.events(evaluation_id)
        assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
        assert sum("finished" in event for event in events) == 1
        executors.add(evaluation["result"]["executor"]["id"])
    return executors


@pytest.mark.timeout(400)
async def test_two_of_each_share_the_work_and_any_may_die(stack: Stack, replicas: Replicas) -> None:
    assert len(require_each_once(stack, await submit(replicas, "together"))) == 2
    ids = await submit(replicas, "dying")
    for place, victim in enumerate((replicas.store, replicas.scheduler, replicas.executor)):
        stack.wait(ids[5 + 5 * place])
        victim.kill()
        answer = await replicas.http.get(f"/v1/evaluations/{ids[0]}")
        assert answer.status_code == 200, "the gateway goes on with the one that is left"
    require_each_once(stack, ids)
