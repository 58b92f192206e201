"""Routes come from the contract alone; what contradicts itself is refused at start-up."""

from typing import Any, cast

import pytest
from google.api import annotations_pb2  # pyright: ignore[reportMissingTypeStubs]  its wheel has no py.typed
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor

from crucible.v1 import policy_pb2
from crucible_gateway.app import SCHEDULER_SERVICES, STORE_SERVICES
from crucible_gateway.contract import ContractError, Kind, routes
from crucible_gateway.http_rule import TemplateError

# Untyped: its wheel has no stubs.
HTTP = cast("Any", annotations_pb2.http)


def service(name: str, **http: str) -> tuple[descriptor_pb2.FileDescriptorProto, descriptor_pb2.MethodDescriptorProto]:
    """A file with one service of one method, `Ask(Question) returns (Answer)`, open to the gateway."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"test/{name}.proto",
        package=f"test.{name}",
        syntax="proto3",
        dependency=["google/api/annotations.proto", "crucible/v1/policy.proto", "google/api/httpbody.proto"],
    )
    for message in ("Question", "Answer"):
        made = file.message_type.add(name=message)
        made.field.add(name="id", number=1, type=9, label=1)
        made.field.add(name="number", number=2, type=5, label=1)
        made.field.add(name="many", number=3, type=9, label=3)
    method = file.service.add(name="Asking").method.add(
        name="Ask", input_type=f".test.{name}.Question", output_type=f".test.{name}.Answer"
    )
    method.options.Extensions[policy_pb2.policy].callers.append(policy_pb2.MethodPolicy.GATEWAY)
    rule = method.options.Extensions[HTTP]
    for key, value in http.items():
        setattr(rule, key, value)
    return file, method


def load(file: descriptor_pb2.FileDescriptorProto) -> ServiceDescriptor:
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindFileByName(file.name).services_by_name["Asking"]


def test_an_rpc_with_a_path_is_a_route() -> None:
    file, _ = service("plain", post="/v9/{id}:ask", body="*")
    [route] = routes([load(file)])
    assert (route.method, route.template.text, route.kind) == ("POST", "/v9/{id}:ask", Kind.UNARY)


def test_additional_bindings_are_routes() -> None:
    file, method = service("more", get="/v9/{id}")
    rule = method.options.Extensions[HTTP]
    rule.additional_bindings.add(put="/v9/{id}", body="*")
    assert [route.method for route in routes([load(file)])] == ["GET", "PUT"]


def test_an_rpc_without_a_path_is_none() -> None:
    file, method = service("silent")
    method.options.ClearExtension(HTTP)
    assert routes([load(file)]) == []


@pytest.mark.parametrize(
    ("name", "http", "words"),
    [
        ("a", {"get": "/v9/{nothing}"}, "nothing"),
        ("b", {"get": "/v9/{many}"}, "many"),
        ("c", {"post": "/v9", "body": "nothing"}, "nothing"),
        ("d", {"get": "/v9", "response_body": "nothing"}, "nothing"),
        ("e", {"get": "/v9", "body": "*"}, "no body"),
        ("f", {"body": "*"}, "names no method"),
    ],
)
def test_a_rule_that_does_not_fit_is_refused(name: str, http: dict[str, str], words: str) -> None:
    file, _ = service(f"bad_{name}", **http)
    with pytest.raises(ContractError, match=words):
        routes([load(file)])


def test_a_template_that_is_none_is_refused() -> None:
    file, _ = service("template", get="/v9/{id")
    with pytest.raises(TemplateError):
        routes([load(file)])


def test_policies_are_held() -> None:
    file, method = service("closed", get="/v9")
    method.options.Extensions[policy_pb2.policy].callers[:] = [policy_pb2.MethodPolicy.STORE]
    with pytest.raises(ContractError, match="gateway"):
        routes([load(file)])

    file, method = service("numbers", get="/v9")
    method.server_streaming = True
    with pytest.raises(ContractError, match="event_stream"):
        routes([load(file)])

    file, method = service("cursor", get="/v9/x")
    method.server_streaming = True
    stream = method.options.Extensions[policy_pb2.policy].event_stream
    stream.cursor_field, stream.resume_field, stream.kind_oneof = "id", "number", "kind"
    with pytest.raises(ContractError, match="cursor_field"):
        routes([load(file)])

    file, method = service("ranged", get="/v9/y")
    method.options.Extensions[policy_pb2.policy].byte_range.offset_field = "number"
    with pytest.raises(ContractError, match="byte_range"):
        routes([load(file)])


def test_the_contract_of_today_is_served() -> None:
    found = routes([*SCHEDULER_SERVICES, *STORE_SERVICES])
    assert {route.rpc.name for route in found} >= {"CreateEvaluation", "WatchEvaluation", "ReadOutput", "ListRuntimes"}
    kinds = {route.rpc.name: route.kind for route in found}
    assert kinds["WatchEvaluation"] is Kind.EVENTS
    assert kinds["ReadOutput"] is Kind.BYTES
