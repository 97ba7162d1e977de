"""The history as the checks look at it: what each command meant, what was said of it, and what the ledger has. Pure.

Money is in minor units from here on. A batch is taken apart into its items, and calls that move no money are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from msgspec import Struct

from ledgerd_loadtest.audit import minor
from ledgerd_loadtest.chaos.history import History, LedgerTransaction, Operation

_KINDS = {
    "credit": "credit",
    "debit": "debit",
    "transfer": "transfer",
    "hold_place": "hold",
    "hold_capture": "capture",
    "hold_release": "release",
    "advance_request": "advance",
    "advance_repay": "advance_payment",
    "transaction_cancel": "cancel",
}
"""The kind of transaction that each method posts."""

DAEMONS_OWN = frozenset({"expiry", "advance_payment"})
"""Kinds that daemons post by themselves."""


class Meaning(Struct, frozen=True):
    """What a command asks for, as far as it says so itself; None is left to the ledger, or is the world."""

    kind: str
    debit: int | None = None
    credit: int | None = None
    amount: int | None = None
    about: str | None = None


class Side(Struct, frozen=True):
    """What a transaction did to one account, and the account after it."""

    account_id: int
    version: int
    balance_change: int
    held_change: int
    balance: int
    held: int
    available: int


class Posting(Struct, frozen=True):
    """A transaction, as somebody was shown it."""

    transaction_id: str
    kind: str
    amount: int
    debit: int | None
    credit: int | None
    about: str | None
    created_at: str
    sides: tuple[Side, ...]

    def side(self, account_id: int) -> Side | None:
        """What it did to an account."""
        return next((side for side in self.sides if side.account_id == account_id), None)


class Sending(Struct, frozen=True):
    """One command of one call. ``posting`` is there if it was acknowledged, ``error`` if it was refused."""

    operation: Operation
    transaction_id: str
    meaning: Meaning
    outcome: str
    posting: Posting | None = None
    replayed: bool = False
    error: str | None = None
    data: Mapping[str, Any] | None = None


def posting_of(transaction: Mapping[str, Any]) -> Posting:
    """From the protocol's transaction."""
    about = transaction.get("hold_id") or transaction.get("reverses") or transaction.get("advance_id")
    return Posting(
        transaction_id=transaction["transaction_id"],
        kind=transaction["kind"],
        amount=minor(transaction["amount"]),
        debit=transaction["debit_account_id"],
        credit=transaction["credit_account_id"],
        about=None if about == transaction["transaction_id"] else about,
        created_at=transaction["created_at"],
        sides=tuple(
            Side(
                entry["account_id"],
                entry["version"],
                *(minor(entry[name]) for name in ("balance_change", "held_change", "balance", "held", "available")),
            )
            for entry in transaction["entries"]
        ),
    )


def meaning_of(method: str, params: Mapping[str, Any]) -> Meaning:
    """What a money command asks for."""
    debit = params.get("source_account_id") if method == "transfer" else None
    credit = params.get("destination_account_id") if method in ("transfer", "hold_place") else None
    account = params.get("account_id")
    if method in ("debit", "hold_place", "transaction_cancel"):
        debit = account
    elif method in ("credit", "advance_request"):
        credit = account
    amount = params.get("amount")
    return Meaning(
        kind=_KINDS[method],
        debit=debit,
        credit=credit,
        amount=None if amount is None else minor(amount),
        about=params.get("hold_id") or params.get("advance_id"),
    )


def sendings(history: History) -> Iterator[Sending]:
    """Every command of every call, in the order of the calls."""
    for operation in history.operations:
        if operation.method == "transaction_batch":
            yield from _of_batch(operation)
        elif operation.method in _KINDS:
            yield _of_single(operation)


def _of_single(operation: Operation) -> Sending:
    posting, replayed = None, False
    if operation.outcome == "ok":
        shown = operation.result.get("transaction", operation.result)
        posting, replayed = posting_of(shown), bool(shown.get("replayed"))
    return Sending(
        operation=operation,
        transaction_id=operation.params["transaction_id"],
        meaning=meaning_of(operation.method, operation.params),
        outcome=operation.outcome,
        posting=posting,
        replayed=replayed,
        error=operation.error,
        data=operation.data,
    )


def _of_batch(operation: Operation) -> Iterator[Sending]:
    outcomes: list[Any] = [{}] * len(operation.params["items"])
    if operation.outcome == "ok":
        outcomes = operation.result["outcomes"]
    for item, outcome in zip(operation.params["items"], outcomes, strict=True):
        shown, error = outcome.get("result"), outcome.get("error")
        yield Sending(
            operation=operation,
            transaction_id=item["params"]["transaction_id"],
            meaning=meaning_of(item["method"], item["params"]),
            outcome="refused" if error else operation.outcome,
            posting=None if shown is None else posting_of(shown),
            replayed=bool(shown and shown.get("replayed")),
            error=error["code"] if error else operation.error,
            data=error or operation.data,
        )


class Books(Struct, frozen=True):
    """The ledger in the end: every transaction by its id, and each account's in the order of versions."""

    postings: dict[str, Posting]
    by_account: dict[int, list[Posting]]

    def at(self, account_id: int, version: int) -> Posting | None:
        """The transaction that gave an account a version."""
        postings = self.by_account.get(account_id, [])
        if not 1 <= version <= len(postings):
            return None
        return postings[version - 1]


def books_of(accounts: Mapping[int, Any], transactions: Mapping[str, LedgerTransaction]) -> Books:
    """From what the lists of all accounts showed."""
    postings = {name: posting_of(shown.transaction) for name, shown in transactions.items()}
    by_account: dict[int, list[Posting]] = {number: [] for number in accounts}
    for posting in postings.values():
        for side in posting.sides:
            by_account.setdefault(side.account_id, []).append(posting)
    for number, those in by_account.items():
        those.sort(key=partial(_version_on, number))
    return Books(postings, by_account)


def _version_on(account_id: int, posting: Posting) -> int:
    side = posting.side(account_id)
    assert side is not None
    return side.version
