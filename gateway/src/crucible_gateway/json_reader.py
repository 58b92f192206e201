"""JSON values into messages, by the rules of proto3 JSON, with every fault named by the path the caller wrote.

Both spellings of a name are taken (`memoryBytes`, `memory_bytes`). Faults are collected, not raised at the first, so
that a caller sees them together. What the contract forbids beyond types is the services' to say.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import functools
import json
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, cast

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from crucible_chassis.errors import FieldViolation
from crucible_contracts.proto_json import map_entry
from crucible_gateway.contract import is_text, is_wrapper

MAX_FAULTS = 20
"""Faults named of one request."""
MAX_DEPTH = 64
"""Messages in messages."""
MAX_KEY_CHARS = 64
"""Of a caller's key in the name of a fault."""


class WrongValueError(ValueError):
    """A value does not fit its field. Its words may be shown to the caller."""


class Faults:
    """What is wrong with a request so far."""

    def __init__(self) -> None:
        self.found: list[FieldViolation] = []

    @property
    def full(self) -> bool:
        """No more are named."""
        return len(self.found) >= MAX_FAULTS

    def add(self, field: str, description: str) -> None:
        """Names one; beyond `MAX_FAULTS` they are dropped."""
        if not self.full:
            self.found.append(FieldViolation(field, description))


def read_message(value: object, message: Message, path: str, faults: Faults, depth: int = 0) -> None:
    """Fills a message from a JSON value. `path` is the value's name, empty for the whole body."""
    if depth > MAX_DEPTH:
        faults.add(path, "is nested too deeply")
        return
    descriptor = cast("Descriptor", message.DESCRIPTOR)
    if descriptor.file.package == "google.protobuf" and descriptor.name != "Empty":
        try:
            _read_well_known(value, message)
        except WrongValueError as exc:
            faults.add(path, str(exc))
        return
    if not isinstance(value, dict):
        faults.add(path, f"must be an object, not {_kind(value)}")
        return
    members = cast("dict[str, object]", value)
    names = _names(descriptor)
    seen: set[str] = set()
    for key, item in members.items():
        if faults.full:
            return
        field = names.get(key)
        if field is None:
            faults.add(_join(path, _shown(key)), _unknown(key, descriptor))
            continue
        name = _join(path, field.json_name)
        if field.name in seen:
            faults.add(name, f"is given twice, as {field.json_name} and {field.name}")
            continue
        seen.add(field.name)
        if item is None and not _takes_null(field):
            continue
        oneof = field.containing_oneof
        if oneof is not None and (other := message.WhichOneof(oneof.name)) is not None:
            faults.add(name, f"cannot be combined with {descriptor.fields_by_name[other].json_name}")
            continue
        read_field(item, message, field, name, faults, depth)


def read_scalar(value: object, field: FieldDescriptor) -> Any:  # noqa: ANN401  of the field's own type
    """A JSON value as the field's type. `WrongValueError`: it does not fit."""
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _read_bytes(value)
    if field.enum_type is not None:
        return _read_enum(value, field.enum_type)
    return _SCALARS[field.cpp_type](value)


def read_text(text: str, message: Message) -> None:
    """Fills a Timestamp, Duration, FieldMask or wrapper from text, as it stands in paths and queries."""
    descriptor = cast("Descriptor", message.DESCRIPTOR)
    if is_wrapper(descriptor):
        setattr(message, "value", read_scalar_text(text, descriptor.fields_by_name["value"]))  # noqa: B010  no stub
    else:
        _read_well_known(text, message)


def read_scalar_text(text: str, field: FieldDescriptor) -> Any:  # noqa: ANN401  of the field's own type
    """Text of a path or a query as the field's type. `WrongValueError`: it does not fit."""
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        if text not in ("true", "false"):
            msg = "must be true or false"
            raise WrongValueError(msg)
        return text == "true"
    if field.enum_type is not None and re.fullmatch(r"-?[0-9]{1,10}", text):
        return _read_enum(int(text), field.enum_type)
    return read_scalar(text, field)


def field_by_name(descriptor: Descriptor, name: str) -> FieldDescriptor | None:
    """A field by either of its spellings."""
    return _names(descriptor).get(name)


def read_field(
    item: object, message: Message, field: FieldDescriptor, name: str, faults: Faults, depth: int = 0
) -> None:
    """Fills one field of a message from a JSON value. `name` is the value's name, empty where it is the whole body."""
    entry = map_entry(field)
    if entry is not None:
        _read_map(item, getattr(message, field.name), entry, name, faults, depth)
    elif field.is_repeated:
        _read_list(item, message, field, name, faults, depth)
    elif field.message_type is not None:
        child = cast("Message", getattr(message, field.name))
        child.SetInParent()
        read_message(item, child, name, faults, depth + 1)
    else:
        try:
            setattr(message, field.name, read_scalar(item, field))
        except WrongValueError as exc:
            faults.add(name, str(exc))


def _read_list(item: object, message: Message, field: FieldDescriptor, name: str, faults: Faults, depth: int) -> None:
    if not isinstance(item, list):
        faults.add(name, f"must be an array, not {_kind(item)}")
        return
    target = getattr(message, field.name)
    for index, element in enumerate(cast("list[object]", item)):
        if faults.full:
            return
        place = f"{name}[{index}]"
        if element is None and not _takes_null(field):
            faults.add(place, "must not be null")
        elif field.message_type is not None:
            read_message(element, target.add(), place, faults, depth + 1)
        else:
            try:
                target.append(read_scalar(element, field))
            except WrongValueError as exc:
                faults.add(place, str(exc))


def _read_map(
    item: object,
    target: Any,  # noqa: ANN401  a map of any types
    entry: tuple[FieldDescriptor, FieldDescriptor],
    name: str,
    faults: Faults,
    depth: int,
) -> None:
    if not isinstance(item, dict):
        faults.add(name, f"must be an object, not {_kind(item)}")
        return
    key_field, value_field = entry
    for key, element in cast("dict[str, object]", item).items():
        if faults.full:
            return
        place = f"{name}[{json.dumps(_shown(key), ensure_ascii=False)}]"
        if element is None and not _takes_null(value_field):
            faults.add(place, "must not be null")
            continue
        try:
            index = read_scalar_text(key, key_field)
            if value_field.message_type is not None:
                read_message(element, target[index], place, faults, depth + 1)
            else:
                target[index] = read_scalar(element, value_field)
        except WrongValueError as exc:
            faults.add(place, str(exc))


_DURATION = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,9})?s")
_TIMESTAMP = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})"
)
_FORMS = {
    "Duration": (_DURATION, 'must be a duration in seconds, such as "1.5s"'),
    "Timestamp": (_TIMESTAMP, 'must be a time, such as "2026-01-31T00:00:00Z"'),
    "FieldMask": (re.compile(r"[A-Za-z0-9_.,]{0,4096}"), 'must be field names joined by commas, such as "a,b.c"'),
}


def _read_well_known(value: object, message: Message) -> None:
    descriptor = cast("Descriptor", message.DESCRIPTOR)
    if is_wrapper(descriptor):
        setattr(message, "value", read_scalar(value, descriptor.fields_by_name["value"]))  # noqa: B010  no stub
        return
    if is_text(descriptor):
        form, words = _FORMS[descriptor.name]
        if not isinstance(value, str) or not form.fullmatch(value):
            raise WrongValueError(words)
    else:
        words = "is not valid for this field"
    try:
        json_format.ParseDict(cast("dict[str, Any]", value), message, max_recursion_depth=MAX_DEPTH)
    except (json_format.ParseError, ValueError, OverflowError, TypeError) as exc:
        raise WrongValueError(words) from exc


def _read_bool(value: object) -> bool:
    if not isinstance(value, bool):
        msg = f"must be true or false, not {_kind(value)}"
        raise WrongValueError(msg)
    return value


def _read_str(value: object) -> str:
    if not isinstance(value, str):
        msg = f"must be a string, not {_kind(value)}"
        raise WrongValueError(msg)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            msg = "contains an unpaired surrogate"
            raise WrongValueError(msg) from exc
    return value


def _read_bytes(value: object) -> bytes:
    if not isinstance(value, str):
        msg = f"must be a base64 string, not {_kind(value)}"
        raise WrongValueError(msg)
    text = value.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as exc:
        msg = "must be base64"
        raise WrongValueError(msg) from exc


@functools.cache
def _entries(enum: EnumDescriptor) -> dict[str, int]:
    return {entry.name: entry.number for entry in enum.values}


def _read_enum(value: object, enum: EnumDescriptor) -> int:
    # Not `in values_by_name`, which raises where the text has an unpaired surrogate.
    if isinstance(value, str) and (entry := _entries(enum).get(value)) is not None:
        return entry
    if isinstance(value, int) and not isinstance(value, bool) and -(2**31) <= value < 2**31:
        # An unknown number is the contract's to refuse.
        return value
    names = ", ".join(entry.name for entry in enum.values if entry.number)
    given = json.dumps(_shown(value), ensure_ascii=False) if isinstance(value, str) else _kind(value)
    msg = f"must be one of {names}, not {given}"
    raise WrongValueError(msg)


def _shown(text: str) -> str:
    """A caller's text as it may stand in an answer."""
    return text[:MAX_KEY_CHARS].encode(errors="replace").decode()


def _integer(bits: int, *, signed: bool) -> Callable[[object], int]:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    words = f"must be an integer from {low} to {high}"
    form = re.compile(r"-?[0-9]{1,20}")

    def read(value: object) -> int:
        if (isinstance(value, str) and form.fullmatch(value)) or (isinstance(value, float) and value.is_integer()):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise WrongValueError(words)
        return value

    return read


def _real(limit: float) -> Callable[[object], float]:
    def read(value: object) -> float:
        if isinstance(value, str) and value in ("NaN", "Infinity", "-Infinity"):
            return float(value)
        if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,32}(\.[0-9]{1,32})?([eE][+-]?[0-9]{1,3})?", value):
            value = float(value)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            msg = f"must be a number, not {_kind(value)}"
            raise WrongValueError(msg)
        if not abs(value) <= limit or math.isinf(value):
            msg = "is out of range"
            raise WrongValueError(msg)
        return float(value)

    return read


_SCALARS: dict[int, Callable[[object], Any]] = {
    FieldDescriptor.CPPTYPE_INT32: _integer(32, signed=True),
    FieldDescriptor.CPPTYPE_INT64: _integer(64, signed=True),
    FieldDescriptor.CPPTYPE_UINT32: _integer(32, signed=False),
    FieldDescriptor.CPPTYPE_UINT64: _integer(64, signed=False),
    FieldDescriptor.CPPTYPE_DOUBLE: _real(1.7976931348623157e308),
    FieldDescriptor.CPPTYPE_FLOAT: _real(3.4028234663852886e38),
    FieldDescriptor.CPPTYPE_BOOL: _read_bool,
    FieldDescriptor.CPPTYPE_STRING: _read_str,
}


@functools.cache
def _names(descriptor: Descriptor) -> dict[str, FieldDescriptor]:
    """Fields by both of their spellings. Cached: one entry for each message of the contract."""
    names = {field.name: field for field in descriptor.fields}
    names.update({field.json_name: field for field in descriptor.fields})
    return names


def _takes_null(field: FieldDescriptor) -> bool:
    message = field.message_type
    return message is not None and message.full_name == "google.protobuf.Value"


def _unknown(key: str, descriptor: Descriptor) -> str:
    return f"is not a field of {descriptor.name}{did_you_mean(key, (field.json_name for field in descriptor.fields))}"


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`; did you mean source?` where a known name is close to what was given, else nothing."""
    near = difflib.get_close_matches(given[:MAX_KEY_CHARS], list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _kind(value: object) -> str:
    if value is None:
        return "null"
    kinds: list[tuple[type, str]] = [
        (bool, "a boolean"),
        (str, "a string"),
        (dict, "an object"),
        (list, "an array"),
        (int, "a number"),
        (float, "a number"),
    ]
    return next(words for kind, words in kinds if isinstance(value, kind))
