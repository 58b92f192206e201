"""JSON text to Python values, as strict as a public endpoint must be: stricter than Python's own reader.

Refused: anything but UTF-8, doubled keys, NaN and Infinity, numbers of absurd length, nesting without end, and
documents of so many objects that reading them is an attack.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

MAX_OBJECTS = 250_000
"""Objects in one document: each costs hundreds of bytes of memory for two of text."""
MAX_DIGITS = 400
"""Of one number; no field holds one of more than some twenty, written out."""


class MalformedJsonError(ValueError):
    """The text is not JSON, or not JSON that is accepted here. Its message may be shown to the caller."""


def read_json(data: bytes) -> Any:  # noqa: ANN401  any JSON value
    """The value of a JSON document. `MalformedJsonError` says what is wrong, with line and column for bad syntax."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as exc:
        msg = f"the body is not UTF-8 (byte {exc.start})"
        raise MalformedJsonError(msg) from exc
    try:
        return _decoder().decode(text)
    except json.JSONDecodeError as exc:
        msg = f"{exc.msg} at line {exc.lineno}, column {exc.colno}"
        raise MalformedJsonError(msg) from exc
    except RecursionError as exc:
        msg = "the body is nested too deeply"
        raise MalformedJsonError(msg) from exc


def _decoder() -> json.JSONDecoder:
    left = MAX_OBJECTS

    def read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal left
        left -= 1
        if left < 0:
            msg = f"the body holds more than {MAX_OBJECTS} objects"
            raise MalformedJsonError(msg)
        value = dict(pairs)
        if len(value) != len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    msg = f"the key {json.dumps(key[:64])} appears twice in one object"
                    raise MalformedJsonError(msg)
                seen.add(key)
        return value

    return json.JSONDecoder(
        object_pairs_hook=read_object, parse_constant=_refuse_constant, parse_int=_read_int, parse_float=_read_float
    )


def _refuse_constant(name: str) -> NoReturn:
    msg = f"{name} is not a JSON number"
    raise MalformedJsonError(msg)


def _read_int(digits: str) -> int:
    return int(_bounded(digits))


def _read_float(digits: str) -> float:
    return float(_bounded(digits))


def _bounded(digits: str) -> str:
    if len(digits) > MAX_DIGITS:
        msg = f"a number has more than {MAX_DIGITS} digits"
        raise MalformedJsonError(msg)
    return digits
