"""A transaction in as few round trips as there can be: what needs no answer of another statement travels with the next.

BEGIN travels with the first statement and COMMIT with the last; SQLAlchemy waits for each of them alone, and on the way
of every evaluation that is half of the time in the database. What nobody waits for goes through SQLAlchemy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import psycopg
import sqlalchemy as sa
from psycopg.pq import TransactionStatus
from sqlalchemy.engine.interfaces import Dialect

TOGETHER_BYTES = 8 * 1024
"""Of parameters that travel together. psycopg's pipeline does not send what finds no room in the socket's buffer, which
has more than this of any socket, and waits for the answer to it for ever."""

_TEXTS: dict[sa.TextClause, bytes] = {}
"""Statements, all of them constants of modules, as psycopg takes them."""


class Rows:
    """What a statement answered: nothing before it was sent, and where it answers nothing."""

    def __init__(self) -> None:
        self._names: Sequence[str] = ()
        self._rows: Sequence[tuple[Any, ...]] = ()

    async def take(self, cursor: psycopg.AsyncCursor[tuple[Any, ...]]) -> None:
        """Fills it."""
        if cursor.description is not None:
            self._names = [column.name for column in cursor.description]
            self._rows = await cursor.fetchall()

    def one(self) -> tuple[Any, ...]:
        """The only row. Raises ValueError where there is another number of them."""
        (row,) = self._rows
        return row

    def scalars(self) -> Iterator[Any]:
        """The first column."""
        return (row[0] for row in self._rows)

    def mappings(self) -> Sequence[Mapping[str, Any]]:
        """Every row, by the names of its columns."""
        return [dict(zip(self._names, row, strict=True)) for row in self._rows]


_Waiting = tuple[sa.TextClause, Mapping[str, Any], Rows]


class Transaction:
    """An open transaction; `Database.write` makes and ends it. Raises psycopg.Error."""

    def __init__(self, driver: psycopg.AsyncConnection[tuple[Any, ...]], dialect: Dialect) -> None:
        self._driver = driver
        self._dialect = dialect
        self._waiting: list[_Waiting] = []

    def later(self, statement: sa.TextClause, parameters: Mapping[str, Any]) -> Rows:
        """A statement that is sent together with the next, before it; its rows are there then."""
        rows = Rows()
        self._waiting.append((statement, parameters, rows))
        return rows

    async def execute(self, statement: sa.TextClause, parameters: Mapping[str, Any]) -> Rows:
        """Sends what waits and this statement, in one round trip."""
        rows = self.later(statement, parameters)
        await self._send(last=False)
        return rows

    async def commit(self) -> None:
        """Sends what waits and commits, in one round trip; nothing where all is committed."""
        if self._waiting or self._driver.info.transaction_status is not TransactionStatus.IDLE:
            await self._send(last=True)

    async def _send(self, *, last: bool) -> None:
        sent, self._waiting = self._waiting, []
        if sum(_size(parameters) for _, parameters, _ in sent) > TOGETHER_BYTES:
            await self._send_each(sent)
            sent = []
        answers: list[tuple[psycopg.AsyncCursor[tuple[Any, ...]], Rows]] = []
        async with self._driver.pipeline():
            for statement, parameters, rows in sent:
                cursor = self._driver.cursor()
                await cursor.execute(self._text(statement), parameters)
                answers.append((cursor, rows))
            if last:
                await self._driver.commit()
        # Not before the pipeline has ended: that would be a round trip of its own.
        for cursor, rows in answers:
            await rows.take(cursor)

    async def _send_each(self, sent: Sequence[_Waiting]) -> None:
        for statement, parameters, rows in sent:
            cursor = self._driver.cursor()
            await cursor.execute(self._text(statement), parameters)
            await rows.take(cursor)

    def _text(self, statement: sa.TextClause) -> bytes:
        text = _TEXTS.get(statement)
        if text is None:
            text = _TEXTS[statement] = str(statement.compile(dialect=self._dialect)).encode()
        return text


def _size(parameters: Mapping[str, Any]) -> int:
    """Bytes of what may be long: texts and bytes, alone and in arrays."""
    size = 0
    for value in parameters.values():
        items = cast("list[object]", value) if isinstance(value, list) else [cast("object", value)]
        size += sum(len(item) for item in items if isinstance(item, (str, bytes)))
    return size
