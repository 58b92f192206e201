"""Parts die in the middle of a crowd; every program still ends, each exactly once."""

import time
import uuid
from collections import Counter
from collections.abc import Callable

import pytest

from crucible_testkit.stack import Stack

SOURCE = "import sys, time; time.sleep(0.05); print(sys.argv[1])"


def submit(stack: Stack, count: int) -> list[str]:
    requests = [
        {
            "evaluation": {"runtime": "python", "source": SOURCE, "args": [str(i)], "limits": {"wallTime": "60s"}},
            "requestId": str(uuid.uuid4()),
        }
        for i in range(count)
    ]
    answer = stack.patiently("POST", "/v1/evaluations:batchCreate", body={"requests": requests})
    return [evaluation["id"] for evaluation in answer["evaluations"]]


def require_each_once(stack: Stack, ids: list[str]) -> None:
    for number, evaluation_id in enumerate(ids):
        evaluation = stack.wait(evaluation_id, timeout=240)
        assert evaluation["status"] == "COMPLETED", evaluation
        assert evaluation["result"]["outcome"] == "SUCCEEDED", evaluation
        assert evaluation["result"]["stdout"]["text"] == f"{number}\n"
        events = stack.events(evaluation_id)
        assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
        kinds = Counter(kind for event in events for kind in event if kind in {"queued", "finished"})
        assert kinds == {"queued": 1, "finished": 1}


@pytest.mark.timeout(300)
def test_two_hundred_at_once_all_end_each_once(stack: Stack) -> None:
    ids = submit(stack, 200)
    require_each_once(stack, ids)


def kill_executor(stack: Stack) -> None:
    stack.kill("executor")


def restart_nats(stack: Stack) -> None:
    stack.terminate("nats")


def kill_nats(stack: Stack) -> None:
    stack.kill("nats")


def kill_store(stack: Stack) -> None:
    stack.kill("store")


def restart_store(stack: Stack) -> None:
    stack.terminate("store")


def kill_scheduler(stack: Stack) -> None:
    stack.kill("scheduler")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("blow", "count"),
    [
        (kill_executor, 200),
        (restart_nats, 200),
        (restart_store, 200),
        (kill_nats, 30),
        (kill_store, 30),
        (kill_scheduler, 30),
    ],
)
def test_so_many_at_once_all_end_each_once_though_a_part_dies(
    stack: Stack, blow: Callable[[Stack], None], count: int
) -> None:
    ids = submit(stack, count)
    stack.wait(ids[5])
    blow(stack)
    require_each_once(stack, ids)
    stack.wait_until_ready()


@pytest.mark.timeout(300)
def test_what_a_dead_executor_held_runs_again_though_the_store_stutters(stack: Stack) -> None:
    source = "import time; time.sleep(8)"
    held = stack.create({"runtime": "python", "source": source, "limits": {"wallTime": "60s"}})["id"]
    stack.wait_for_status(held, "RUNNING")
    stack.kill("executor")
    with stack.stuttering("store", seconds=5.0, every=8.0):
        evaluation = stack.wait(held, timeout=150)
    assert (evaluation["status"], evaluation["attempt"]) == ("COMPLETED", 2)
    assert evaluation["result"]["outcome"] == "SUCCEEDED"
    stack.wait_until_ready()


def test_a_request_while_the_store_is_away_gets_503_or_an_answer(stack: Stack) -> None:
    stack.kill("store")
    response = stack.http.post("/v1/evaluations", json={"runtime": "python", "source": "print(1)"})
    assert response.status_code in {200, 503}
    if response.status_code == 503:
        assert response.headers["retry-after"]
    stack.wait_until_ready()
    deadline = time.monotonic() + 30
    body = {"runtime": "python", "source": "print(1)"}
    while (answer := stack.http.post("/v1/evaluations:run", json=body)).status_code == 503:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert answer.json()["status"] == "COMPLETED"
