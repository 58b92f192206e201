"""The language of list filters: comparisons joined by AND, a subset of AIP-160."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, IntEnum

from crucible_store.domain.states import Cause, Status

MAX_COMPARISONS = 32
"""In one filter."""


class Priority(IntEnum):
    """`crucible.v1.Evaluation.Priority`."""

    LOW = 1
    NORMAL = 2
    HIGH = 3


class Outcome(IntEnum):
    """`crucible.v1.ExecutionResult.Outcome`."""

    SUCCEEDED = 1
    NONZERO_EXIT = 2
    SIGNALED = 3
    WALL_TIME_EXCEEDED = 4
    CPU_TIME_EXCEEDED = 5
    MEMORY_EXCEEDED = 6
    OUTPUT_EXCEEDED = 7


class Operator(Enum):
    """A comparison."""

    EQ = "="
    NE = "!="
    LT = "<"
    LE = "<="
    GT = ">"
    GE = ">="


class FilterError(Exception):
    """A filter cannot be read. `position` counts characters from 0."""

    def __init__(self, position: int, message: str) -> None:
        super().__init__(message)
        self.position = position
        self.message = message


@dataclass(frozen=True, slots=True)
class Comparison:
    """One comparison. `name` is a field, or the name of a label where `is_label`."""

    name: str
    operator: Operator
    value: str | int | datetime
    is_label: bool = False


ENUMS: dict[str, type[IntEnum]] = {
    "status": Status,
    "priority": Priority,
    "cause": Cause,
    "result.outcome": Outcome,
}
TEXTS = frozenset({"runtime"})
TIMES = frozenset({"create_time"})
FIELDS = (*sorted([*ENUMS, *TEXTS, *TIMES]), "labels.<name>")

_SPACE = re.compile(r"\s*")
_LABEL = re.compile(r"labels\.(?:\"([^\"]*)\"|([a-z0-9][a-z0-9_./-]*))")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_OPERATOR = re.compile(r"!=|<=|>=|=|<|>")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"|\'((?:[^\'\\]|\\.)*)\'')
_WORD = re.compile(r"[^\s\"'()=<>!]+")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


def parse(text: str) -> list[Comparison]:
    """The comparisons of a filter, all of which must hold; none for an empty one. Raises FilterError."""
    return _Parser(text).filter()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._skip()

    def filter(self) -> list[Comparison]:
        comparisons: list[Comparison] = []
        while self._at < len(self._text):
            if comparisons:
                self._and()
            comparisons.append(self._comparison())
            if len(comparisons) > MAX_COMPARISONS:
                raise FilterError(self._at, f"a filter has at most {MAX_COMPARISONS} comparisons")
        return comparisons

    def _and(self) -> None:
        start = self._at
        word = self._take(_NAME)
        if word is None or word[0] != "AND":
            if word is not None and word[0] == "OR":
                raise FilterError(start, "OR is not supported: join comparisons with AND")
            raise FilterError(start, "expected AND")
        if self._at == len(self._text):
            raise FilterError(self._at, "expected a comparison after AND")

    def _comparison(self) -> Comparison:
        start = self._at
        label = self._take(_LABEL)
        if label is not None:
            name: str = label[1] if label[1] is not None else label[2]
            return Comparison(name, self._operator(times=False), self._value(), is_label=True)
        word = self._take(_NAME)
        if word is None:
            found = "the end" if start == len(self._text) else repr(self._text[start])
            raise FilterError(start, f"expected a field name, not {found}")
        name = word[0]
        if name == "NOT":
            raise FilterError(start, "NOT is not supported: use !=")
        if name in TIMES:
            operator = self._operator(times=True)
            return Comparison(name, operator, self._time())
        if name in TEXTS:
            return Comparison(name, self._operator(times=False), self._value())
        if name in ENUMS:
            return Comparison(name, self._operator(times=False), self._enum(name))
        raise FilterError(start, f"there is no field {name}; use one of {', '.join(FIELDS)}")

    def _operator(self, *, times: bool) -> Operator:
        start = self._at
        match = self._take(_OPERATOR)
        allowed = [op for op in Operator if (op is not Operator.NE if times else op in (Operator.EQ, Operator.NE))]
        if match is None or Operator(match[0]) not in allowed:
            raise FilterError(start, f"expected one of {' '.join(op.value for op in allowed)}")
        return Operator(match[0])

    def _value(self) -> str:
        start = self._at
        quoted = self._take(_STRING)
        if quoted is not None:
            value: str = _ESCAPE.sub(r"\1", quoted[1] if quoted[1] is not None else quoted[2])
        else:
            word = self._take(_WORD)
            if word is None:
                raise FilterError(start, "expected a value in quotes")
            value = word[0]
        if "\0" in value:
            raise FilterError(start, "a value must not contain NUL")
        return value

    def _enum(self, name: str) -> int:
        start = self._at
        value = self._value()
        members = ENUMS[name].__members__
        if value not in members:
            raise FilterError(start, f"{name} must be one of {', '.join(members)}")
        return int(members[value])

    def _time(self) -> datetime:
        start = self._at
        value = self._value()
        if _TIME.fullmatch(value) is None:
            raise FilterError(start, 'expected an RFC 3339 time such as "2026-01-31T00:00:00Z"')
        try:
            return datetime.fromisoformat(value.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            raise FilterError(start, "there is no such time") from None

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self._text, self._at)
        if match is not None:
            self._at = match.end()
            self._skip()
        return match

    def _skip(self) -> None:
        match = _SPACE.match(self._text, self._at)
        assert match is not None
        self._at = match.end()
