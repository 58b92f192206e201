"""Messages into the one JSON that Crucible shows: proto3 JSON with defaults printed, and what is not said left out.

Left out are enum fields that are 0, which by the contract's convention means "not said", and empty lists of fields that
state `absent_when_empty`. A field with presence that is not set is absent, as everywhere in proto3 JSON.
"""

from __future__ import annotations

import functools
from typing import Any, cast

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from crucible.v1 import policy_pb2


def write_value(message: Message) -> dict[str, Any]:
    """The message as JSON values."""
    value = json_format.MessageToDict(message, always_print_fields_with_no_presence=True)
    _prune(value, cast("Descriptor", message.DESCRIPTOR))
    return value


def map_entry(field: FieldDescriptor) -> tuple[FieldDescriptor, FieldDescriptor] | None:
    """Key and value of a map; None for other fields."""
    message = field.message_type
    if not field.is_repeated or message is None or not message.GetOptions().map_entry:
        return None
    return message.fields_by_name["key"], message.fields_by_name["value"]


def _prune(value: dict[str, Any], descriptor: Descriptor) -> None:
    for key, field, absent_when_empty in _places(descriptor):
        item = value.get(key)
        if item is None:
            continue
        if absent_when_empty and not item:
            del value[key]
            continue
        if field.enum_type is not None:
            silent = field.enum_type.values_by_number[0].name
            if item == silent:
                del value[key]
            elif isinstance(item, list):
                value[key] = [each for each in cast("list[Any]", item) if each != silent]
            continue
        entry = map_entry(field)
        inner = field.message_type if entry is None else entry[1].message_type
        if inner is None:
            continue
        if entry is not None:
            items: list[Any] = list(item.values())
        else:
            items = cast("list[Any]", item) if isinstance(item, list) else [item]
        for each in items:
            _prune(each, inner)


@functools.cache
def _places(descriptor: Descriptor) -> tuple[tuple[str, FieldDescriptor, bool], ...]:
    """Fields that may say nothing, or lead to some. Cached: one entry for each message of the contract."""
    return tuple(
        (field.json_name, field, _absent_when_empty(field))
        for field in descriptor.fields
        if _may_be_silent(field, frozenset())
    )


def _absent_when_empty(field: FieldDescriptor) -> bool:
    return field.GetOptions().Extensions[policy_pb2.absent_when_empty]


def _may_be_silent(field: FieldDescriptor, seen: frozenset[str]) -> bool:
    if field.enum_type is not None or _absent_when_empty(field):
        return True
    entry = map_entry(field)
    # The contract has no map of enums, whose silent values would have no key to leave out.
    message = field.message_type if entry is None else entry[1].message_type
    if message is None or message.file.package == "google.protobuf" or message.full_name in seen:
        return False
    return any(_may_be_silent(inner, seen | {message.full_name}) for inner in message.fields)
