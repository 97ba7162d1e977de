"""A history through the model: what the ledger did must be what the rules say, in the order of its versions."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import pairwise

from ledgerd_loadtest.chaos.history import History
from ledgerd_loadtest.chaos.sendings import Books, Posting, books_of
from tests.model import SECOND, Account, Command, Ledger, Posted, Token, Transaction, Unit, audit

TOKEN = Token(1, frozenset({"operator"}))

_AS = {"advance": "credit", "advance_payment": "debit"}
"""The model has no schedules: an advance brings money from outside, and a payment takes it there."""

_WITHOUT_AMOUNT = frozenset({"release", "expiry"})


class _Indexed(Ledger):
    """The model, which looks through all transactions for those about another, with an index instead."""

    def __init__(self, accounts: Iterable[Account], tokens: Iterable[Token]) -> None:
        super().__init__(accounts, tokens)
        self._about: defaultdict[str | None, list[Transaction]] = defaultdict(list)

    def note(self, transaction: Transaction) -> None:
        """It is posted."""
        self._about[transaction.refers_to].append(transaction)

    def about(self, transaction_id: str | None, *kinds: str) -> list[Transaction]:
        """As the model's."""
        return [each for each in self._about[transaction_id] if each.kind in kinds]


def replay(history: History) -> list[str]:
    """Post every transaction of the history to a fresh model; what came out otherwise, and what an auditor finds."""
    books = books_of(history.accounts, history.transactions)
    ledger = _Indexed([Account(number, number, "USD") for number in history.accounts], [TOKEN])
    problems = []
    for posting in in_order(books):
        shown = history.transactions[posting.transaction_id].transaction
        command = command_of(posting, shown.get("expires_at"))
        [[outcome]] = ledger.post([Unit((command,))], now=microseconds(posting.created_at))
        if not isinstance(outcome, Posted):
            problems.append(f"{posting.kind} {posting.transaction_id} is in the ledger, the rules say {outcome}")
            continue
        ledger.note(outcome.transaction)
        for account, after in (
            (outcome.transaction.debit_account, outcome.transaction.debit),
            (outcome.transaction.credit_account, outcome.transaction.credit),
        ):
            side = None if account is None else posting.side(account)
            is_ = None if side is None else (side.version, side.balance, side.held, side.available)
            must = None if after is None else (after.version, after.balance, after.held, after.available)
            if is_ != must:
                problems.append(f"{posting.kind} {posting.transaction_id}: account {account} is {is_}, not {must}")
    return problems + audit(ledger.accounts, ledger.transactions.values())


def in_order(books: Books) -> Iterator[Posting]:
    """All transactions in one order that all accounts agree with."""
    after: defaultdict[str, list[str]] = defaultdict(list)
    waiting: defaultdict[str, int] = defaultdict(int)
    for postings in books.by_account.values():
        for first, second in pairwise(postings):
            after[first.transaction_id].append(second.transaction_id)
            waiting[second.transaction_id] += 1
    free = [(posting.created_at, name) for name, posting in books.postings.items() if not waiting[name]]
    heapq.heapify(free)
    while free:
        _, name = heapq.heappop(free)
        yield books.postings[name]
        for later in after[name]:
            waiting[later] -= 1
            if not waiting[later]:
                heapq.heappush(free, (books.postings[later].created_at, later))


def command_of(posting: Posting, expires_at: str | None) -> Command:
    """The command that posts this transaction."""
    expires_in_s = None
    if expires_at is not None:
        expires_in_s = (microseconds(expires_at) - microseconds(posting.created_at)) // SECOND
    return Command(
        kind=_AS.get(posting.kind, posting.kind),
        token_id=TOKEN.token_id,
        transaction_id=posting.transaction_id,
        attempt_id=posting.transaction_id,
        debit=posting.debit,
        credit=posting.credit,
        amount=None if posting.kind in _WITHOUT_AMOUNT else posting.amount,
        currency="USD",
        refers_to=None if posting.kind in _AS else posting.about,
        expires_in_s=expires_in_s,
    )


def microseconds(text: str) -> int:
    """A time of the protocol in the model's unit."""
    return round(datetime.fromisoformat(text).timestamp() * SECOND)
