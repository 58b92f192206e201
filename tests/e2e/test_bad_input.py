"""Bad input gets an error that names the field, the limit and the way out, and does nothing else."""

from typing import Any

import pytest

from crucible_testkit.stack import Stack

PYTHON: dict[str, Any] = {"runtime": "python", "source": "print(1)"}


@pytest.mark.parametrize(
    ("body", "field", "word"),
    [
        ({"runtime": "pyhton", "source": ""}, "runtime", "python"),
        (PYTHON | {"sauce": 1}, "sauce", "sauce"),
        (PYTHON | {"limits": {"memoryBytes": str(2**40)}}, "limits.memoryBytes", "4294967296"),
        (PYTHON | {"limits": {"wallTime": "7200s"}}, "limits.wallTime", "3600s"),
        (PYTHON | {"limits": {"cpuTime": "3600.1s"}}, "limits.cpuTime", "3600s"),
        (PYTHON | {"limits": {"diskBytes": str(2**30 + 1)}}, "limits.diskBytes", "1073741824"),
        (PYTHON | {"limits": {"outputBytes": str(2**26 + 1)}}, "limits.outputBytes", "67108864"),
        (PYTHON | {"limits": {"processes": 513}}, "limits.processes", "512"),
        (PYTHON | {"limits": {"openFiles": 1025}}, "limits.openFiles", "1024"),
        ({"runtime": "python", "source": "#" * 262_145}, "source", "262144"),
        ({"runtime": "python"}, "source", "files"),
        (PYTHON | {"args": ["x" * 65_537]}, "args", "65536"),
        (PYTHON | {"env": {"A B": "x"}}, 'env["A B"]', ""),
        ({"runtime": "python", "files": [{"path": "../main.py", "text": ""}]}, "files[0].path", ".."),
        ({"runtime": "python", "files": [{"path": "other.py", "text": ""}]}, "entrypoint", "main.py"),
        (PYTHON | {"stdin": "a\0b"}, "stdin", "NUL"),
        (PYTHON | {"args": ["a", "b\0"]}, "args[1]", "NUL"),
        (PYTHON | {"priority": "URGENT"}, "priority", "URGENT"),
    ],
)
def test_a_bad_field_is_named_with_its_limit(stack: Stack, body: dict[str, Any], field: str, word: str) -> None:
    before = stack.count()
    response = stack.http.post("/v1/evaluations:run", json=body)
    assert response.status_code == 400, response.text
    assert response.headers["content-type"].startswith("application/problem+json")
    problem = response.json()
    fields = [error["field"] for error in problem.get("errors", [])]
    assert any(name.startswith(field) for name in fields), problem
    assert word in response.text
    assert stack.count() == before, "nothing was stored"


def test_malformed_json_says_where(stack: Stack) -> None:
    response = stack.http.post(
        "/v1/evaluations:run",
        content=b'{"runtime": "python",\n "source": }',
        headers={"content-type": "application/json"},
    )
    assert response.status_code == 400
    assert "line 2" in response.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "headers", "content", "status"),
    [
        ("GET", "/v1/nothing", {}, b"", 404),
        ("PUT", "/v1/evaluations", {"content-type": "application/json"}, b"{}", 405),
        ("POST", "/v1/evaluations", {"content-type": "text/plain"}, b"{}", 415),
        ("POST", "/v1/evaluations", {"content-type": "application/json"}, b"x" * (8 * 1024 * 1024 + 1), 413),
        ("GET", "/v1/evaluations/not-an-id", {}, b"", 400),
        ("GET", "/v1/evaluations/01900000-0000-7000-8000-000000000000", {}, b"", 404),
        ("GET", "/v1/evaluations?filter=nonsense%20%3D", {}, b"", 400),
        ("GET", "/v1/evaluations?page_token=zzz", {}, b"", 400),
        ("GET", "/v1/evaluations?page_sise=3", {}, b"", 400),
    ],
)
def test_a_wrong_request_gets_the_right_code(
    stack: Stack, method: str, path: str, headers: dict[str, str], content: bytes, status: int
) -> None:
    response = stack.http.request(method, path, headers=headers, content=content)
    assert response.status_code == status, response.text
    assert response.json()["status"] == status
    assert "Traceback" not in response.text


def test_a_foreign_host_name_is_refused(stack: Stack) -> None:
    response = stack.http.get("/v1/evaluations", headers={"host": "attacker.example"})
    assert response.status_code in {403, 421}


def test_the_same_idempotency_key_gives_the_same_evaluation(stack: Stack) -> None:
    headers = {"idempotency-key": "once-only"}
    first = stack.http.post("/v1/evaluations", json=PYTHON, headers=headers).json()
    again = stack.http.post("/v1/evaluations:run", json=PYTHON, headers=headers).json()
    assert again["id"] == first["id"]
    other = stack.http.post("/v1/evaluations", json=PYTHON | {"source": "print(2)"}, headers=headers)
    assert other.status_code == 409
    assert other.json()["reason"] == "REQUEST_ID_REUSED"
    stack.wait(first["id"])
