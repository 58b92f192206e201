"""Pages of evaluations: filters and keys in SQL."""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from crucible.v1 import evaluation_pb2
from crucible_chassis.errors import ServiceError
from crucible_store import reading
from crucible_store.domain.filters import Comparison, FilterError, Operator, parse
from crucible_store.domain.states import Status
from crucible_store.schema import evaluations, labels, requests, results

DEFAULT_PAGE = 50
MAX_PAGE = 1000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TOKEN = struct.Struct(">B8sq16s")
_TOKEN_VERSION = 1
_NOTHING = sa.literal(b"", sa.LargeBinary)


@dataclass(frozen=True, slots=True)
class Page:
    """A page in the order asked for."""

    evaluations: list[evaluation_pb2.Evaluation]
    next_token: str


@dataclass(frozen=True, slots=True)
class Query:
    """What is listed."""

    tenant: str
    filter: str
    descending: bool
    size: int
    token: str


async def list_page(connection: AsyncConnection, query: Query) -> Page:
    """A page. Raises ServiceError INVALID_ARGUMENT (INVALID_FILTER, INVALID_PAGE_TOKEN)."""
    try:
        comparisons = parse(query.filter)
    except FilterError as exc:
        raise ServiceError(
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_FILTER",
            f"the filter cannot be read at position {exc.position}: {exc.message}",
            metadata={"position": str(exc.position)},
        ) from exc
    fingerprint = _fingerprint(query)
    after = _read_token(query.token, fingerprint) if query.token else None
    size = min(query.size or DEFAULT_PAGE, MAX_PAGE)
    statement = _select(query, comparisons, after).limit(size + 1)
    rows = (await connection.execute(statement)).mappings().all()
    page = rows[:size]
    token = _token(fingerprint, page[-1]["create_time"], page[-1]["id"]) if len(rows) > size else ""
    return Page(await reading.present(connection, page), token)


def _select(query: Query, comparisons: list[Comparison], after: tuple[datetime, str] | None) -> sa.Select[Any]:
    time, key = evaluations.c.create_time, evaluations.c.id
    source = evaluations.join(requests, requests.c.evaluation == evaluations.c.id).outerjoin(
        results,
        sa.and_(
            results.c.evaluation == evaluations.c.id,
            results.c.generation == evaluations.c.generation,
            evaluations.c.status == int(Status.COMPLETED),
        ),
    )
    conditions: list[sa.ColumnElement[bool]] = [evaluations.c.tenant == query.tenant]
    leading = next((c for c in comparisons if c.is_label and c.operator is Operator.EQ), None)
    if leading is not None:
        # One label leads: its index has the order of the list, and only its evaluations are looked at.
        chosen = labels.alias("chosen")
        source = source.join(
            chosen, sa.and_(chosen.c.evaluation == evaluations.c.id, chosen.c.create_time == evaluations.c.create_time)
        )
        conditions += [
            chosen.c.tenant == query.tenant, chosen.c.name == leading.name, chosen.c.value == leading.value
        ]  # fmt: skip
        time, key = chosen.c.create_time, chosen.c.evaluation
    conditions += [_condition(query.tenant, c) for c in comparisons if c is not leading]
    if after is not None:
        place = sa.tuple_(sa.literal(after[0], time.type), sa.literal(after[1], key.type))
        conditions.append(sa.tuple_(time, key) < place if query.descending else sa.tuple_(time, key) > place)
    order = (time.desc(), key.desc()) if query.descending else (time, key)
    return (
        sa.select(
            evaluations,
            requests.c.summary,
            _NOTHING.label("bulk"),
            results.c.summary.label("result_summary"),
            _NOTHING.label("result_bulk"),
            sa.func.clock_timestamp().label("now"),
        )
        .select_from(source)
        .where(*conditions)
        .order_by(*order)
    )


def _condition(tenant: str, comparison: Comparison) -> sa.ColumnElement[bool]:
    if comparison.is_label:
        has = sa.exists().where(
            labels.c.tenant == tenant,
            labels.c.name == comparison.name,
            labels.c.value == comparison.value,
            labels.c.create_time == evaluations.c.create_time,
            labels.c.evaluation == evaluations.c.id,
        )
        return has if comparison.operator is Operator.EQ else ~has
    column = results.c.outcome if comparison.name == "result.outcome" else evaluations.c[comparison.name]
    value = comparison.value
    match comparison.operator:
        case Operator.EQ if comparison.name == "status":
            # A literal: the planner finds the partial index of its status.
            return column == sa.literal_column(str(value))
        case Operator.EQ:
            return column == value
        case Operator.NE:
            # What has no value has another one.
            return column.is_distinct_from(value)
        case Operator.LT:
            return column < value
        case Operator.LE:
            return column <= value
        case Operator.GT:
            return column > value
        case Operator.GE:
            return column >= value


def _fingerprint(query: Query) -> bytes:
    """What a token is good for: the page size may change from page to page, the rest may not."""
    asked = "\0".join((query.tenant, query.filter, str(query.descending)))
    return hashlib.sha256(asked.encode()).digest()[:8]


def _token(fingerprint: bytes, time: datetime, evaluation: str) -> str:
    delta = time - _EPOCH
    micros = (delta.days * 86400 + delta.seconds) * 1_000_000 + delta.microseconds
    packed = _TOKEN.pack(_TOKEN_VERSION, fingerprint, micros, uuid.UUID(evaluation).bytes)
    return base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


def _read_token(token: str, fingerprint: bytes) -> tuple[datetime, str]:
    try:
        packed = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        version, mark, micros, evaluation = _TOKEN.unpack(packed)
        if version != _TOKEN_VERSION or mark != fingerprint:
            raise ValueError
        return _EPOCH + timedelta(microseconds=micros), str(uuid.UUID(bytes=evaluation))
    except (ValueError, struct.error, binascii.Error, OverflowError) as exc:
        raise ServiceError(
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_PAGE_TOKEN",
            "the page token is damaged or belongs to another query",
        ) from exc
