"""Messages into the one JSON that Crucible shows: proto3 JSON with defaults printed, and what is not said left out.

Left out are enum fields that are 0, which by the contract's convention means "not said", and empty lists of fields that
state `absent_when_empty`. A field with presence that is not set is absent, as everywhere in proto3 JSON.

How a message is written is worked out once from its descriptor: protobuf's own writer does that for every message, and
takes more than twice as long.
"""

from __future__ import annotations

import base64
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, Final, cast

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from crucible.v1 import policy_pb2

_Writer = Callable[[Any], Any]
_Place = tuple[str, Callable[[Any], bool] | None, Callable[[Any], Any], bool]
"""Of a field: its key, whether it is there, its value, and whether a value that is empty or None is left out."""

_LARGE: Final = frozenset(
    {
        FieldDescriptor.TYPE_INT64,
        FieldDescriptor.TYPE_UINT64,
        FieldDescriptor.TYPE_SINT64,
        FieldDescriptor.TYPE_FIXED64,
        FieldDescriptor.TYPE_SFIXED64,
    }
)
"""Strings in JSON, whose numbers many readers take for doubles."""


def write_value(message: Message) -> dict[str, Any]:
    """The message as JSON values."""
    return _message_writer(cast("Descriptor", message.DESCRIPTOR))(message)


def map_entry(field: FieldDescriptor) -> tuple[FieldDescriptor, FieldDescriptor] | None:
    """Key and value of a map; None for other fields."""
    message = field.message_type
    if not field.is_repeated or message is None or not message.GetOptions().map_entry:
        return None
    return message.fields_by_name["key"], message.fields_by_name["value"]


@functools.cache
def _message_writer(descriptor: Descriptor) -> _Writer:
    """Cached: one entry for each message of the contract."""
    if descriptor.full_name in ("google.protobuf.Timestamp", "google.protobuf.Duration"):
        return lambda message: message.ToJsonString()
    if descriptor.file.package == "google.protobuf":
        return json_format.MessageToDict

    def write(message: Message) -> dict[str, Any]:
        written: dict[str, Any] = {}
        for key, is_set, value_of, may_be_silent in _places(descriptor):
            if is_set is None or is_set(message):
                value = value_of(message)
                if value or not may_be_silent:
                    written[key] = value
        return written

    return write


@functools.cache
def _places(descriptor: Descriptor) -> tuple[_Place, ...]:
    """Not before such a message is written: it may hold others of its own kind."""
    return tuple(map(_place, descriptor.fields))


def _place(field: FieldDescriptor) -> _Place:
    name: str = field.name
    entry = map_entry(field)
    absent_when_empty = field.GetOptions().Extensions[policy_pb2.absent_when_empty]
    if entry is not None:
        write_key, write_item = _key_writer(entry[0]), _value_writer(entry[1])
        return (
            field.json_name,
            None,
            lambda message: {write_key(key): write_item(item) for key, item in getattr(message, name).items()},
            absent_when_empty,
        )
    write = _value_writer(field)
    if not field.is_repeated:
        is_set: Callable[[Any], bool] | None = None
        if field.has_presence:
            is_set = lambda message: message.HasField(name)  # noqa: E731  named where it is chosen
        may_be_silent = absent_when_empty or field.enum_type is not None
        return field.json_name, is_set, lambda message: write(getattr(message, name)), may_be_silent
    if field.enum_type is not None:
        return field.json_name, None, lambda message: _said(map(write, getattr(message, name))), absent_when_empty
    return field.json_name, None, lambda message: list(map(write, getattr(message, name))), absent_when_empty


def _said(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if value is not None]


def _value_writer(field: FieldDescriptor) -> _Writer:
    if field.message_type is not None:
        return _message_writer(field.message_type)
    if field.enum_type is not None:
        return _enum_writer(field.enum_type)
    if field.type in _LARGE:
        return str
    if field.type == FieldDescriptor.TYPE_BYTES:
        return lambda value: base64.b64encode(value).decode()
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        return _write_float
    return lambda value: value


def _enum_writer(enum: EnumDescriptor) -> _Writer:
    """Names; None for what is not said, and the number of a value that a newer contract has."""
    names = {number: value.name for number, value in enum.values_by_number.items()}
    return lambda number: names.get(number, number) if number else None


def _key_writer(field: FieldDescriptor) -> Callable[[Any], str]:
    if field.type == FieldDescriptor.TYPE_BOOL:
        return lambda key: "true" if key else "false"
    return str


def _write_float(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
