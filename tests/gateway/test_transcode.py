"""Rpcs with one answer, over real HTTP and real gRPC."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest
from gateway_harness import Context, GatewayUnderTest, Recorder, running_gateway

from crucible.v1 import evaluation_query_service_pb2, evaluation_service_pb2, runtime_service_pb2
from crucible.v1.evaluation_pb2 import Evaluation, File
from crucible.v1.execution_pb2 import ExecutionResult, Output
from crucible_chassis.errors import FieldViolation, ServiceError, invalid_argument

ID = "01900000-0000-7000-8000-000000000000"
PYTHON: dict[str, Any] = {"runtime": "python", "source": "print(1)"}


async def test_a_body_becomes_the_field_and_the_answer_is_bare(upstream: Recorder, http: httpx.AsyncClient) -> None:
    upstream.prepare("CreateEvaluation", Evaluation(id=ID, runtime="python", status=Evaluation.QUEUED))
    response = await http.post(
        "/v1/evaluations?request_id=once",
        json=PYTHON
        | {
            "limits": {"wallTime": "1.5s", "memory_bytes": 67108864, "diskBytes": "2097152"},
            "env": {"A": "ä"},
            "stdinBytes": "AP-_",
            "priority": "HIGH",
            "displayName": None,
        },
    )
    assert response.status_code == 200, response.text
    request = upstream.only.request
    assert isinstance(request, evaluation_service_pb2.CreateEvaluationRequest)
    assert request.request_id == "once"
    assert request.evaluation.limits.wall_time.ToNanoseconds() == 1_500_000_000
    assert request.evaluation.limits.memory_bytes == 67108864
    assert request.evaluation.limits.disk_bytes == 2097152
    assert request.evaluation.env == {"A": "ä"}
    assert request.evaluation.stdin_bytes == b"\x00\xff\xbf"
    assert request.evaluation.priority == Evaluation.HIGH
    assert not request.evaluation.HasField("display_name")
    answer = response.json()
    assert (answer["id"], answer["status"], answer["attempt"]) == (ID, "QUEUED", 0)
    assert "priority" not in answer, "what is unspecified is not shown"
    assert "statusReason" not in answer
    assert response.headers["cache-control"] == "no-store"


async def test_defaults_are_printed_and_unspecified_enums_are_not(upstream: Recorder, http: httpx.AsyncClient) -> None:
    result = ExecutionResult(outcome=ExecutionResult.SUCCEEDED, exit_code=0)
    result.stdout.SetInParent()
    result.findings.add(outcome=ExecutionResult.SUCCEEDED)
    upstream.prepare("GetEvaluation", Evaluation(id=ID, status=Evaluation.COMPLETED, result=result))
    answer = (await http.get(f"/v1/evaluations/{ID}")).json()["result"]
    assert answer["exitCode"] == 0
    assert answer["stdout"] == {"sizeBytes": "0", "sha256": "", "truncated": False, "lossy": False, "omittedBytes": "0"}
    assert answer["findings"] == [{"outcome": "SUCCEEDED", "detail": ""}]
    assert "cause" not in answer
    assert "UNSPECIFIED" not in json.dumps(answer)


async def test_what_a_list_leaves_out_is_absent_and_what_is_empty_is_not(
    upstream: Recorder, http: httpx.AsyncClient
) -> None:
    silent = ExecutionResult(stdout=Output(text=""), stderr=Output(text=""))
    page = evaluation_query_service_pb2.ListEvaluationsResponse()
    page.evaluations.add(result=ExecutionResult(stdout=Output(), stderr=Output()))
    upstream.prepare("ListEvaluations", page)
    (listed,) = (await http.get("/v1/evaluations")).json()["evaluations"]
    assert not {"source", "files", "stdin", "stdinBytes"} & listed.keys()
    assert "text" not in listed["result"]["stdout"]
    assert listed["args"] == [], "what lists hold is there, empty as it is"
    upstream.prepare("GetEvaluation", Evaluation(id=ID, source="", result=silent))
    whole = (await http.get(f"/v1/evaluations/{ID}")).json()
    assert (whole["source"], whole["result"]["stdout"]["text"], whole["result"]["stderr"]["text"]) == ("", "", "")
    assert "files" not in whole
    upstream.prepare("GetEvaluation", Evaluation(id=ID, files=[File(path="main.py", text="")]))
    assert (await http.get(f"/v1/evaluations/{ID}")).json()["files"] == [{"path": "main.py", "text": ""}]


async def test_query_takes_both_spellings(upstream: Recorder, http: httpx.AsyncClient) -> None:
    for query in ("page_size=7&order_by=create_time", "pageSize=7&orderBy=create_time"):
        upstream.prepare("ListEvaluations", evaluation_query_service_pb2.ListEvaluationsResponse())
        response = await http.get(f"/v1/evaluations?{query}&filter=labels.a%20%3D%20%22%C3%A4+b%22")
        assert response.json() == {"evaluations": [], "nextPageToken": ""}
        request = upstream.asked[-1].request
        assert (request.page_size, request.order_by, request.filter) == (7, "create_time", 'labels.a = "ä b"')


async def test_a_wait_gets_its_time_and_a_margin(upstream: Recorder, http: httpx.AsyncClient) -> None:
    upstream.prepare("WaitEvaluation", Evaluation(id=ID, status=Evaluation.RUNNING))
    response = await http.get(f"/v1/evaluations/{ID}:wait?timeout=90s")
    assert response.json()["status"] == "RUNNING"
    assert response.headers["cache-control"] == "no-store"
    assert upstream.only.request.timeout.seconds == 90
    assert upstream.only.seconds_left is not None
    assert 90 < upstream.only.seconds_left < 105


async def test_other_calls_get_a_deadline(upstream: Recorder, http: httpx.AsyncClient) -> None:
    upstream.prepare("ListRuntimes", runtime_service_pb2.ListRuntimesResponse())
    await http.get("/v1/runtimes")
    assert upstream.only.seconds_left is not None
    assert upstream.only.seconds_left < 35


@pytest.mark.parametrize("content", [b"", b"{}"])
async def test_a_method_whose_fields_come_from_the_path_needs_no_body(
    upstream: Recorder, http: httpx.AsyncClient, content: bytes
) -> None:
    upstream.prepare("CancelEvaluation", Evaluation(id=ID, status=Evaluation.CANCELLED))
    headers = {"content-type": "application/json"} if content else {}
    response = await http.post(f"/v1/evaluations/{ID}:cancel", content=content, headers=headers)
    assert response.status_code == 200, response.text
    assert upstream.only.request.id == ID


async def test_head_is_get_without_the_body(upstream: Recorder, http: httpx.AsyncClient) -> None:
    upstream.prepare("GetEvaluation", Evaluation(id=ID))
    upstream.prepare("GetEvaluation", Evaluation(id=ID))
    head, get = await http.head(f"/v1/evaluations/{ID}"), await http.get(f"/v1/evaluations/{ID}")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"] == str(len(get.content))


async def test_the_header_is_the_request_id(upstream: Recorder, http: httpx.AsyncClient) -> None:
    upstream.prepare("RunEvaluation", Evaluation(id=ID))
    await http.post("/v1/evaluations:run", json=PYTHON, headers={"idempotency-key": "key-1"})
    assert upstream.only.request.request_id == "key-1"


async def test_header_and_query_may_say_the_same_and_no_other(upstream: Recorder, http: httpx.AsyncClient) -> None:
    upstream.prepare("CreateEvaluation", Evaluation(id=ID))
    same = await http.post("/v1/evaluations?requestId=a", json=PYTHON, headers={"idempotency-key": "a"})
    assert same.status_code == 200
    other = await http.post("/v1/evaluations?requestId=b", json=PYTHON, headers={"idempotency-key": "a"})
    assert other.status_code == 400
    assert other.json()["errors"] == [{"field": "Idempotency-Key", "message": "must equal requestId"}]


async def test_a_missing_request_id_is_made(upstream: Recorder, http: httpx.AsyncClient) -> None:
    for _ in range(2):
        upstream.prepare("CreateEvaluation", Evaluation(id=ID))
        await http.post("/v1/evaluations", json=PYTHON)
    first, second = (uuid.UUID(each.request.request_id) for each in upstream.asked)
    assert first != second
    upstream.prepare("BatchCreateEvaluations", evaluation_service_pb2.BatchCreateEvaluationsResponse())
    items = [{"evaluation": PYTHON}, {"evaluation": PYTHON, "requestId": "mine"}]
    await http.post("/v1/evaluations:batchCreate", json={"requests": items})
    made, given = upstream.asked[-1].request.requests
    assert uuid.UUID(made.request_id)
    assert given.request_id == "mine"


async def test_one_key_for_a_batch_is_refused(upstream: Recorder, http: httpx.AsyncClient) -> None:
    body = {"requests": [{"evaluation": PYTHON}]}
    response = await http.post("/v1/evaluations:batchCreate", json=body, headers={"idempotency-key": "a"})
    assert response.status_code == 400
    assert response.json()["errors"][0]["field"] == "Idempotency-Key"


async def test_a_call_that_found_nobody_is_repeated_with_the_same_id(
    upstream: Recorder, http: httpx.AsyncClient
) -> None:
    upstream.prepare("CreateEvaluation", ServiceError(grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE", "away"))
    upstream.prepare("CreateEvaluation", Evaluation(id=ID))
    response = await http.post("/v1/evaluations", json=PYTHON)
    assert response.status_code == 200
    assert len({each.request.request_id for each in upstream.asked}) == 1


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 400),
        (grpc.StatusCode.FAILED_PRECONDITION, 400),
        (grpc.StatusCode.OUT_OF_RANGE, 400),
        (grpc.StatusCode.UNAUTHENTICATED, 401),
        (grpc.StatusCode.PERMISSION_DENIED, 403),
        (grpc.StatusCode.NOT_FOUND, 404),
        (grpc.StatusCode.ALREADY_EXISTS, 409),
        (grpc.StatusCode.ABORTED, 409),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
        (grpc.StatusCode.CANCELLED, 499),
        (grpc.StatusCode.UNKNOWN, 500),
        (grpc.StatusCode.INTERNAL, 500),
        (grpc.StatusCode.DATA_LOSS, 500),
        (grpc.StatusCode.UNIMPLEMENTED, 501),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 504),
    ],
)
async def test_every_code_has_its_status(
    upstream: Recorder, http: httpx.AsyncClient, code: grpc.StatusCode, status: int
) -> None:
    upstream.prepare("GetEvaluation", ServiceError(code, "EVALUATION_NOT_FOUND", "words", metadata={"a": "b"}))
    response = await http.get(f"/v1/evaluations/{ID}")
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json() == {
        "type": "https://crucible.dev/errors/EVALUATION_NOT_FOUND",
        "title": "No evaluation has this id",
        "status": status,
        "detail": "words",
        "reason": "EVALUATION_NOT_FOUND",
        "metadata": {"a": "b"},
        "traceId": response.headers["crucible-trace-id"],
    }


async def test_unavailable_says_when_to_come_again(upstream: Recorder, http: httpx.AsyncClient) -> None:
    away = ServiceError(
        grpc.StatusCode.UNAVAILABLE,
        "DEPENDENCY_UNAVAILABLE",
        "the database is away",
        metadata={"part": "database"},
        retry_after=2.5,
    )
    for _ in range(4):
        upstream.prepare("GetEvaluation", away)
    response = await http.get(f"/v1/evaluations/{ID}")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "3"
    assert response.json()["metadata"] == {"part": "database"}


async def test_a_part_that_says_nothing_any_more_is_named() -> None:
    async with running_gateway() as gateway, httpx.AsyncClient(base_url=gateway.url, timeout=30) as http:
        await gateway.scheduler.drain()
        await gateway.store.drain()
        for part, method, path in (
            ("scheduler", "POST", "/v1/evaluations:batchCreate"),
            ("store", "GET", "/v1/runtimes"),
            ("store", "GET", f"/v1/evaluations/{ID}/events:watch"),
            ("store", "GET", f"/v1/evaluations/{ID}/output/stdout"),
        ):
            response = await http.request(method, path, json={} if method == "POST" else None)
            assert (response.status_code, response.json()["metadata"]) == (503, {"part": part})


async def test_what_a_servicer_did_not_mean_to_say_is_not_said(upstream: Recorder, http: httpx.AsyncClient) -> None:
    upstream.prepare("GetEvaluation", RuntimeError("secret: password=hunter2"))
    response = await http.get(f"/v1/evaluations/{ID}")
    assert response.status_code == 500
    assert "hunter2" not in response.text
    assert response.json()["reason"] == "INTERNAL"
    assert response.json()["metadata"]["traceId"] == response.headers["crucible-trace-id"]


async def test_the_contracts_violations_are_named_as_they_were_written(
    upstream: Recorder, http: httpx.AsyncClient
) -> None:
    body = {
        "runtime": "python",
        "files": [{"path": "../x", "text": ""}],
        "limits": {"memoryBytes": "1099511627776"},
        "env": {"A.B [x]": "1"},
    }
    response = await http.post("/v1/evaluations?timeout=1s", json=body)
    assert response.status_code == 400, "timeout is no parameter of create"
    response = await http.post("/v1/evaluations:run?timeout=3600s", json=body)
    problem = response.json()
    assert problem["reason"] == "INVALID_FIELD"
    fields = {error["field"] for error in problem["errors"]}
    assert {"limits.memoryBytes", "files[0].path", "timeout", 'env["A.B [x]"]'} <= fields, fields
    assert "memory_bytes" not in response.text
    assert "4294967296" in problem["detail"] + json.dumps(problem["errors"])


@pytest.mark.parametrize(("verb", "reason"), [("cancel", "EVALUATION_FINAL"), ("requeue", "EVALUATION_NOT_FAILED")])
async def test_a_state_that_stands_against_it_is_a_conflict(
    upstream: Recorder, http: httpx.AsyncClient, verb: str, reason: str
) -> None:
    refusal = ServiceError(grpc.StatusCode.FAILED_PRECONDITION, reason, "no", metadata={"status": "COMPLETED"})
    upstream.prepare(f"{verb.capitalize()}Evaluation", refusal)
    response = await http.post(f"/v1/evaluations/{ID}:{verb}")
    assert (response.status_code, response.json()["reason"]) == (409, reason)
    assert response.json()["metadata"] == {"status": "COMPLETED"}


async def test_a_batchs_violations_name_the_item(upstream: Recorder, http: httpx.AsyncClient) -> None:
    bad = {"evaluation": PYTHON | {"limits": {"openFiles": 1}}, "requestId": "has space"}
    response = await http.post("/v1/evaluations:batchCreate", json={"requests": [{"evaluation": PYTHON}, bad]})
    fields = {error["field"] for error in response.json()["errors"]}
    assert fields == {"requests[1].evaluation.limits.openFiles", "requests[1].requestId"}


FILE = {"path": "main.py", "text": ""}


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({}, "source", "as source or as files"),
        ({"source": "", "files": [FILE]}, "files", "combined with source"),
        ({"files": [FILE, {"path": "a", "data": ""}, FILE]}, "files", "the path main.py appears more than once"),
        ({"files": [FILE], "entrypoint": "other.py"}, "entrypoint", "one of the files"),
        ({"source": "", "entrypoint": "main.py"}, "entrypoint", "needs files"),
        ({"files": [FILE, {"path": "a"}]}, "files[1].text", "as text or as data"),
        ({"files": [FILE, {"path": "/etc/passwd", "text": ""}]}, "files[1].path", "relative path"),
        ({"files": [FILE, {"path": "a\0b", "text": ""}]}, "files[1].path", "relative path"),
        ({"source": "", "stdin": "", "stdinBytes": ""}, "stdinBytes", "combined with stdin"),
        ({"source": "", "args": ["a", "b", "c", "d\0"]}, "args[3]", "NUL"),
        ({"source": "", "env": {"A": "", "B": "\0"}}, 'env["B"]', "NUL"),
        ({"source": "", "labels": {"team": "\0"}}, 'labels["team"]', "NUL"),
        ({"source": "", "runtime": ""}, "runtime", "is required"),
        ({"source": "", "runtime": "Python"}, "runtime", "must match the pattern ^[a-z]"),
        ({"source": "", "priority": 9}, "priority", "must be one of the defined enum values"),
        ({"source": "", "limits": {"wallTime": "3601s"}}, "limits.wallTime", "must be from 0.1s to 3600s"),
        ({"source": "", "limits": {"openFiles": 0}}, "limits.openFiles", "must be from 16 to 1024"),
        ({"source": "", "args": ["a"] * 257}, "args", "must have at most 256 items"),
        ({"source": "", "labels": dict.fromkeys(map(str, range(33)), "")}, "labels", "must have at most 32 entries"),
    ],
)
async def test_every_rule_of_the_contract_names_its_field(
    upstream: Recorder, http: httpx.AsyncClient, body: dict[str, Any], field: str, words: str
) -> None:
    response = await http.post("/v1/evaluations", json={"runtime": "python"} | body)
    assert response.status_code == 400
    (error,) = response.json()["errors"]
    assert error["field"] == field
    assert words in error["message"]


@pytest.mark.parametrize(
    ("path", "field", "message"),
    [
        ("?order_by=id", "order_by", "must be one of: create_time, create_time asc, create_time desc"),
        ("?orderBy=id", "orderBy", "must be one of: create_time, create_time asc, create_time desc"),
        ("?page_size=1001", "page_size", "must be from 0 to 1000"),
        ("?filter=" + "a" * 2049, "filter", "must be at most 2048 bytes"),
        (f"/{ID}:wait?timeout=601s", "timeout", "must be from 0s to 600s"),
        (f"/{ID}/events?after_sequence=-1", "after_sequence", "must be at least 0"),
        (f"/{ID}/output/stdin", "stream", "must be one of: stdout, stderr"),
    ],
)
async def test_rules_of_queries_are_told_in_plain_words(
    upstream: Recorder, http: httpx.AsyncClient, path: str, field: str, message: str
) -> None:
    response = await http.get(f"/v1/evaluations{path}")
    assert response.status_code == 400
    assert response.json()["errors"] == [{"field": field, "message": message}]


async def test_an_id_that_is_none_is_the_contracts_400(upstream: Recorder, http: httpx.AsyncClient) -> None:
    response = await http.get("/v1/evaluations/..%2F%00")
    assert response.status_code == 400
    assert [error["field"] for error in response.json()["errors"]] == ["id"]


async def test_a_key_the_contract_refuses_is_named_as_the_header(upstream: Recorder, http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/evaluations", json=PYTHON, headers={"idempotency-key": "a b"})
    assert response.status_code == 400
    assert [error["field"] for error in response.json()["errors"]] == ["Idempotency-Key"]


async def test_services_violations_without_protovalidate(upstream: Recorder, http: httpx.AsyncClient) -> None:
    violation = FieldViolation("evaluation.files[2].stdin_bytes[0].no_such", "words")
    upstream.prepare("CreateEvaluation", invalid_argument([violation], reason="LIMIT_TOO_LARGE"))
    response = await http.post("/v1/evaluations", json=PYTHON)
    assert response.json()["errors"] == [{"field": "files[2].stdin_bytes[0].no_such", "message": "words"}]


async def test_large_documents_are_as_small_ones(upstream: Recorder, http: httpx.AsyncClient) -> None:
    sources = [f"print({number})" + "é" * 100_000 for number in range(3)]
    made = [Evaluation(id=ID, source=source) for source in sources]
    upstream.prepare("BatchCreateEvaluations", evaluation_service_pb2.BatchCreateEvaluationsResponse(evaluations=made))
    body = {"requests": [{"evaluation": {"runtime": "python", "source": source}} for source in sources]}
    response = await http.post("/v1/evaluations:batchCreate", json=body)
    assert [each["source"] for each in response.json()["evaluations"]] == sources
    assert [each.evaluation.source for each in upstream.only.request.requests] == sources


async def test_a_client_that_leaves_ends_a_wait(upstream: Recorder, gateway: GatewayUnderTest) -> None:
    upstream.prepare("WaitEvaluation", hang)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(f"GET /v1/evaluations/{ID}:wait HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    call = await upstream.wait_for_calls(1)
    writer.close()
    async with asyncio.timeout(10):
        await call.ended.wait()
    assert call.cancelled
    assert await reader.read() == b""


async def test_a_client_that_leaves_cancels_no_run(upstream: Recorder, gateway: GatewayUnderTest) -> None:
    released = asyncio.Event()

    async def slow(request: object, context: Context) -> AsyncIterator[Evaluation]:
        await released.wait()
        yield Evaluation(id=ID)

    upstream.prepare("RunEvaluation", slow)
    body = json.dumps(PYTHON).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    head = "POST /v1/evaluations:run HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(head.encode() + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    call = await upstream.wait_for_calls(1)
    writer.close()
    await asyncio.sleep(0.2)
    assert not call.ended.is_set()
    released.set()
    async with asyncio.timeout(10):
        await call.ended.wait()
    assert not call.cancelled


async def hang(request: object, context: Context) -> AsyncIterator[Evaluation]:
    await asyncio.Event().wait()
    yield Evaluation()


async def test_the_callers_trace_is_continued(
    upstream: Recorder, http: httpx.AsyncClient, gateway: GatewayUnderTest
) -> None:
    upstream.prepare("GetEvaluation", Evaluation(id=ID))
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    gateway.spans.clear()
    response = await http.get(f"/v1/evaluations/{ID}", headers={"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"})
    assert response.headers["crucible-trace-id"] == trace_id
    assert upstream.only.metadata["traceparent"].split("-")[1] == trace_id
    await asyncio.sleep(0)
    spans = {span.name: span for span in gateway.spans.get_finished_spans()}
    server = spans["GET /v1/evaluations/{id}"]
    assert server.attributes is not None
    assert server.attributes["http.route"] == "/v1/evaluations/{id}"
    assert server.attributes["http.response.status_code"] == 200
