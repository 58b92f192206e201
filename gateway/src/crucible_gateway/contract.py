"""The REST surface as the contract states it: routes derived from `google.api.http` and `crucible.v1.policy`.

A method gets its routes by its options alone; everything that cannot be served as stated is refused at start-up.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from google.api import annotations_pb2, http_pb2  # pyright: ignore[reportMissingTypeStubs]  its wheel has none
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor

from crucible.v1 import policy_pb2
from crucible_contracts.policy import method_policy
from crucible_gateway.http_rule import Template, parse_template

BODY_WHOLE = "*"
"""The body is the request message itself."""

HTTP_BODY = "google.api.HttpBody"
DURATION = "google.protobuf.Duration"
REQUEST_ID = "request_id"
"""Field that makes a call safe to repeat; over REST also the header `Idempotency-Key`."""
TIMEOUT = "timeout"
"""Field that says how long a call may wait."""


class ContractError(Exception):
    """An rpc's options contradict its messages, or ask for what the gateway cannot do."""


class Kind(enum.Enum):
    """How an answer is rendered."""

    UNARY = "one JSON document"
    EVENTS = "Server-Sent Events, or JSON lines"
    BYTES = "bytes as they are"


@dataclass(frozen=True, slots=True)
class Route:
    """One method of HTTP on one path, and the rpc behind it."""

    rpc: MethodDescriptor
    kind: Kind
    method: str
    template: Template
    body: str
    """Field of the request that the body is, `BODY_WHOLE`, or empty: no body is taken."""
    response_body: str
    """Field of the response that the answer is; empty: the response itself."""
    event_stream: policy_pb2.EventStream | None
    byte_range: policy_pb2.ByteRange | None

    @property
    def path(self) -> str:
        """The rpc's path in gRPC."""
        return f"/{self.rpc.containing_service.full_name}/{self.rpc.name}"

    @property
    def waits(self) -> bool:
        """The rpc takes a time to wait for."""
        return is_duration(self.rpc.input_type.fields_by_name.get(TIMEOUT))

    @property
    def bound(self) -> frozenset[str]:
        """Top-level fields that path or body set, so that the query may not."""
        names = {variable.field_path.partition(".")[0] for variable in self.template.variables}
        return frozenset(names | {self.body} if self.body not in ("", BODY_WHOLE) else names)


def routes(services: Iterable[ServiceDescriptor]) -> list[Route]:
    """Every route of these services, in the contract's order. Raises `ContractError`, `TemplateError`."""
    return [route for service in services for rpc in service.methods for route in _routes_of(rpc)]


def is_duration(field: FieldDescriptor | None) -> bool:
    """Whether it is a singular `google.protobuf.Duration`."""
    return field is not None and not field.is_repeated and type_name(field) == DURATION


def type_name(field: FieldDescriptor) -> str:
    """Full name of a message field's type; empty for other fields."""
    return field.message_type.full_name if field.message_type is not None else ""


def resolve(message: Descriptor, field_path: str) -> FieldDescriptor | None:
    """The field at a dotted path of proto names; None where there is none, or a repeated one is on the way."""
    field: FieldDescriptor | None = None
    at: Descriptor | None = message
    for name in field_path.split("."):
        if at is None or (field is not None and field.is_repeated):
            return None
        field = at.fields_by_name.get(name)
        if field is None:
            return None
        at = field.message_type
    return field


def _routes_of(rpc: MethodDescriptor) -> Iterator[Route]:
    rule = _rule(rpc)
    if rule is None:
        return
    policy = method_policy(rpc)
    if policy is None or policy_pb2.MethodPolicy.GATEWAY not in policy.callers:
        msg = f"{rpc.full_name} has a path over HTTP, but its policy does not let the gateway call it"
        raise ContractError(msg)
    if rpc.client_streaming:
        msg = f"{rpc.full_name} streams its requests, which HTTP cannot carry"
        raise ContractError(msg)
    for each in (rule, *rule.additional_bindings):
        if each is not rule and each.additional_bindings:
            msg = f"{rpc.full_name}: additional_bindings may not hold others"
            raise ContractError(msg)
        yield _route(rpc, policy, each)


def _rule(rpc: MethodDescriptor) -> http_pb2.HttpRule | None:
    extension = cast("Any", annotations_pb2.http)
    options = rpc.GetOptions()
    return options.Extensions[extension] if options.HasExtension(extension) else None


def _route(rpc: MethodDescriptor, policy: policy_pb2.MethodPolicy, rule: http_pb2.HttpRule) -> Route:
    pattern = rule.WhichOneof("pattern")
    if pattern is None:
        msg = f"{rpc.full_name}: its http option names no method"
        raise ContractError(msg)
    if pattern == "custom":
        method, path = rule.custom.kind, rule.custom.path
    else:
        method, path = pattern.upper(), str(getattr(rule, pattern))
    route = Route(
        rpc=rpc,
        kind=_kind(rpc),
        method=method,
        template=parse_template(path),
        body=rule.body,
        response_body=rule.response_body,
        event_stream=policy.event_stream if policy.HasField("event_stream") else None,
        byte_range=policy.byte_range if policy.HasField("byte_range") else None,
    )
    for fault in _faults(route):
        msg = f"{rpc.full_name}: {fault}"
        raise ContractError(msg)
    return route


def _kind(rpc: MethodDescriptor) -> Kind:
    if rpc.output_type.full_name == HTTP_BODY:
        return Kind.BYTES
    return Kind.EVENTS if rpc.server_streaming else Kind.UNARY


def _faults(route: Route) -> Iterator[str]:
    request, response = route.rpc.input_type, route.rpc.output_type
    for variable in route.template.variables:
        field = resolve(request, variable.field_path)
        if field is None or field.is_repeated or (field.message_type is not None and not _textual(field)):
            yield f"the path's {{{variable.field_path}}} is not a field with a single value"
    if route.body not in ("", BODY_WHOLE) and route.body not in request.fields_by_name:
        yield f"its body names {route.body!r}, which is not a field of the request"
    if route.response_body and route.response_body not in response.fields_by_name:
        yield f"its response_body names {route.response_body!r}, which is not a field of the response"
    if route.method in ("GET", "DELETE", "HEAD") and route.body:
        yield f"{route.method} takes no body"
    stream, byte_range = route.event_stream, route.byte_range
    if route.kind is Kind.EVENTS and stream is None:
        yield "it streams messages, and its policy states no event_stream"
    if stream is not None:
        if route.kind is not Kind.EVENTS:
            yield "event_stream is stated, but it streams no messages"
        if not _is_integer(response.fields_by_name.get(stream.cursor_field)):
            yield f"event_stream.cursor_field {stream.cursor_field!r} is not an integer field of the response"
        if not _is_integer(request.fields_by_name.get(stream.resume_field)):
            yield f"event_stream.resume_field {stream.resume_field!r} is not an integer field of the request"
        if stream.kind_oneof not in response.oneofs_by_name:
            yield f"event_stream.kind_oneof {stream.kind_oneof!r} is not a oneof of the response"
    if byte_range is not None:
        if route.kind is not Kind.BYTES or not route.rpc.server_streaming:
            yield "byte_range is stated, but it streams no google.api.HttpBody"
        for name in (byte_range.offset_field, byte_range.limit_field):
            if not _is_integer(request.fields_by_name.get(name)):
                yield f"byte_range names {name!r}, which is not an integer field of the request"


_TEXTUAL = frozenset({"Timestamp", "Duration", "FieldMask"})
_WRAPPERS = frozenset(
    f"{kind}Value" for kind in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)


def is_wrapper(message: Descriptor) -> bool:
    """Whether it is one of `google.protobuf`'s messages around one scalar."""
    return message.file.package == "google.protobuf" and message.name in _WRAPPERS


def is_text(message: Descriptor) -> bool:
    """Whether its JSON form is one string: Timestamp, Duration, FieldMask."""
    return message.file.package == "google.protobuf" and message.name in _TEXTUAL


def _textual(field: FieldDescriptor) -> bool:
    message = field.message_type
    return message is not None and (is_text(message) or is_wrapper(message))


def _is_integer(field: FieldDescriptor | None) -> bool:
    integers = (
        FieldDescriptor.CPPTYPE_INT32,
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT32,
        FieldDescriptor.CPPTYPE_UINT64,
    )
    return field is not None and not field.is_repeated and field.cpp_type in integers
