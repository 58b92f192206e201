"""What is known of a sandbox's confinement, as a caller reads it."""

import time
from typing import Any

import pytest

from crucible_testkit.stack import Stack


def after_its_removal(stack: Stack, evaluation: str) -> dict[str, Any]:
    """The evaluation, once what was left of its sandbox is told: that follows the verdict."""
    until = time.monotonic() + 20
    while True:
        found: dict[str, Any] = stack.http.get(f"/v1/evaluations/{evaluation}").json()
        if "after" in found["result"]["containment"] or time.monotonic() > until:
            return found
        time.sleep(0.05)


@pytest.mark.parametrize("runtime", ["python", "bash"])
def test_a_result_carries_what_is_known_of_its_sandbox(stack: Stack, runtime: str) -> None:
    source = {"python": "print(1)", "bash": "echo 1"}[runtime]
    evaluation = stack.run({"runtime": runtime, "source": source, "labels": {"containment": runtime}})
    known = evaluation["result"]["containment"]
    assert {"TCP_EGRESS", "METADATA_SERVICE", "HOST_PATHS", "MOUNTS", "CAPABILITIES"} <= set(known["inside"]["held"])
    assert {"SENTRY_USER", "SENTRY_CAPABILITIES", "MEMORY_LIMIT"} <= set(known["before"]["held"])
    assert known["inside"]["time"] <= known["before"]["time"] <= evaluation["result"]["timings"]["ready"]
    whole = after_its_removal(stack, evaluation["id"])["result"]["containment"]
    assert set(whole["after"]["held"]) == {
        "PROCESSES_GONE", "CONTROL_GROUP_GONE", "FOLDER_GONE", "IMAGE_UNCHANGED"
    }  # fmt: skip
    # What did not hold is not there, since nothing did not hold.
    assert [look for look in whole.values() if "exceptions" in look] == []
    assert sum(len(look["held"]) for look in whole.values()) == 47
    # Lists stay short.
    (listed,) = stack.http.get(
        "/v1/evaluations", params={"filter": f"labels.containment={runtime}"}
    ).json()["evaluations"]  # fmt: skip
    assert "containment" not in listed["result"]
