"""JSON text to Python values, as strict as a public endpoint must be: stricter than Python's own reader.

Refused: anything but UTF-8, doubled keys, NaN and Infinity, numbers of absurd length, nesting without end, and
documents of so many parts that reading them is an attack.
"""

from __future__ import annotations

import itertools
import json
import re
from typing import Any, NoReturn

MAX_PARTS = 800_000
"""Brackets, braces and commas that open or part values: each value costs a hundred bytes of memory for two of text. The
largest batch of the contract, with every list of every program full, needs fewer."""
MAX_DIGITS = 400
"""Of one number; no field holds one of more than some twenty, written out."""


_PARTS = re.compile(r'"(?:[^"\\]++|\\.)*+"?|([\[{,])', re.DOTALL)
"""Strings, to be passed over, and the parts between them."""


class MalformedJsonError(ValueError):
    """The text is not JSON, or not JSON that is accepted here. Its message may be shown to the caller."""


def read_json(data: bytes) -> Any:  # noqa: ANN401  any JSON value
    """The value of a JSON document. `MalformedJsonError` says what is wrong, with line and column for bad syntax."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as exc:
        msg = f"the body is not UTF-8 (byte {exc.start})"
        raise MalformedJsonError(msg) from exc
    if _too_many_parts(text):
        msg = f"the body holds more than {MAX_PARTS} brackets, braces and commas"
        raise MalformedJsonError(msg)
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as exc:
        msg = f"{exc.msg} at line {exc.lineno}, column {exc.colno}"
        raise MalformedJsonError(msg) from exc
    except RecursionError as exc:
        msg = "the body is nested too deeply"
        raise MalformedJsonError(msg) from exc


def _too_many_parts(text: str) -> bool:
    if sum(text.count(mark) for mark in "[{,") <= MAX_PARTS:
        return False
    outside = (each for each in _PARTS.finditer(text) if each.lastindex)
    return next(itertools.islice(outside, MAX_PARTS, None), None) is not None


def _read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                msg = f"the key {json.dumps(key[:64])} appears twice in one object"
                raise MalformedJsonError(msg)
            seen.add(key)
    return value


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


_DECODER = json.JSONDecoder(
    object_pairs_hook=_read_object, parse_constant=_refuse_constant, parse_int=_read_int, parse_float=_read_float
)
