"""A transaction of the ledger: in a thread of its own, and in as few round trips as there can be.

What needs no answer of another statement travels with the next, BEGIN with the first and COMMIT with the last. On the
way of every evaluation that, and to wait in a thread instead of an event loop, is most of the time in the database: see
docs/adr/0012.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import psycopg
import sqlalchemy as sa
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row
from sqlalchemy.engine.interfaces import Dialect

TOGETHER_BYTES = 8 * 1024
"""Of parameters that travel together. psycopg's pipeline does not send what finds no room in the socket's buffer, which
has more than this of any socket, and waits for the answer to it for ever."""

_TEXTS: dict[sa.TextClause, bytes] = {}
"""Statements, all of them constants of modules, as psycopg takes them."""


class Rows:
    """What a statement answered: nothing before it was sent, and where it answers nothing."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def take(self, cursor: psycopg.Cursor[dict[str, Any]]) -> None:
        """Fills it."""
        if cursor.pgresult is not None and cursor.pgresult.nfields:
            self._rows = cursor.fetchall()

    def all(self) -> Sequence[Mapping[str, Any]]:
        """Every row, by the names of its columns."""
        return self._rows

    def one(self) -> Mapping[str, Any]:
        """The only row. Raises ValueError where there is another number of them."""
        (row,) = self._rows
        return row


_Waiting = tuple[sa.TextClause, Mapping[str, Any], Rows]


class Transaction:
    """An open transaction; `Database.write` makes and ends it. Waits in its thread. Raises psycopg.Error."""

    def __init__(self, driver: psycopg.Connection[Any], dialect: Dialect) -> None:
        self._driver = driver
        self._dialect = dialect
        self._waiting: list[_Waiting] = []

    def later(self, statement: sa.TextClause, parameters: Mapping[str, Any]) -> Rows:
        """A statement that is sent together with the next, before it; its rows are there then."""
        rows = Rows()
        self._waiting.append((statement, parameters, rows))
        return rows

    def execute(self, statement: sa.TextClause, parameters: Mapping[str, Any]) -> Rows:
        """Sends what waits and this statement, in one round trip."""
        rows = self.later(statement, parameters)
        self._send(last=False)
        return rows

    def commit(self) -> None:
        """Sends what waits and commits, in one round trip; nothing where all is committed."""
        if self._waiting or self._driver.info.transaction_status is not TransactionStatus.IDLE:
            self._send(last=True)

    def _send(self, *, last: bool) -> None:
        sent, self._waiting = self._waiting, []
        if sum(_size(parameters) for _, parameters, _ in sent) > TOGETHER_BYTES:
            for statement, parameters, rows in sent:
                rows.take(self._execute(statement, parameters))
            if last:
                self._driver.commit()
            return
        with self._driver.pipeline():
            answers = [(rows, self._execute(statement, parameters)) for statement, parameters, rows in sent]
            if last:
                self._driver.commit()
        # Not before the pipeline has ended: that would be a round trip of its own.
        for rows, cursor in answers:
            rows.take(cursor)

    def _execute(self, statement: sa.TextClause, parameters: Mapping[str, Any]) -> psycopg.Cursor[dict[str, Any]]:
        text = _TEXTS.get(statement)
        if text is None:
            text = _TEXTS[statement] = str(statement.compile(dialect=self._dialect)).encode()
        return self._driver.cursor(row_factory=dict_row).execute(text, parameters)


def _size(parameters: Mapping[str, Any]) -> int:
    """Bytes of what may be long: texts and bytes, alone and in arrays."""
    size = 0
    for value in parameters.values():
        items = cast("list[object]", value) if isinstance(value, list) else [cast("object", value)]
        size += sum(len(item) for item in items if isinstance(item, (str, bytes)))
    return size
