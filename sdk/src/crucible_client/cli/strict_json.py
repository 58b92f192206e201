"""A line of JSON into a message, accepting what the gateway accepts of a REST body and nothing more.

protobuf's own reader bends what is wrong until it fits: of two equal keys it takes the last, of base64 the characters
it knows, `true` is the first value of an enum. A program that was meant otherwise must not run.
"""

from __future__ import annotations

import base64
import json
import math
import re
from typing import NoReturn, cast

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message

from crucible_contracts.proto_json import map_entry

MAXIMUM_DIGITS = 400
"""Of one number; no field holds one of more than some twenty."""

MAXIMUM_SHOWN = 64
"""Characters of a caller's word in an error."""

_INTEGER = re.compile(r"-?[0-9]{1,20}")
_FORMS = {
    "google.protobuf.Duration": (
        re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,9})?s"),
        'must be a duration in seconds, such as "1.5s"',
    ),
    "google.protobuf.Timestamp": (
        re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})"),
        'must be a time, such as "2026-01-31T00:00:00Z"',
    ),
}
_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_KINDS: dict[type, str] = {
    type(None): "null",
    bool: "a boolean",
    str: "a string",
    dict: "an object",
    list: "an array",
    int: "a number",
    float: "a number",
}


class FaultError(ValueError):
    """`field` is a path such as `limits.wallTime`, empty for the line as a whole; `problem` is the rule it breaks."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


def read_object(text: bytes) -> dict[str, object]:
    """The members of a JSON object. Raises FaultError."""
    try:
        value: object = json.loads(
            text.decode(),
            object_pairs_hook=_members,
            parse_constant=_refuse_constant,
            parse_int=lambda digits: int(digits) if len(digits) <= MAXIMUM_DIGITS else math.inf,  # which fits no field
            parse_float=lambda digits: float(digits) if len(digits) <= MAXIMUM_DIGITS else math.inf,
        )
    except UnicodeDecodeError as exc:
        raise FaultError("", f"is not UTF-8 (byte {exc.start + 1})") from exc
    except json.JSONDecodeError as exc:
        raise FaultError("", f"is not JSON: {exc.msg} (column {exc.colno})") from exc
    except RecursionError as exc:
        raise FaultError("", "is nested too deeply") from exc
    if not isinstance(value, dict):
        raise FaultError("", 'must be an object such as {"runtime": "python", "source": "print(1)"}')
    return cast("dict[str, object]", value)


def read_message(members: dict[str, object], message: Message) -> None:
    """Fills the message; both spellings of a name are taken (`wallTime`, `wall_time`). Raises FaultError."""
    descriptor = cast("Descriptor", message.DESCRIPTOR)
    _check_message(members, descriptor, "")
    for name, value in members.items():
        # Field by field, so that what protobuf refuses beyond that is told with the field's name.
        try:
            ParseDict({name: value}, message)
        except (ParseError, TypeError, ValueError, OverflowError) as exc:
            raise FaultError(name, str(exc)) from exc


def _members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members: dict[str, object] = {}
    for key, value in pairs:
        if key in members:
            raise FaultError(key[:MAXIMUM_SHOWN], "is given twice in one object: keep one")
        members[key] = value
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise FaultError("", f"is not JSON: {name} is no number of it")


def _check_message(value: object, descriptor: Descriptor, path: str) -> None:
    if form := _FORMS.get(descriptor.full_name):
        pattern, rule = form
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise FaultError(path, rule)
        return
    if not isinstance(value, dict):
        raise FaultError(path, f"must be an object, not {_kind(value)}")
    names = {spelling: field for field in descriptor.fields for spelling in (field.name, field.json_name)}
    given: dict[str, FieldDescriptor] = {}
    for key, item in cast("dict[str, object]", value).items():
        field = names.get(key)
        if field is None:
            raise FaultError(_join(path, key[:MAXIMUM_SHOWN]), "there is no such field")
        place = _join(path, key)
        if field.name in given:
            raise FaultError(place, f"is given twice, as {field.json_name} and {field.name}: keep one")
        given[field.name] = field
        if item is None:
            continue
        choice = field.containing_oneof
        if choice is not None:
            if choice.full_name in given:
                raise FaultError(place, f"cannot be combined with {given[choice.full_name].json_name}: keep one")
            given[choice.full_name] = field
        _check_field(item, field, place)


def _check_field(value: object, field: FieldDescriptor, path: str) -> None:
    entry = map_entry(field)
    if entry is not None:
        if not isinstance(value, dict):
            raise FaultError(path, f"must be an object, not {_kind(value)}")
        for key, item in cast("dict[str, object]", value).items():
            place = f"{path}[{json.dumps(key[:MAXIMUM_SHOWN], ensure_ascii=False)}]"
            _check_scalar(key, entry[0], place)
            _check_one(item, entry[1], place)
    elif field.is_repeated:
        if not isinstance(value, list):
            raise FaultError(path, f"must be an array, not {_kind(value)}")
        for index, item in enumerate(cast("list[object]", value)):
            _check_one(item, field, f"{path}[{index}]")
    else:
        _check_one(value, field, path)


def _check_one(value: object, field: FieldDescriptor, path: str) -> None:
    if value is None:
        raise FaultError(path, "must not be null")
    if field.message_type is not None:
        _check_message(value, field.message_type, path)
    else:
        _check_scalar(value, field, path)


def _check_scalar(value: object, field: FieldDescriptor, path: str) -> None:
    if field.enum_type is not None:
        _check_enum(value, field.enum_type, path)
    elif field.cpp_type in _RANGES:
        _check_integer(value, *_RANGES[field.cpp_type], path)
    elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        if not isinstance(value, str):
            kind = "a base64 string" if field.type == FieldDescriptor.TYPE_BYTES else "a string"
            raise FaultError(path, f"must be {kind}, not {_kind(value)}")
        if field.type == FieldDescriptor.TYPE_BYTES:
            _check_base64(value, path)
        elif any("\ud800" <= character <= "\udfff" for character in value):
            raise FaultError(path, "contains an unpaired surrogate, which is no text")
    # Booleans and floats protobuf reads as strictly.


def _check_base64(text: str, path: str) -> None:
    digits = text.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except ValueError as exc:
        raise FaultError(path, "must be base64, as the bytes of `hello` are aGVsbG8=") from exc


def _check_enum(value: object, enum: EnumDescriptor, path: str) -> None:
    names = [entry.name for entry in enum.values]
    if value in names:
        return
    if isinstance(value, int) and not isinstance(value, bool) and -(2**31) <= value < 2**31:
        return  # an unknown number is the platform's to refuse
    raise FaultError(path, f"must be one of {', '.join(name for name in names if enum.values_by_name[name].number)}")


def _check_integer(value: object, low: int, high: int, path: str) -> None:
    if (isinstance(value, str) and _INTEGER.fullmatch(value)) or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise FaultError(path, f"must be an integer from {low} to {high}")


def _kind(value: object) -> str:
    return _KINDS[type(value)]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
