"""The language of list filters."""

import contextlib
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible.v1 import evaluation_pb2, execution_pb2
from crucible_store.domain.filters import Comparison, FilterError, Operator, parse


def test_nothing_filters_nothing() -> None:
    assert parse("") == parse("  \n ") == []


def test_comparisons_are_joined_by_and() -> None:
    assert parse("""status="COMPLETED" AND runtime != 'python'  AND priority = HIGH AND result.outcome=SIGNALED""") == [
        Comparison("status", Operator.EQ, evaluation_pb2.Evaluation.COMPLETED),
        Comparison("runtime", Operator.NE, "python"),
        Comparison("priority", Operator.EQ, evaluation_pb2.Evaluation.HIGH),
        Comparison("result.outcome", Operator.EQ, execution_pb2.ExecutionResult.SIGNALED),
    ]


@pytest.mark.parametrize("name", ["labels.team/a.b-c", 'labels."team/a.b-c"'])
def test_labels(name: str) -> None:
    assert parse(rf'{name} = "it\"s \\ AND"') == [Comparison("team/a.b-c", Operator.EQ, 'it"s \\ AND', is_label=True)]


@pytest.mark.parametrize("operator", ["=", "<", "<=", ">", ">="])
def test_times(operator: str) -> None:
    (comparison,) = parse(f'create_time {operator} "2026-01-31T01:00:00.5+01:00"')
    assert comparison.operator is Operator(operator)
    assert comparison.value == datetime(2026, 1, 31, 0, 0, 0, 500_000, UTC)


@pytest.mark.parametrize(
    ("text", "position", "says"),
    [
        ("state = 1", 0, "there is no field state; use one of cause, create_time"),
        ('status = "DONE"', 9, "status must be one of QUEUED, DISPATCHED"),
        ('status > "QUEUED"', 7, "expected one of = !="),
        ('create_time != "2026-01-31T00:00:00Z"', 12, "expected one of = < <= > >="),
        ('create_time = "yesterday"', 14, "RFC 3339"),
        ('create_time = "2026-02-31T00:00:00Z"', 14, "no such time"),
        ('create_time = "0001-01-01T00:00:00+14:00"', 14, "no such time"),
        ('runtime = "a" OR runtime = "b"', 14, "OR is not supported"),
        ('NOT runtime = "a"', 0, "use !="),
        ('runtime = "a" runtime = "b"', 14, "expected AND"),
        ('runtime = "a" AND', 17, "expected a comparison after AND"),
        ("runtime", 7, "expected one of = !="),
        ("runtime =", 9, "expected a value"),
        ('runtime = "a', 10, "expected a value"),
        ("(runtime = a)", 0, "expected a field name"),
        ('runtime = "a\0"', 10, "NUL"),
        (" AND ".join(["runtime = a"] * 33), 523, "at most 32"),
    ],
)
def test_errors_say_where_and_what(text: str, position: int, says: str) -> None:
    with pytest.raises(FilterError) as caught:
        parse(text)
    assert says in caught.value.message
    assert caught.value.position == position


@given(st.text() | st.text(alphabet="abcl.status =<>!\"'\\AND()-0_/"))
def test_nothing_else_is_ever_raised(text: str) -> None:
    with contextlib.suppress(FilterError):
        assert len(parse(text)) <= 32
