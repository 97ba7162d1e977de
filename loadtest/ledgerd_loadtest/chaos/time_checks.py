"""Whether what everybody saw can have happened in one order, and that order in real time. Pure.

The ledger's versions say the order of each account. What one caller was told before another began to ask was done
before; so a version that comes later may not have been acknowledged before an earlier one was asked for. The same holds
of what is read, and of what a feed shows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from itertools import pairwise

from msgspec import Struct

from ledgerd_loadtest.chaos.history import History, Operation, Told
from ledgerd_loadtest.chaos.ledger_checks import matches
from ledgerd_loadtest.chaos.sendings import Books, Sending

BANK = "bank"
"""The workload, and the group of accounts, whose total never changes."""


class Span(Struct):
    """When a transaction was first asked for, and when it was first acknowledged; None if nobody did."""

    invoked_s: float | None = None
    acknowledged_s: float | None = None


def spans_of(sent: list[Sending], books: Books) -> dict[str, Span]:
    """The span of every transaction."""
    spans = {name: Span() for name in books.postings}
    for sending in sent:
        posting = books.postings.get(sending.transaction_id)
        if posting is None or not matches(sending.meaning, posting):
            continue
        span, operation = spans[sending.transaction_id], sending.operation
        span.invoked_s = min(operation.invoked_s, span.invoked_s or operation.invoked_s)
        if sending.outcome == "ok" and operation.answered_s is not None:
            span.acknowledged_s = min(operation.answered_s, span.acknowledged_s or operation.answered_s)
    return spans


def versions_follow_time(books: Books, spans: Mapping[str, Span]) -> Iterator[str]:
    """What was acknowledged before something else was asked for has the lower version on every account of both."""
    for number, postings in books.by_account.items():
        latest_s, latest = float("-inf"), ""
        for posting in postings:
            span = spans[posting.transaction_id]
            if span.acknowledged_s is not None and span.acknowledged_s < latest_s:
                yield f"account {number}: {posting.transaction_id} was acknowledged before {latest} was asked for"
            if span.invoked_s is not None and span.invoked_s > latest_s:
                latest_s, latest = span.invoked_s, posting.transaction_id


def one_order(books: Books) -> Iterator[str]:
    """The orders of all accounts fit into one: nothing is before itself."""
    after: defaultdict[str, list[str]] = defaultdict(list)
    waiting: defaultdict[str, int] = defaultdict(int)
    for postings in books.by_account.values():
        for first, second in pairwise(postings):
            after[first.transaction_id].append(second.transaction_id)
            waiting[second.transaction_id] += 1
    free = deque(name for name in books.postings if not waiting[name])
    placed = 0
    while free:
        placed += 1
        for name in after[free.popleft()]:
            waiting[name] -= 1
            if not waiting[name]:
                free.append(name)
    if placed != len(books.postings):
        yield f"{len(books.postings) - placed} transactions are in no order that all their accounts agree with"


def arrival_order(sent: list[Sending]) -> Iterator[str]:
    """What one connection sent for one account, without waiting, was done in the order in which it was sent."""
    last: dict[tuple[str, int], tuple[int, int, str]] = {}
    for sending in sent:
        place, account = sending.operation.in_order, sending.meaning.debit
        if place is None or account is None or sending.posting is None or sending.replayed:
            continue
        side = sending.posting.side(account)
        if side is None:
            continue
        key = (sending.operation.line, account)
        before = last.get(key)
        if before is not None and before[0] < place and before[1] > side.version:
            yield f"account {account}: {sending.transaction_id} was sent after {before[2]} and done before it"
        last[key] = (place, side.version, sending.transaction_id)


# -- reads -------------------------------------------------------------------------------------------------------------


class Seen(Struct, frozen=True):
    """An account as a read showed it."""

    operation: Operation
    account_id: int
    version: int
    balance: int
    available: int


def reads_of(history: History) -> list[Seen]:
    """Everything that `balance_get` and `account_list` answered."""
    return [
        Seen(operation, *item)
        for operation in history.operations
        if operation.outcome == "ok" and operation.method in ("balance_get", "account_list")
        for item in operation.result
    ]


class Sightings:
    """By account: the highest version that anybody had seen before an instant."""

    def __init__(self, observed: Mapping[int, list[tuple[float, int]]]) -> None:
        self._times: dict[int, list[float]] = {}
        self._highest: dict[int, list[int]] = {}
        for account, seen in observed.items():
            highest = 0
            times, versions = [], []
            for at, version in sorted(seen):
                highest = max(highest, version)
                times.append(at)
                versions.append(highest)
            self._times[account], self._highest[account] = times, versions

    def before(self, account: int, at: float) -> int:
        """The highest version seen before, 0 if none was."""
        place = bisect_left(self._times.get(account, []), at)
        return self._highest[account][place - 1] if place else 0


def sightings_of(books: Books, spans: Mapping[str, Span], reads: list[Seen], told: list[Told]) -> Sightings:
    """From acknowledgements, reads and events."""
    observed: defaultdict[int, list[tuple[float, int]]] = defaultdict(list)
    for posting in books.postings.values():
        at = spans[posting.transaction_id].acknowledged_s
        if at is not None:
            for side in posting.sides:
                observed[side.account_id].append((at, side.version))
    for read in reads:
        assert read.operation.answered_s is not None
        observed[read.account_id].append((read.operation.answered_s, read.version))
    for each in told:
        for (version, _, _), at in zip(each.changes, each.arrived_s, strict=True):
            observed[each.account_id].append((at, version))
    return Sightings(observed)


def reads_are_true(reads: list[Seen], books: Books, spans: Mapping[str, Span], seen: Sightings) -> Iterator[str]:
    """A read shows the ledger as it was at some instant while it was asked: neither the past nor what never was."""
    for read in reads:
        name = f"a read of account {read.account_id} at version {read.version}"
        posting = books.at(read.account_id, read.version)
        side = None if posting is None else posting.side(read.account_id)
        true = (0, 0) if side is None else (side.balance, side.available)
        if true != (read.balance, read.available) or (side is None and read.version):
            yield f"{name} showed {read.balance}, which it never was"
        known = seen.before(read.account_id, read.operation.invoked_s)
        if read.version < known:
            yield f"{name} came after version {known} had been seen"
        invoked_s = None if posting is None else spans[posting.transaction_id].invoked_s
        if invoked_s is not None and read.operation.answered_s is not None and invoked_s > read.operation.answered_s:
            yield f"{name} came before that was asked for"


def totals_are_kept(history: History) -> Iterator[str]:
    """However often the bank is counted while money moves inside it, it is the same."""
    totals = [
        (operation.number, len(operation.result), sum(item[2] for item in operation.result))
        for operation in history.operations
        if operation.workload == BANK and operation.method == "account_list" and operation.outcome == "ok"
    ]
    bank = [account for account in history.accounts.values() if account.group == BANK]
    true = sum(account.balance for account in bank)
    for number, count, total in totals:
        if (count, total) != (len(bank), true):
            yield f"count {number} found {total} in {count} accounts of the bank, not {true} in {len(bank)}"
