"""How the database goes about the ledger's statements, from its first day on."""

import re

import psycopg
import pytest
import sqlalchemy as sa

from crucible_store.database import LEDGER_SESSION
from crucible_store.ledger import attempts, creating, heartbeats, hot, leasing, reaping, requests

STATEMENTS = {
    f"{module.__name__.rpartition('.')[2]}.{name}": value
    for module in (attempts, creating, heartbeats, hot, leasing, reaping, requests)
    for name, value in vars(module).items()
    if isinstance(value, sa.TextClause)
}
GROWING = "attempts|evaluations|events|idempotency|labels|requests|results"


@pytest.mark.parametrize("name", STATEMENTS)
def test_no_statement_walks_through_a_table_that_grows(store_database_url: str, name: str) -> None:
    """A plan that was made for an empty table may stay until the table is large."""
    numbers: dict[str, int] = {}
    text = re.sub(
        r"(?<!:):([a-z_0-9]+)",
        lambda found: f"${numbers.setdefault(found[1], len(numbers) + 1)}",
        STATEMENTS[name].text,
    )
    with psycopg.connect(store_database_url, options=LEDGER_SESSION) as connection:
        plan = "\n".join(row[0] for row in connection.execute(f"EXPLAIN (GENERIC_PLAN) {text}".encode()).fetchall())
    assert not re.search(rf"Seq Scan on ({GROWING})\b", plan), plan


def test_the_statements_are_found() -> None:
    assert len(STATEMENTS) > 10
