"""The description of the API is valid, whole, and of the contract as it stands."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from google.protobuf.descriptor import ServiceDescriptor
from jsonschema import Draft202012Validator  # pyright: ignore[reportMissingTypeStubs]  untyped
from openapi_spec_validator import OpenAPIV31SpecValidator

from crucible.v1 import error_reason_pb2
from crucible_gateway import problems
from crucible_gateway.app import SCHEDULER_SERVICES, STORE_SERVICES
from crucible_gateway.contract import routes
from crucible_gateway.descriptions import describe
from crucible_gateway.openapi import document

ROOT = Path(__file__).resolve().parents[2]
SERVICES: Sequence[ServiceDescriptor] = (*SCHEDULER_SERVICES, *STORE_SERVICES)


@pytest.fixture(scope="module")
def api() -> dict[str, Any]:
    return document(routes(SERVICES))


def walk(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        yield members
        for each in members.values():
            yield from walk(each)
    elif isinstance(value, list):
        for item in cast("list[object]", value):
            yield from walk(item)


def test_it_is_valid(api: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(api).validate()
    for schema in api["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_every_method_with_a_path_is_there(api: dict[str, Any]) -> None:
    operations = {item["operationId"] for methods in api["paths"].values() for item in methods.values()}
    assert operations == {method.name for service in SERVICES for method in service.methods}


def test_every_reference_leads_somewhere(api: dict[str, Any]) -> None:
    known = {f"#/components/schemas/{name}" for name in api["components"]["schemas"]}
    references = {each["$ref"] for each in walk(api) if "$ref" in each}
    assert references <= known
    assert not [each for each in walk(api) for value in each.get("enum", []) if "UNSPECIFIED" in value]


def test_everything_of_the_contract_is_described(api: dict[str, Any]) -> None:
    for name, schema in api["components"]["schemas"].items():
        assert schema.get("description"), name
        for key, each in schema.get("properties", {}).items():
            assert each.get("description") or name == problems.__name__ or name == "Problem", f"{name}.{key}"
    for methods in api["paths"].values():
        for item in methods.values():
            assert item["summary"]
            assert item["description"]


def test_the_contracts_limits_are_there(api: dict[str, Any]) -> None:
    schemas = api["components"]["schemas"]
    evaluation, limits = schemas["Evaluation"]["properties"], schemas["Limits"]["properties"]
    assert evaluation["runtime"]["pattern"] == "^[a-z][a-z0-9.-]{0,62}$"
    assert evaluation["source"]["maxLength"] == 262144
    assert evaluation["files"]["maxItems"] == 100
    assert evaluation["env"]["maxProperties"] == 128
    assert evaluation["labels"]["additionalProperties"]["maxLength"] == 255
    assert evaluation["status"]["readOnly"]
    assert schemas["Evaluation"]["required"][0] == "runtime"
    assert (limits["processes"]["minimum"], limits["processes"]["maximum"]) == (1, 512)
    assert limits["memoryBytes"]["maximum"] == 4294967296
    assert schemas["Evaluation.Priority"]["enum"] == ["LOW", "NORMAL", "HIGH"]


def test_failures_come_from_the_contracts_words(api: dict[str, Any]) -> None:
    create = api["paths"]["/v1/evaluations"]["post"]["responses"]
    assert "UNKNOWN_RUNTIME" in create["400"]["description"]
    assert "REQUEST_ID_REUSED" in create["409"]["description"]
    assert {"413", "415", "503", "default"} <= set(create)
    cancel = api["paths"]["/v1/evaluations/{id}:cancel"]["post"]["responses"]
    assert "EVALUATION_FINAL" in cancel["409"]["description"]
    run = api["paths"]["/v1/evaluations:run"]["post"]["responses"]
    assert "REQUEST_ID_REUSED" in run["409"]["description"], "its comment refers to create's"
    assert "404" not in api["paths"]["/v1/evaluations"]["get"]["responses"]
    output = api["paths"]["/v1/evaluations/{evaluation_id}/output/{stream}"]["get"]["responses"]
    assert {"200", "206", "404", "416"} <= set(output)


def test_every_operation_tells_what_any_request_may_meet(api: dict[str, Any]) -> None:
    for path, methods in api["paths"].items():
        for item in methods.values():
            assert {"400", "403", "414", "431", "500", "503", "504"} <= set(item["responses"]), path
            assert "Retry-After" in item["responses"]["503"]["headers"]


def test_the_filter_language_is_described(api: dict[str, Any]) -> None:
    parameters = {each["name"]: each for each in api["paths"]["/v1/evaluations"]["get"]["parameters"]}
    for name in ("runtime", "labels.<name>", "status", "priority", "cause", "result.outcome", "create_time"):
        assert f"`{name}`" in parameters["filter"]["description"]
    assert parameters["order_by"]["schema"]["enum"] == ["create_time", "create_time asc", "create_time desc"]


def test_every_reason_has_a_title_and_a_code() -> None:
    for reason, number in error_reason_pb2.ErrorReason.items():
        if number:
            code = describe(f"crucible.v1.ErrorReason.{reason}").partition(".")[0]
            assert 400 <= problems.status_of_name(code, reason) < 600
            assert len(problems.title(reason, 500)) > 10
            assert problems.title(reason, 500) != problems.title("NO_SUCH", 500)


def test_the_contracts_comments_are_current() -> None:
    script = ROOT / "gateway" / "generate_descriptions.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


async def test_it_is_served_with_a_page_that_fetches_nothing_else(http: httpx.AsyncClient, api: dict[str, Any]) -> None:
    response = await http.get("/openapi.json")
    assert response.json() == api
    again = await http.get("/openapi.json", headers={"if-none-match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    page = await http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "//" not in page.text.replace("// ", ""), "no address of another host"
