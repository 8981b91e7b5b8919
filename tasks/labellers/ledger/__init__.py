"""The ledger: every answer is bought once, by whichever lineage asks first, and kept through kills.

SQLite by default, Postgres by URL. Each lineage is charged in its own account for every answer that it uses.
"""

from tasks.labellers.ledger.book import Ledger
from tasks.labellers.ledger.contents import question_key, shown, shown_swapped
from tasks.labellers.ledger.records import Account, Entry, OpenQuestion, Progress, Receipt, Spend

__all__ = [
    "Account",
    "Entry",
    "Ledger",
    "OpenQuestion",
    "Progress",
    "Receipt",
    "Spend",
    "question_key",
    "shown",
    "shown_swapped",
]
