"""The rules of the ledger in plain Python, written from the protocol: what the kernel must answer, as plainly as it can
be said. Two implementations that must agree are worth more than either alone.

`Ledger` judges and applies commands. `audit` needs no commands: it looks at accounts, transactions and pending holds,
from wherever they come, and says what cannot be. Amounts are integers in minor units, times integers in microseconds.
Nothing here reads a clock or a database.
"""

from __future__ import annotations

from tests.model.auditor import audit
from tests.model.ledger import Ledger
from tests.model.nouns import (
    ABSENT,
    AMOUNTLESS,
    HOLD_ENDS,
    PROFILE,
    REFERRING,
    REVERSIBLE,
    SECOND,
    STILL,
    Account,
    After,
    Attempt,
    Command,
    Hold,
    Outcome,
    Place,
    Posted,
    Refusal,
    Token,
    Transaction,
    Unit,
)

__all__ = [
    "ABSENT",
    "AMOUNTLESS",
    "HOLD_ENDS",
    "PROFILE",
    "REFERRING",
    "REVERSIBLE",
    "SECOND",
    "STILL",
    "Account",
    "After",
    "Attempt",
    "Command",
    "Hold",
    "Ledger",
    "Outcome",
    "Place",
    "Posted",
    "Refusal",
    "Token",
    "Transaction",
    "Unit",
    "audit",
]
