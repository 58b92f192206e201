"""Any message of the contract as protobuf's own writer has it, less what says nothing."""

import importlib
import pkgutil
import random
from collections.abc import Iterator
from typing import Any, cast

import pytest
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

import crucible.v1
from crucible.v1 import policy_pb2
from crucible_contracts.proto_json import map_entry, write_value

FILES = [
    importlib.import_module(f"crucible.v1.{module.name}").DESCRIPTOR
    for module in pkgutil.iter_modules(crucible.v1.__path__)
    if module.name.endswith("_pb2")
]
MESSAGES = [message for file in FILES for message in file.message_types_by_name.values()]


def filled(descriptor: Descriptor, dice: random.Random, depth: int = 0) -> Message:
    """A message in which each field is there as often as not."""
    if descriptor.full_name == "google.protobuf.Timestamp":
        return descriptor_class(descriptor)(seconds=dice.randrange(4_000_000_000), nanos=dice.randrange(1_000_000_000))
    if descriptor.full_name == "google.protobuf.Duration":
        return descriptor_class(descriptor)(seconds=dice.randrange(5000), nanos=dice.choice((0, 5_000_000, 7)))
    message = descriptor_class(descriptor)()
    for field in descriptor.fields:
        if dice.random() < 0.4 or (depth > 4 and field.message_type is not None):
            continue
        entry = map_entry(field)
        if entry is not None:
            for _ in range(dice.randrange(3)):
                getattr(message, field.name)[value(entry[0], dice, depth)] = value(entry[1], dice, depth)
        elif field.is_repeated:
            getattr(message, field.name).extend(value(field, dice, depth) for _ in range(dice.randrange(4)))
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(value(field, dice, depth))
        else:
            setattr(message, field.name, value(field, dice, depth))
    return message


def descriptor_class(descriptor: Descriptor) -> type[Any]:
    return message_factory.GetMessageClass(descriptor)


def value(field: FieldDescriptor, dice: random.Random, depth: int) -> Any:  # noqa: ANN401  of any field
    if field.message_type is not None:
        return filled(field.message_type, dice, depth + 1)
    if field.enum_type is not None:
        return dice.choice([*(each.number for each in field.enum_type.values), 0, 7777])
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_BOOL:
            return dice.random() < 0.5
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return dice.randbytes(dice.randrange(6))
        case FieldDescriptor.CPPTYPE_STRING:
            return dice.choice(("", "text", "\u00fc\u2028\x01"))
        case _:
            return dice.choice((0, 1, 2**31 - 1))


def without_silence(value: dict[str, Any], descriptor: Descriptor) -> dict[str, Any]:
    """What protobuf wrote, less enums that are 0 and empty lists that are to be absent."""
    kept = dict(value)
    for field in descriptor.fields:
        item = kept.get(field.json_name)
        if item is None:
            continue
        if field.GetOptions().Extensions[policy_pb2.absent_when_empty] and not item:
            del kept[field.json_name]
        elif field.enum_type is not None:
            silent = field.enum_type.values_by_number[0].name
            if item == silent:
                del kept[field.json_name]
            elif isinstance(item, list):
                kept[field.json_name] = [each for each in cast("list[Any]", item) if each != silent]
        elif isinstance(item, list) and field.message_type is not None:
            kept[field.json_name] = [without_silence(each, field.message_type) for each in cast("list[Any]", item)]
        elif isinstance(item, dict) and field.message_type is not None and map_entry(field) is None:
            kept[field.json_name] = without_silence(cast("dict[str, Any]", item), field.message_type)
    return kept


def instances(descriptor: Descriptor) -> Iterator[Message]:
    dice = random.Random(descriptor.full_name)
    yield descriptor_class(descriptor)()
    for _ in range(60):
        yield filled(descriptor, dice)


@pytest.mark.parametrize("descriptor", MESSAGES, ids=lambda descriptor: descriptor.name)
def test_a_message_is_written_as_protobuf_writes_it(descriptor: Descriptor) -> None:
    for message in instances(descriptor):
        written = json_format.MessageToDict(message, always_print_fields_with_no_presence=True)
        expected = without_silence(written, descriptor)
        found = write_value(message)
        assert found == expected
        # Always in the order of the contract, where protobuf writes what is set before what is not.
        assert list(found) == [field.json_name for field in descriptor.fields if field.json_name in found]
