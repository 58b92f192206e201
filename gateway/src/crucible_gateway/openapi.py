"""The description of the API, OpenAPI 3.1, derived from the routes, the messages and their comments."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from google.api import field_behavior_pb2  # pyright: ignore[reportMissingTypeStubs]  its wheel has none
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from buf.validate import validate_pb2
from crucible.v1 import error_reason_pb2
from crucible_contracts.proto_json import map_entry
from crucible_gateway import problems
from crucible_gateway.bindings import IDEMPOTENCY_KEY, LAST_EVENT_ID
from crucible_gateway.contract import BODY_WHOLE, REQUEST_ID, Kind, Route, is_text, is_wrapper, resolve
from crucible_gateway.descriptions import describe
from crucible_gateway.exchange import JSON
from crucible_gateway.sse import EVENT_STREAM, JSON_LINES

PACKAGE = "crucible.v1."
PROBLEM = "Problem"

Schema = dict[str, Any]


def document(served: Sequence[Route]) -> dict[str, Any]:
    """The OpenAPI document of these routes."""
    schemas = _Schemas()
    paths: dict[str, dict[str, Any]] = {}
    for route in served:
        paths.setdefault(_path(route), {})[route.method.lower()] = _Operation(route, schemas).render()
    components = {PROBLEM: _problem_schema(), **schemas.rendered}
    services = {route.rpc.containing_service.name: route.rpc.containing_service.full_name for route in served}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Crucible",
            "version": importlib.metadata.version("crucible-gateway"),
            "description": "Runs untrusted programs in gVisor sandboxes and answers with a verdict.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [
            {"name": name, "description": describe(full_name).partition("\n\n")[0]}
            for name, full_name in services.items()
        ],
        "paths": paths,
        "components": {"schemas": dict(sorted(components.items()))},
    }


class _Operation:
    """One route."""

    def __init__(self, route: Route, schemas: _Schemas) -> None:
        self._route = route
        self._rpc = route.rpc
        self._schemas = schemas

    def render(self) -> Schema:
        words = describe(self._rpc.full_name)
        operation: Schema = {
            "operationId": self._rpc.name,
            "tags": [self._rpc.containing_service.name],
            "summary": words.partition(". ")[0].partition("\n")[0].rstrip("."),
            "description": words,
        }
        parameters = [*self._path_parameters(), *self._query_parameters(), *self._header_parameters()]
        if parameters:
            operation["parameters"] = parameters
        if self._route.body:
            operation["requestBody"] = self._request_body()
        operation["responses"] = {**self._answers(), **self._failures()}
        return operation

    def _path_parameters(self) -> Iterable[Schema]:
        for variable in self._route.template.variables:
            field = resolve(self._rpc.input_type, variable.field_path)
            assert field is not None  # the contract was checked
            yield {**self._parameter(variable.field_path, field), "in": "path", "required": True}

    def _query_parameters(self) -> Iterable[Schema]:
        if self._route.body == BODY_WHOLE:
            return
        for field in self._rpc.input_type.fields:
            message = field.message_type
            if field.name in self._route.bound or map_entry(field) is not None:
                continue
            if message is None or is_text(message) or is_wrapper(message):
                yield {**self._parameter(field.name, field), "in": "query"}

    def _header_parameters(self) -> Iterable[Schema]:
        request = self._rpc.input_type
        key = request.fields_by_name.get(REQUEST_ID)
        if key is not None and self._route.body != BODY_WHOLE:
            yield {**self._parameter(IDEMPOTENCY_KEY, key), "in": "header"}
        if self._route.event_stream is not None:
            resume = request.fields_by_name[self._route.event_stream.resume_field]
            yield {**self._parameter(LAST_EVENT_ID, resume), "in": "header"}
        if self._route.byte_range is not None:
            words = "One range of bytes: `bytes=0-99`, `bytes=100-`, `bytes=-100`."
            yield {"name": "Range", "in": "header", "description": words, "schema": {"type": "string"}}

    def _parameter(self, name: str, field: FieldDescriptor) -> Schema:
        schema = self._schemas.field(field)
        words = schema.pop("description", "")
        return {"name": name, "description": words, "schema": schema}

    def _request_body(self) -> Schema:
        request = self._rpc.input_type
        if self._route.body == BODY_WHOLE:
            schema = self._schemas.message(request, without=self._route.bound)
            required = any(field.name not in self._route.bound for field in request.fields)
        else:
            schema = self._schemas.field(request.fields_by_name[self._route.body])
            required = True
        return {"required": required, "content": {JSON: {"schema": schema}}}

    def _answers(self) -> Schema:
        response = self._rpc.output_type
        trace = {"Crucible-Trace-Id": {"description": "The trace of this request.", "schema": {"type": "string"}}}
        match self._route.kind:
            case Kind.UNARY:
                whole = not self._route.response_body
                schema = (
                    self._schemas.message(response)
                    if whole
                    else self._schemas.field(response.fields_by_name[self._route.response_body])
                )
                words = describe(response.full_name) if whole else ""
                return {
                    "200": {
                        "description": words or "The answer.",
                        "headers": trace,
                        "content": {JSON: {"schema": schema}},
                    }
                }
            case Kind.EVENTS:
                stream = self._route.event_stream
                assert stream is not None  # the contract was checked
                words = (
                    f"Server-Sent Events: `id:` is `{stream.cursor_field}`, `event:` the set member of "
                    f"`{stream.kind_oneof}`, `data:` the message; an event `error` holds a problem. With "
                    f'`Accept: {JSON_LINES}` one message a line; a last line `{{"error": ...}}` holds a problem.'
                )
                schema = self._schemas.message(response)
                content = {EVENT_STREAM: {"schema": {"type": "string"}}, JSON_LINES: {"schema": schema}}
                empty = {"description": "The stream that was to be resumed is over."}
                return {"200": {"description": words, "headers": trace, "content": content}, "204": empty}
            case Kind.BYTES:
                content: Schema = {"application/octet-stream": {}}
                answers: Schema = {"200": {"description": "The bytes.", "headers": trace, "content": content}}
                if self._route.byte_range is not None:
                    header = {"description": "Which bytes, and of how many.", "schema": {"type": "string"}}
                    answers["206"] = {
                        "description": "The range that was asked for.",
                        "headers": {**trace, "Content-Range": header},
                        "content": content,
                    }
                return answers

    def _failures(self) -> Schema:
        reasons = _reasons(self._route)
        by_status: dict[int, list[str]] = {}
        for reason, status in sorted(reasons.items(), key=lambda pair: (pair[1], pair[0])):
            by_status.setdefault(status, []).append(reason)
        content = {problems.CONTENT_TYPE: {"schema": {"$ref": f"#/components/schemas/{PROBLEM}"}}}
        answers: Schema = {
            str(status): {
                "description": "\n".join(f"- `{name}`: {problems.title(name, status)}." for name in names),
                "content": content,
            }
            for status, names in by_status.items()
        }
        for status, header in _HEADERS_OF_STATUS.items():
            if status in answers:
                answers[status]["headers"] = header
        answers["default"] = {"description": "Any other failure.", "content": content}
        return answers


_HEADERS_OF_STATUS: Mapping[str, Schema] = {
    "416": {"Content-Range": {"description": "The size: `bytes */2`.", "schema": {"type": "string"}}},
    "503": {"Retry-After": {"description": "Seconds to wait before trying again.", "schema": {"type": "integer"}}},
}
_WORD = re.compile(r"[A-Z][A-Z_]+[A-Z]")
_AS_OTHER = re.compile(r"[Ee]rrors as `(\w+)`")


def _reasons(route: Route) -> dict[str, int]:
    """The reasons that the comments of method and service name, and the gateway's own, each with its status."""
    service = route.rpc.containing_service
    words = f"{describe(service.full_name)} {describe(route.rpc.full_name)}"
    for other in _AS_OTHER.findall(words):
        words += " " + describe(f"{service.full_name}.{other}")
    named = set(_WORD.findall(words)) | {
        "INVALID_FIELD",
        "HOST_NOT_ALLOWED",
        "URL_TOO_LONG",
        "HEADERS_TOO_LARGE",
        "INTERNAL",
        "DEPENDENCY_UNAVAILABLE",
        "DEADLINE_EXCEEDED",
    }
    if route.body:
        named |= {"MALFORMED_BODY", "UNSUPPORTED_MEDIA_TYPE", "BODY_TOO_LARGE", "BODY_TOO_SLOW"}
    found: dict[str, int] = {}
    for reason in named & set(error_reason_pb2.ErrorReason.keys()):
        code = describe(f"{PACKAGE}ErrorReason.{reason}").partition(".")[0]
        if code == "NOT_FOUND" and not route.template.variables:
            continue
        found[reason] = problems.status_of_name(code, reason)
    return found


class _Schemas:
    """The messages and enums that operations refer to, rendered once each."""

    def __init__(self) -> None:
        self.rendered: dict[str, Schema] = {}

    def message(self, message: Descriptor, *, without: frozenset[str] = frozenset()) -> Schema:
        """A reference; or, with fields left out, the schema itself."""
        if without:
            return self._object(message, without)
        special = _well_known(message)
        if special is not None:
            return special
        name = _name(message.full_name)
        if name not in self.rendered:
            # First its place, so that a message that holds itself ends.
            self.rendered[name] = {}
            self.rendered[name].update(self._object(message, frozenset()))
        return {"$ref": f"#/components/schemas/{name}"}

    def field(self, field: FieldDescriptor) -> Schema:
        """The schema of a field's JSON value, with its comment, its limits and whether the platform alone sets it."""
        rules = _rules(field)
        entry = map_entry(field)
        if entry is not None:
            key, value = entry
            schema: Schema = {"type": "object", "additionalProperties": self._value(value, rules.map.values)}
            if names := _limits(key, rules.map.keys):
                schema["propertyNames"] = names
            _put(schema, minProperties=rules.map.min_pairs, maxProperties=rules.map.max_pairs)
        elif field.is_repeated:
            schema = {"type": "array", "items": self._value(field, rules.repeated.items)}
            _put(schema, minItems=rules.repeated.min_items, maxItems=rules.repeated.max_items)
        else:
            schema = self._value(field, rules)
        if words := describe(field.full_name):
            schema["description"] = words
        if field_behavior_pb2.OUTPUT_ONLY in _behaviors(field):
            schema["readOnly"] = True
        return schema

    def _value(self, field: FieldDescriptor, rules: validate_pb2.FieldRules) -> Schema:
        message = field.message_type
        if message is not None:
            return self.message(message)
        enum = field.enum_type
        if enum is not None:
            return self._enum(enum)
        return {**_SCALARS[field.type], **_limits(field, rules)}

    def _enum(self, enum: EnumDescriptor) -> Schema:
        name = _name(enum.full_name)
        values = [value.name for value in enum.values if value.number]
        lines = [
            describe(enum.full_name),
            *(f"- `{value}`: {describe(f'{enum.full_name}.{value}')}" for value in values),
        ]
        self.rendered[name] = {"type": "string", "enum": values, "description": "\n".join(filter(None, lines))}
        return {"$ref": f"#/components/schemas/{name}"}

    def _object(self, message: Descriptor, without: frozenset[str]) -> Schema:
        fields = [field for field in message.fields if field.name not in without]
        schema: Schema = {
            "type": "object",
            "properties": {field.json_name: self.field(field) for field in fields},
        }
        if words := describe(message.full_name):
            schema["description"] = words
        required = [field.json_name for field in fields if _is_required(field)]
        if required:
            schema["required"] = required
        return schema


_INT32: Schema = {"type": "integer", "format": "int32"}
_UINT32: Schema = {"type": "integer", "format": "uint32"}
# Strings in every answer, since a double cannot hold them; numbers are taken as well.
_INT64: Schema = {"type": ["string", "integer"], "format": "int64", "pattern": "^-?[0-9]+$"}
_UINT64: Schema = {"type": ["string", "integer"], "format": "uint64", "pattern": "^[0-9]+$"}
_SCALARS: Mapping[int, Schema] = {
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    FieldDescriptor.TYPE_DOUBLE: {"type": "number", "format": "double"},
    FieldDescriptor.TYPE_FLOAT: {"type": "number", "format": "float"},
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_INT32: _INT32,
    FieldDescriptor.TYPE_SINT32: _INT32,
    FieldDescriptor.TYPE_SFIXED32: _INT32,
    FieldDescriptor.TYPE_UINT32: _UINT32,
    FieldDescriptor.TYPE_FIXED32: _UINT32,
    FieldDescriptor.TYPE_INT64: _INT64,
    FieldDescriptor.TYPE_SINT64: _INT64,
    FieldDescriptor.TYPE_SFIXED64: _INT64,
    FieldDescriptor.TYPE_UINT64: _UINT64,
    FieldDescriptor.TYPE_FIXED64: _UINT64,
}


def _well_known(message: Descriptor) -> Schema | None:
    if message.file.package != "google.protobuf":
        return None
    match message.name:
        case "Timestamp":
            return {"type": "string", "format": "date-time"}
        case "Duration":
            return {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$", "examples": ["1.5s"]}
        case "FieldMask":
            return {"type": "string"}
        case "Struct" | "Any" | "Empty":
            return {"type": "object"}
        case "ListValue":
            return {"type": "array"}
        case "Value":
            return {}
        case _:
            scalar = _SCALARS[message.fields_by_name["value"].type]
            kinds = cast("list[str] | str", scalar["type"])
            return {**scalar, "type": [*([kinds] if isinstance(kinds, str) else kinds), "null"]}


def _rules(field: FieldDescriptor) -> validate_pb2.FieldRules:
    return field.GetOptions().Extensions[validate_pb2.field]


def _behaviors(field: FieldDescriptor) -> Sequence[int]:
    return field.GetOptions().Extensions[cast("Any", field_behavior_pb2.field_behavior)]


def _is_required(field: FieldDescriptor) -> bool:
    """Always there: in requests what the caller must set, in answers what the platform sets and prints as default."""
    behaviors = _behaviors(field)
    if field_behavior_pb2.REQUIRED in behaviors:
        return True
    plain = not field.has_presence and field.enum_type is None and not field.is_repeated
    return plain and field_behavior_pb2.OUTPUT_ONLY in behaviors


def _limits(field: FieldDescriptor, rules: validate_pb2.FieldRules) -> Schema:
    """The contract's rules for one value that JSON Schema can say."""
    kind = rules.WhichOneof("type")
    schema: Schema = {}
    if kind == "string":
        text = rules.string
        _put(schema, minLength=text.min_len or text.len)
        # Characters are at most as many as bytes.
        _put(schema, maxLength=text.max_len or text.max_bytes or text.len, pattern=text.pattern)
        if text.uuid:
            schema["format"] = "uuid"
        if chosen := [value for value in getattr(text, "in") if value]:
            schema["enum"] = chosen
    elif kind == "bytes":
        # In base64 four characters stand for three bytes.
        _put(schema, maxLength=(rules.bytes.max_len + 2) // 3 * 4)
    elif kind in ("int32", "int64", "uint32", "uint64", "double", "float"):
        number = getattr(rules, kind)
        bounds = {"gte": "minimum", "lte": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}
        for rule, word in bounds.items():
            if number.HasField(rule):
                schema[word] = getattr(number, rule)
    return schema


def _put(schema: Schema, **members: object) -> None:
    schema.update({name: value for name, value in members.items() if value})


def _path(route: Route) -> str:
    """The template as OpenAPI writes it: variables by name alone."""
    parts: list[str] = []
    at = 0
    for variable in route.template.variables:
        parts += route.template.segments[at : variable.start]
        parts.append(f"{{{variable.field_path}}}")
        at = variable.end
    parts += route.template.segments[at:]
    return "/" + "/".join(parts) + (f":{route.template.verb}" if route.template.verb else "")


def _name(full_name: str) -> str:
    return full_name.removeprefix(PACKAGE)


def _problem_schema() -> Schema:
    reasons = [name for name, number in error_reason_pb2.ErrorReason.items() if number]
    text: Schema = {"type": "string"}
    return {
        "type": "object",
        "description": "A failure, after RFC 9457.",
        "required": ["type", "title", "status", "detail", "reason", "metadata"],
        "properties": {
            "type": {"type": "string", "format": "uri", "description": f"`{problems.TYPE_PREFIX}` and the reason."},
            "title": {**text, "description": "The reason in words."},
            "status": {"type": "integer"},
            "detail": {**text, "description": "What went wrong this time."},
            "reason": {**text, "description": "What programs decide by.", "examples": reasons[:1]},
            "metadata": {
                "type": "object",
                "description": "What belongs to the reason.",
                "additionalProperties": text,
            },
            "errors": {
                "type": "array",
                "description": "Each field that is wrong, named as the caller wrote it.",
                "items": {
                    "type": "object",
                    "required": ["field", "message"],
                    "properties": {"field": text, "message": text},
                },
            },
            "traceId": {**text, "description": "What an operator needs to find it."},
        },
    }
