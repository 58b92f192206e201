"""Messages into proto3 JSON: lowerCamelCase, defaults printed, and no enum value that says nothing."""

from __future__ import annotations

import functools
import json
from typing import Any, cast

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from crucible_gateway.contract import map_entry

# JSON leaves them as they are, and many readers of lines, Python's among them, split at them.
_LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def write_value(message: Message) -> dict[str, Any]:
    """The message as JSON values."""
    value = json_format.MessageToDict(message, always_print_fields_with_no_presence=True)
    _prune(value, cast("Descriptor", message.DESCRIPTOR))
    return value


def write_json(message: Message, field: str = "") -> bytes:
    """The message, or one field of it (its proto name), as compact JSON in UTF-8, in one line."""
    value: Any = write_value(message)
    if field:
        value = value.get(cast("Descriptor", message.DESCRIPTOR).fields_by_name[field].json_name)
    return encode(value)


def encode(value: object) -> bytes:
    """JSON values as compact text in one line, whatever the reader takes for the end of a line."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.translate(_LINE_ENDS).encode() if not text.isascii() else text.encode()


def _prune(value: dict[str, Any], descriptor: Descriptor) -> None:
    """Takes out enum fields that are 0: by the contract's convention that value means "not said"."""
    for key, field in _places(descriptor):
        item = value.get(key)
        if item is None:
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
        assert inner is not None  # by what `_places` gives
        if entry is not None:
            items: list[Any] = list(item.values())
        else:
            items = cast("list[Any]", item) if isinstance(item, list) else [item]
        for each in items:
            _prune(each, inner)


@functools.cache
def _places(descriptor: Descriptor) -> tuple[tuple[str, FieldDescriptor], ...]:
    """Fields that are enums or lead to some. Cached: one entry for each message of the contract."""
    return tuple((field.json_name, field) for field in descriptor.fields if _has_enum(field, frozenset()))


def _has_enum(field: FieldDescriptor, seen: frozenset[str]) -> bool:
    if field.enum_type is not None:
        return True
    entry = map_entry(field)
    # The contract has no map of enums, whose silent values would have no key to leave out.
    message = field.message_type if entry is None else entry[1].message_type
    if message is None or message.file.package == "google.protobuf" or message.full_name in seen:
        return False
    return any(_has_enum(inner, seen | {message.full_name}) for inner in message.fields)
