"""The auditor finds what cannot be; a clean ledger has nothing to say."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tests.model import SECOND, Account, After, Command, Hold, Ledger, Posted, Token, Transaction, Unit, audit


class Books:
    """A small ledger in which everything has happened, and what an auditor sees of it, to be falsified."""

    def __init__(self) -> None:
        self.ledger = Ledger([Account(1, 1, "USD"), Account(2, 2, "USD"), Account(3, 3, "USD")], [_OPERATOR])
        self.post("paid in", "credit", credit=1, amount=100)
        self.post("limit", "limit", debit=2, amount=50)
        self.post("moved", "transfer", debit=1, credit=2, amount=20)
        self.post("captured", "hold", debit=1, credit=2, amount=10, expires_in_s=60)
        self.post("capture", "capture", about="captured", amount=4)
        self.post("released", "hold", debit=1, amount=10, expires_in_s=60)
        self.post("release", "release", about="released")
        self.post("pending", "hold", debit=1, amount=7, expires_in_s=600)
        self.post("due", "hold", debit=1, amount=3, expires_in_s=60)
        self.post("expiry", "expiry", about="due", now=61 * SECOND)
        self.post("reversal", "reversal", about="moved", amount=5, now=61 * SECOND)
        self.post("won", "bet", debit=2, amount=2, now=62 * SECOND)
        self.post("win", "win", credit=2, about="won", amount=9, now=62 * SECOND)
        self.post("lost", "bet", debit=2, amount=2, now=62 * SECOND)
        self.post("rollback", "rollback", credit=2, about="lost", now=62 * SECOND)
        self.post("tombstone", "cancel", debit=3, now=62 * SECOND)
        self.post("frozen", "freeze", debit=3, now=62 * SECOND)
        self.post("unfrozen", "unfreeze", debit=3, now=62 * SECOND)
        self.post("closed", "close", debit=3, now=63 * SECOND)
        self.accounts = self.ledger.accounts
        self.transactions = list(self.ledger.transactions.values())
        self.holds = self.ledger.pending_holds

    def post(self, name: str, kind: str, *, about: str | None = None, now: int = 0, **members: Any) -> None:
        if kind in ("capture", "release", "expiry", "reversal"):
            members["debit"] = 0
        command = Command(
            kind, 1, _id(name), str(uuid.uuid4()), refers_to=None if about is None else _id(about), **members
        )
        ((outcome,),) = self.ledger.post([Unit((command,))], now=now)
        assert isinstance(outcome, Posted)

    def __getitem__(self, name: str) -> Transaction:
        return next(each for each in self.transactions if each.transaction_id == _id(name))

    def change(self, name: str, **members: Any) -> None:
        at = next(i for i, each in enumerate(self.transactions) if each.transaction_id == _id(name))
        self.transactions[at] = msgspec.structs.replace(self.transactions[at], **members)

    def repeat(self, name: str) -> None:
        """Another transaction like this one, with another id."""
        self.transactions.append(msgspec.structs.replace(self[name], transaction_id=str(uuid.uuid4())))

    def lose(self, name: str) -> None:
        self.transactions.remove(self[name])

    def audit(self) -> list[str]:
        return audit(self.accounts, self.transactions, self.holds)


_OPERATOR = Token(1, frozenset({"operator"}))


def _id(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, name))


def test_a_clean_ledger_has_nothing_to_say() -> None:
    assert Books().audit() == []


FALSIFICATIONS: list[tuple[str, Callable[[Books], None]]] = [
    ("stored twice", lambda books: books.transactions.append(books["moved"])),
    ("is at version", lambda books: books.lose("moved")),
    ("is at version", lambda books: books.repeat("paid in")),
    ("came from nowhere", lambda books: books.change("paid in", amount=101)),
    ("not 81 and 0", lambda books: books.change("moved", amount=19)),
    ("has balance 76", lambda books: setattr(books.accounts[2], "balance", 76)),
    ("holds 8", lambda books: setattr(books.accounts[1], "held", 8)),
    ("has the limit 51", lambda books: setattr(books.accounts[2], "overdraft_limit", 51)),
    ("is active, its transactions say closed", lambda books: setattr(books.accounts[3], "status", "active")),
    ("is frozen, its transactions say active", lambda books: setattr(books.accounts[1], "status", "frozen")),
    ("took no version of account 2", lambda books: books.change("moved", credit=None)),
    ("took a version of account 2", lambda books: books.change("captured", credit=After(2, 20, 0, 70))),
    ("took a version of account 3", lambda books: books.change("tombstone", debit=After(1, 0, 0, 0))),
    ("was posted as posted", lambda books: books.change("captured", status="posted")),
    ("was posted as pending", lambda books: books.change("moved", status="pending")),
    ("has the amount 1", lambda books: books.change("frozen", amount=1)),
    ("has the amount 0", lambda books: books.change("release", amount=0)),
    ("holds 9 of 10", lambda books: books.change("captured", held_change=9)),
    ("never expires", lambda books: books.change("captured", expires_in_s=None)),
    ("changes what is held by 1", lambda books: books.change("moved", held_change=1)),
    ("ends no hold", lambda books: books.change("capture", refers_to=_id("moved"))),
    ("names other accounts than its hold", lambda books: books.change("capture", credit_account=3)),
    ("lets 4 of 10 go", lambda books: books.change("capture", held_change=-4)),
    ("takes 11 of 10", lambda books: books.change("capture", amount=11)),
    ("takes 4 of 10", lambda books: books.change("release", amount=4)),
    ("came at the wrong time", lambda books: books.change("capture", created_at=60 * SECOND)),
    ("came at the wrong time", lambda books: books.change("expiry", created_at=60 * SECOND - 1)),
    ("ended 2 times", lambda books: books.repeat("release")),
    ("came after the account was closed", lambda books: books.change("unfrozen", kind="close")),
    ("was closed with balance", lambda books: books.change("moved", kind="close")),
    ("cannot be given back", lambda books: books.change("reversal", refers_to=_id("won"))),
    ("does not go the way back", lambda books: books.change("reversal", credit_account=3)),
    ("of 20 were given back", lambda books: [books.repeat("reversal") for _ in range(4)] and None),
    ("is of no bet of its account", lambda books: books.change("win", refers_to=_id("moved"))),
    ("is of no bet of its account", lambda books: books.change("win", credit_account=1)),
    ("was won 2 times", lambda books: books.repeat("win")),
    ("won 1 and rolled back 1 times", lambda books: books.change("rollback", refers_to=_id("won"))),
    ("won 0 and rolled back 2 times", lambda books: books.repeat("rollback")),
    ("gives back what no bet", lambda books: books.change("rollback", amount=3)),
    ("gives back what no bet", lambda books: books.change("rollback", credit_account=1)),
    ("although it had been rolled back", lambda books: books.change("rollback", amount=0)),
    ("pays back no advance", lambda books: books.change("reversal", kind="advance_payment")),
    ("refers to something", lambda books: books.change("moved", refers_to=_id("won"))),
    ("available, not", lambda books: books.change("limit", amount=49)),
    ("is overdrawn", lambda books: books.change("moved", debit=After(2, 80, 0, -1))),
    ("is older than the version before it", lambda books: books.change("moved", created_at=-1)),
    ("pending on one side only", lambda books: books.holds.pop(_id("pending")) and None),
    ("pending on one side only", lambda books: books.holds.update({_id("released"): Hold(1, 60 * SECOND)})),
    ("is kept as", lambda books: books.holds.update({_id("pending"): Hold(1, 601 * SECOND)})),
]


@pytest.mark.parametrize(("found", "falsify"), FALSIFICATIONS)
def test_what_cannot_be_is_found(found: str, falsify: Callable[[Books], None]) -> None:
    books = Books()
    falsify(books)
    assert [problem for problem in books.audit() if found in problem]
