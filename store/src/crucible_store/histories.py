"""The events of evaluations: page by page, followed live, and waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from crucible.v1 import evaluation_pb2, event_pb2
from crucible_chassis.logs import get_logger
from crucible_store import convert, reading
from crucible_store.database import Database, DatabaseAwayError
from crucible_store.domain.states import FINAL, Status
from crucible_store.ledger.requests import not_found
from crucible_store.watching import Watchtower

DEFAULT_PAGE = 100
MAX_PAGE = 1000
PAGE_BYTES = 4 * 1024 * 1024
"""Of the events of a page; one alone may be larger."""
QUIET_SECONDS = 3.0
"""A listener that hears nothing looks into the database this often."""
KEPT_BYTES = 16 * 1024
"""Of a request that a wait keeps in memory, and only until it is quiet: it is read again where there is more of it."""

_FINAL_KINDS = frozenset({"finished", "failed", "cancelled"})

# One statement, one snapshot: the row's last number and the events belong together.
_PAGE = sa.text("""
SELECT e.status, e.last_sequence, page.sequence, page.event FROM evaluations e LEFT JOIN LATERAL (
    SELECT sequence, event FROM (
        SELECT sequence, event, sum(length(event)) OVER (ORDER BY sequence) AS total,
            row_number() OVER (ORDER BY sequence) AS place
        FROM (SELECT sequence, event FROM events WHERE evaluation = e.id AND sequence > :after
              ORDER BY sequence LIMIT :size) next
    ) counted WHERE total <= :bytes OR place = 1
) page ON true
WHERE e.id = :id ORDER BY page.sequence
""")

_STATUS = sa.text("SELECT status FROM evaluations WHERE id = :id")

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Page:
    """Events in order, and how far the evaluation is."""

    events: list[event_pb2.Event]
    last_sequence: int
    final: bool
    """Its status is final."""


class Histories:
    """Raises ServiceError NOT_FOUND for an id that no evaluation has, and DatabaseAwayError."""

    def __init__(self, database: Database, tower: Watchtower) -> None:
        self._database = database
        self._tower = tower

    async def page(self, evaluation: str, *, after: int, size: int) -> Page:
        """Events after a number, at most `size` (0: the default) and PAGE_BYTES."""
        page = await self._database.read(lambda c: _page(c, evaluation, after, min(size or DEFAULT_PAGE, MAX_PAGE)))
        if page is None:
            raise not_found(evaluation)
        return page

    async def follow(
        self, evaluation: str, *, after: int, waiting: Callable[[], Awaitable[None]] | None = None
    ) -> AsyncIterator[event_pb2.Event]:
        """Every event after a number, without gap or repeat; ends when the evaluation is final and all was given.

        `waiting` is called before the first wait for an event that is not there yet.
        """
        async with self._tower.listen(evaluation) as listener:
            page = await self.page(evaluation, after=after, size=MAX_PAGE)
            while True:
                for event in page.events:
                    yield event
                    after = event.sequence
                if page.final and after >= page.last_sequence:
                    return
                if waiting is not None and after >= page.last_sequence:
                    await waiting()
                    waiting = None
                while after >= page.last_sequence:
                    # Up to date: what comes next is announced.
                    data = await listener.next(QUIET_SECONDS)
                    if data is None:
                        break
                    event = event_pb2.Event.FromString(data)
                    if event.sequence <= after:
                        continue
                    if event.sequence > after + 1:
                        break
                    yield event
                    after = event.sequence
                    if event.WhichOneof("kind") in _FINAL_KINDS:
                        # The last, unless it was requeued since.
                        break
                page = await self._look(evaluation, after, page)

    async def _look(self, evaluation: str, after: int, page: Page) -> Page:
        """The database's word; while it is away the live events are as good."""
        try:
            return await self.page(evaluation, after=after, size=MAX_PAGE)
        except DatabaseAwayError:
            log.warning("watch.blind", evaluation=evaluation)
            return Page([], min(after, page.last_sequence), final=False)

    async def wait(self, evaluation: str, *, seconds: float) -> evaluation_pb2.Evaluation:
        """The evaluation once it is final, or as it is when the time is over."""
        deadline = asyncio.get_running_loop().time() + seconds
        async with self._tower.listen(evaluation) as listener:
            row = await self._database.read(lambda c: reading.whole(c, evaluation))
            if row is None:
                raise not_found(evaluation)
            if row["status"] in FINAL:
                return convert.evaluation(row, now=row["now"], pool=None)
            if len(row["summary"]) + len(row["bulk"]) > KEPT_BYTES:
                row = None
            final = False
            while not final and (left := deadline - asyncio.get_running_loop().time()) > 0:
                data = await listener.next(min(left, QUIET_SECONDS))
                if data is None:
                    row = None
                    final = await self._final(evaluation)
                elif event_pb2.Event.FromString(data).WhichOneof("kind") in _FINAL_KINDS:
                    if row is not None and listener.ending is not None:
                        return convert.ended(row, listener.ending)
                    final = True
            return await self.get(evaluation)

    async def get(self, evaluation: str) -> evaluation_pb2.Evaluation:
        """One evaluation whole."""
        found = await self._database.read(lambda c: reading.get(c, evaluation))
        if found is None:
            raise not_found(evaluation)
        return found

    async def _final(self, evaluation: str) -> bool:
        """The database's word; while it is away, not that anybody knew."""
        try:
            status = await self._database.read(lambda c: _status(c, evaluation))
        except DatabaseAwayError:
            return False
        if status is None:
            raise not_found(evaluation)
        return status in FINAL


async def _status(connection: AsyncConnection, evaluation: str) -> Status | None:
    status = (await connection.execute(_STATUS, {"id": evaluation})).scalar_one_or_none()
    return None if status is None else Status(status)


async def _page(connection: AsyncConnection, evaluation: str, after: int, size: int) -> Page | None:
    rows = (
        await connection.execute(_PAGE, {"id": evaluation, "after": after, "size": size, "bytes": PAGE_BYTES})
    ).all()
    if not rows:
        return None
    events = convert.events_of([row.event for row in rows if row.event is not None])
    return Page(events, rows[0].last_sequence, Status(rows[0].status) in FINAL)
