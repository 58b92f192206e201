"""Requests over HTTP into request messages: each field from the one place it belongs to."""

from __future__ import annotations

import asyncio
import json
import urllib.parse
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from crucible_chassis.errors import FieldViolation, ServiceError, invalid_argument
from crucible_contracts.proto_json import map_entry
from crucible_gateway import json_reader
from crucible_gateway.contract import BODY_WHOLE, REQUEST_ID, Route, is_text, is_wrapper
from crucible_gateway.exchange import JSON, LARGE_BYTES, Exchange
from crucible_gateway.json_reader import Faults, WrongValueError
from crucible_gateway.problems import fault
from crucible_gateway.strict_json import MalformedJsonError, read_json

IDEMPOTENCY_KEY = "Idempotency-Key"
LAST_EVENT_ID = "Last-Event-ID"

MAX_QUERY_FIELDS = 100
"""Fields in one query."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A request ready to be sent."""

    message: Message
    spoken: Mapping[str, str]
    """What the caller called top-level fields that are not from the body."""
    resumed: bool
    """The caller named the last event it has seen, in the header or in the query."""


class Binder:
    """Builds the request messages of one route."""

    def __init__(self, route: Route) -> None:
        self._route = route
        request = route.rpc.input_type
        self._request: Callable[[], Message] = message_factory.GetMessageClass(request)
        self._bound = route.bound
        own = request.fields_by_name.get(REQUEST_ID)
        self._takes_key = own is not None and own.type == FieldDescriptor.TYPE_STRING
        self._keyed_lists = tuple(field.name for field in request.fields if _is_keyed_list(field))

    async def bind(self, exchange: Exchange, variables: Mapping[str, str]) -> Bound:
        """The request's message. `ServiceError` INVALID_ARGUMENT names every fault that was found."""
        message = self._request()
        spoken: dict[str, str] = {}
        faults = Faults()
        await self._read_body(exchange, message, faults)
        self._read_query(exchange.query, message, spoken, faults)
        for path, text in variables.items():
            if self._route.body == BODY_WHOLE and _is_set(message, path):
                faults.add(_json_name(message, path), "is set by the path")
                continue
            spoken[path.partition(".")[0]] = path.partition(".")[0]
            _set_text(message, path, text, path, faults)
        resumed = self._read_headers(exchange, message, spoken, faults)
        if faults.found:
            raise invalid_argument(faults.found)
        self._fill_request_ids(message)
        return Bound(message, spoken, resumed)

    async def _read_body(self, exchange: Exchange, message: Message, faults: Faults) -> None:
        if not self._route.body:
            await exchange.refuse_body()
            return
        data = await exchange.read_body()
        whole = self._route.body == BODY_WHOLE
        if not data and whole and not self._unbound():
            return
        _check_media_type(exchange)
        if not data:
            raise fault("MALFORMED_BODY", "the body is empty: send a JSON object")
        if len(data) > LARGE_BYTES:
            await asyncio.to_thread(self._read_document, data, message, faults)
        else:
            self._read_document(data, message, faults)

    def _read_document(self, data: bytes, message: Message, faults: Faults) -> None:
        try:
            value = read_json(data)
        except MalformedJsonError as exc:
            raise fault("MALFORMED_BODY", str(exc)) from exc
        if self._route.body == BODY_WHOLE:
            json_reader.read_message(value, message, "", faults)
        else:
            body = self._route.rpc.input_type.fields_by_name[self._route.body]
            json_reader.read_field(value, message, body, "", faults)
            faults.found = [self._hinted(each, body) for each in faults.found]

    def _read_query(self, query: bytes, message: Message, spoken: dict[str, str], faults: Faults) -> None:
        if not query:
            return
        try:
            pairs = urllib.parse.parse_qsl(
                query.decode("ascii"),
                keep_blank_values=True,
                strict_parsing=True,
                errors="strict",
                max_num_fields=MAX_QUERY_FIELDS,
            )
        except ValueError as exc:
            msg = f"the query cannot be read: send up to {MAX_QUERY_FIELDS} name=value pairs in UTF-8"
            raise fault("INVALID_FIELD", msg) from exc
        seen: set[str] = set()
        for name, text in pairs:
            field = self._query_field(name)
            shown = name[: json_reader.MAX_KEY_CHARS]
            if field is None:
                faults.add(shown, self._unknown_parameter(name))
                continue
            path, descriptor = field
            if path in seen and not descriptor.is_repeated:
                faults.add(shown, "is given twice")
                continue
            seen.add(path)
            spoken.setdefault(path.partition(".")[0], name.partition(".")[0])
            _set_text(message, path, text, shown, faults)

    def _hinted(self, violation: FieldViolation, body: FieldDescriptor) -> FieldViolation:
        """A field that the body does not have, and the query does, is sent in the wrong place."""
        known = body.message_type is not None and json_reader.field_by_name(body.message_type, violation.field)
        if known or self._query_field(violation.field) is None:
            return violation
        return FieldViolation(violation.field, "is a query parameter: send it in the URL, not in the body")

    def _unknown_parameter(self, name: str) -> str:
        if self._route.body == BODY_WHOLE:
            return "is not a query parameter: this method takes everything in the body"
        request = self._route.rpc.input_type
        body = request.fields_by_name[self._route.body].message_type if self._route.body else None
        if body is not None and json_reader.field_by_name(body, name.partition(".")[0]) is not None:
            return "is a field of the body: send it there, not in the URL"
        names = [field.name for field in request.fields if self._query_field(field.name) is not None]
        takes = f"; it takes {', '.join(names)}" if names else ""
        return f"is not a query parameter of this method{json_reader.did_you_mean(name, names) or takes}"

    def _query_field(self, name: str) -> tuple[str, FieldDescriptor] | None:
        """A leaf of the request by a dotted name in either spelling, with its path in proto names."""
        if self._route.body == BODY_WHOLE:
            return None
        at: Descriptor | None = self._route.rpc.input_type
        path: list[str] = []
        field: FieldDescriptor | None = None
        for part in name.split("."):
            if at is None or (field is not None and field.is_repeated):
                return None
            field = json_reader.field_by_name(at, part)
            if field is None or (not path and field.name in self._bound):
                return None
            path.append(field.name)
            at = field.message_type
        if field is None or not _is_leaf(field):
            return None
        return ".".join(path), field

    def _read_headers(self, exchange: Exchange, message: Message, spoken: dict[str, str], faults: Faults) -> bool:
        key = exchange.single_header(IDEMPOTENCY_KEY)
        if key is not None:
            self._use_key(key, message, spoken, faults)
        stream = self._route.event_stream
        last = exchange.single_header(LAST_EVENT_ID) if stream is not None else None
        if stream is None:
            return False
        if not last:
            return bool(getattr(message, stream.resume_field))
        # A browser that reconnects repeats the query of the first connection: the header is the newer word.
        spoken[stream.resume_field] = LAST_EVENT_ID
        message.ClearField(stream.resume_field)
        _set_text(message, stream.resume_field, last, LAST_EVENT_ID, faults)
        return True

    def _use_key(self, key: str, message: Message, spoken: dict[str, str], faults: Faults) -> None:
        if not self._takes_key:
            if self._keyed_lists:
                faults.add(IDEMPOTENCY_KEY, "is not accepted here: set requestId in each of the requests")
            return
        own = str(getattr(message, REQUEST_ID))
        if not key:
            faults.add(IDEMPOTENCY_KEY, "must not be empty")
        elif own and own != key:
            faults.add(IDEMPOTENCY_KEY, f"must equal {spoken.get(REQUEST_ID, REQUEST_ID)}")
        else:
            spoken.setdefault(REQUEST_ID, IDEMPOTENCY_KEY)
            setattr(message, REQUEST_ID, key)

    def _fill_request_ids(self, message: Message) -> None:
        """Without an id the gateway's own retries could do the work twice."""
        if self._takes_key and not getattr(message, REQUEST_ID):
            setattr(message, REQUEST_ID, str(uuid.uuid4()))
        for name in self._keyed_lists:
            for item in getattr(message, name):
                if not item.request_id:
                    item.request_id = str(uuid.uuid4())

    def _unbound(self) -> bool:
        """Whether the request has fields that the path does not set."""
        return any(field.name not in self._bound for field in self._route.rpc.input_type.fields)


def _is_keyed_list(field: FieldDescriptor) -> bool:
    message = field.message_type
    if not field.is_repeated or message is None or map_entry(field) is not None:
        return False
    key = message.fields_by_name.get(REQUEST_ID)
    return key is not None and key.type == FieldDescriptor.TYPE_STRING


def _is_leaf(field: FieldDescriptor) -> bool:
    message = field.message_type
    return message is None or is_text(message) or is_wrapper(message)


def _is_set(message: Message, path: str) -> bool:
    top = path.partition(".")[0]
    return any(field.name == top for field, _ in message.ListFields())


def _json_name(message: Message, path: str) -> str:
    return cast("Descriptor", message.DESCRIPTOR).fields_by_name[path.partition(".")[0]].json_name


def _set_text(message: Message, path: str, text: str, shown: str, faults: Faults) -> None:
    """Sets the leaf at a dotted path from text; adds to it where it is repeated."""
    *way, name = path.split(".")
    at: Any = message
    for part in way:
        at = getattr(at, part)
    field = cast("Descriptor", at.DESCRIPTOR).fields_by_name[name]
    try:
        if _is_message(field):
            target = getattr(at, name)
            json_reader.read_text(text, target.add() if field.is_repeated else target)
        elif field.is_repeated:
            getattr(at, name).append(json_reader.read_scalar_text(text, field))
        else:
            setattr(at, name, json_reader.read_scalar_text(text, field))
    except WrongValueError as exc:
        faults.add(shown, str(exc))


def _is_message(field: FieldDescriptor) -> bool:
    message = field.message_type
    return message is not None


def _check_media_type(exchange: Exchange) -> None:
    coding = exchange.headers.get("content-encoding", "identity")
    if coding.strip().lower() != "identity":
        # A few bytes can unfold to gigabytes.
        raise _unsupported(
            f"the body must not be compressed, and its Content-Encoding is {_shown(coding)}", content_encoding=coding
        )
    given = exchange.headers.get("content-type", "")
    essence, _, parameters = given.partition(";")
    charset = parameters.strip().lower().replace('"', "")
    if essence.strip().lower() == JSON and charset in ("", "charset=utf-8"):
        return
    shown = f", and its Content-Type is {_shown(given)}" if given else ": send Content-Type: application/json"
    raise _unsupported(f"the body must be {JSON} in UTF-8{shown}", content_type=given)


def _unsupported(words: str, **given: str) -> ServiceError:
    metadata = {name: _shown(value) for name, value in given.items()}
    return ServiceError(grpc.StatusCode.INVALID_ARGUMENT, "UNSUPPORTED_MEDIA_TYPE", words, metadata=metadata)


def _shown(header: str) -> str:
    return json.dumps(header[:128])[1:-1]
