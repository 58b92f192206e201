"""Messages of the contract from what a caller gave; what fits no field is a CrucibleError with the field's name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import ParamSpec, TypeVar, cast

from google.protobuf.message import Message

from crucible_client.errors import FieldViolation, InvalidRequestError

P = ParamSpec("P")
MessageT = TypeVar("MessageT", bound=Message)

UNFIT = (TypeError, ValueError, OverflowError)
"""What Python and protobuf raise for a value that no field can hold; UnicodeEncodeError is a ValueError."""


def build(make: Callable[P, MessageT], /, *args: P.args, **fields: P.kwargs) -> MessageT:
    """The request `make(...)`.

    Raises:
        InvalidRequestError: A field cannot hold its value; `violations` names it as the platform would.
    """
    return build_part("", make, *args, **fields)


def build_part(path: str, make: Callable[P, MessageT], /, *args: P.args, **fields: P.kwargs) -> MessageT:
    """The same for a message at this place in a request."""
    try:
        return make(*args, **fields)
    except UNFIT as exc:
        raise _first_unfit(path, cast("Callable[..., Message]", make), fields) or unfit(path, exc) from exc


def unfit(field: str, error: Exception) -> InvalidRequestError:
    """The field cannot hold its value, for the reason that `error` gives."""
    match error:
        case UnicodeEncodeError():
            problem = f"is not text: UTF-8 has no {error.object[error.start]!r} (character {error.start + 1})"
        case OverflowError():
            problem = "is out of range"
        case _:
            words = str(error)
            problem = words[:1].lower() + words[1:]
    return InvalidRequestError(
        f"{field}: {problem}", code="INVALID_ARGUMENT", violations=[FieldViolation(field, problem)]
    )


def _first_unfit(path: str, make: Callable[..., Message], fields: Mapping[str, object]) -> InvalidRequestError | None:
    for name, value in fields.items():
        for place, part in _parts(f"{path}.{name}" if path else name, value):
            try:
                make(**{name: part})
            except UNFIT as exc:
                return unfit(place, exc)
    return None


def _parts(place: str, value: object) -> Iterator[tuple[str, object]]:
    """The entries of a map and the elements of a list, each as a value of the field by itself."""
    if isinstance(value, Mapping):
        for key, item in cast("Mapping[object, object]", value).items():
            yield f"{place}[{json.dumps(key, default=str)}]", {key: item}
    elif isinstance(value, list | tuple):
        for index, item in enumerate(cast("list[object] | tuple[object, ...]", value)):
            yield f"{place}[{index}]", [item]
    else:
        yield place, value
