"""Every change of an evaluation's state; nothing else in the store writes one.

`hot` is the row in SQL, `creating`, `leasing`, `heartbeats`, `reaping`, `requests` and `attempts` are the rules of the
protocol in transactions, `Ledger` runs them and announces what they committed.
"""

from crucible_store.ledger.book import Ledger

__all__ = ["Ledger"]
