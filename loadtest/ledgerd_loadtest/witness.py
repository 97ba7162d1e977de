"""What a subscriber has been told, and whether that is the truth. Pure.

Rules of this file:

- A witness believes nothing: each version must follow the last, each balance must be the last one plus the change, and
  the first thing it hears of an account is version 0.
- What was told is kept as a digest, one per account: two witnesses with the same digest were told the same changes in
  the same order, and the ledger's own list of transactions must give that digest too.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct, field

from ledgerd_loadtest.audit import minor
from ledgerd_protocol.cursor import Cursor, FeedGap
from ledgerd_protocol.events import AccountStart, Event, Start, Update

PROBLEMS_MAX = 10
"""Sentences kept about one kind of difference; the rest is only counted."""


class Standing(Struct):
    """An account as somebody sees it; ``balance`` in minor units, ``digest`` over all changes from version 1 on."""

    version: int = 0
    balance: int = 0
    digest: int = 0

    def add(self, version: int, transaction_id: str, balance: int) -> None:
        """One change."""
        self.version = version
        self.balance = balance
        self.digest = zlib.crc32(f"{version} {transaction_id} {balance};".encode(), self.digest)


class Counts(Struct):
    """What one or many subscribers went through."""

    events: int = 0
    connections: int = 0
    disconnects: int = 0  # of our own will
    losses: int = 0  # the daemon's doing
    slow_spells: int = 0
    resumes: int = 0
    snapshots: int = 0  # beyond the first of each account
    passing_refusals: dict[str, int] = field(default_factory=dict)

    def merge(self, other: Counts) -> None:
        """Add another's."""
        for name in ("events", "connections", "disconnects", "losses", "slow_spells", "resumes", "snapshots"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for code, count in other.passing_refusals.items():
            self.passing_refusals[code] = self.passing_refusals.get(code, 0) + count


class Witness:
    """One subscriber's view of the accounts it follows."""

    def __init__(self) -> None:
        self.cursor = Cursor()
        self.standings: dict[int, Standing] = {}
        self.counts = Counts()
        self.problems: list[str] = []

    def take(self, event: Event) -> None:
        """Hear an event. What is wrong with it becomes a sentence in ``problems``."""
        try:
            self.cursor.apply(event)
        except FeedGap as gap:
            self.problems.append(str(gap))
            return
        if isinstance(event, Update):
            self.counts.events += 1
            self._update(event)
        elif isinstance(event, Start):
            for account in event.accounts:
                self._start(account)

    def reached(self, versions: Mapping[int, int]) -> bool:
        """Whether every followed account is at these versions, or beyond."""
        return all(standing.version >= versions.get(account, 0) for account, standing in self.standings.items())

    def _start(self, account: AccountStart) -> None:
        number = account.account_id
        standing = self.standings.get(number)
        if account.origin == "resumed":
            self.counts.resumes += 1
            if standing is None:
                self.problems.append(f"account {number} was resumed and had not been followed")
            elif account.version == standing.version and minor(account.balance) != standing.balance:
                self.problems.append(f"account {number} was resumed with another balance of version {account.version}")
        elif standing is None:
            if account.version != 0:
                self.problems.append(f"account {number} began with version {account.version}, before any money moved")
            self.standings[number] = Standing(account.version, minor(account.balance))
        else:
            self.counts.snapshots += 1
            self.problems.append(f"account {number} started over with a snapshot ({account.reason})")

    def _update(self, update: Update) -> None:
        standing = self.standings[update.account_id]
        balance = minor(update.balance)
        if standing.balance + minor(update.balance_change) != balance:
            self.problems.append(f"account {update.account_id} does not add up at version {update.version}")
        standing.add(update.version, update.transaction_id, balance)


# -- the truth ---------------------------------------------------------------------------------------------------------


class Change(Struct, frozen=True):
    """What a transaction did to an account, as the ledger lists it. Money in minor units."""

    version: int
    transaction_id: str
    balance_change: int
    balance: int


class Sent(Struct):
    """A transfer of ``amount`` minor units, and what became of it: the versions that its answer gave both accounts."""

    source: int
    destination: int
    amount: int
    versions: dict[int, int] | None = None


class Account(Struct, frozen=True):
    """The ledger's own view of an account at the end."""

    version: int
    balance: int
    changes: list[Change]


def changes_of(account_id: int, items: Iterable[Mapping[str, Any]]) -> list[Change]:
    """One account's changes in the order of versions, from the items of `transaction_list`."""
    changes = [
        Change(entry["version"], item["transaction_id"], minor(entry["balance_change"]), minor(entry["balance"]))
        for item in items
        for entry in item["entries"]
        if entry["account_id"] == account_id
    ]
    return sorted(changes, key=lambda change: change.version)


def truth_of(account: Account) -> Standing:
    """Where a witness stands that was told everything."""
    standing = Standing()
    for change in account.changes:
        standing.add(change.version, change.transaction_id, change.balance)
    return standing


def ledger_problems(accounts: Mapping[int, Account], sent: Mapping[str, Sent], funded: Mapping[str, int]) -> list[str]:
    """Whether the ledger holds what was sent, once, and nothing else. ``funded`` has the minor units by transaction."""
    found: list[str] = []
    for number, account in accounts.items():
        found += _account_problems(number, account)
    sides = {(number, change.transaction_id): change for number, each in accounts.items() for change in each.changes}
    times = Counter((number, change.transaction_id) for number, each in accounts.items() for change in each.changes)
    found += [f"{name} is in the list of account {number} {n} times" for (number, name), n in times.items() if n > 1]
    found += _strangers(sides, sent, funded)
    for name, transfer in sent.items():
        found += _transfer_problems(name, transfer, sides)
    total = sum(account.balance for account in accounts.values())
    if total != sum(funded.values()):
        found.append(f"{sum(funded.values())} minor units were put in and {total} are there")
    return found


def _account_problems(number: int, account: Account) -> list[str]:
    versions = [change.version for change in account.changes]
    if versions != list(range(1, account.version + 1)):
        return [f"account {number} is at version {account.version} and its list does not have each version once"]
    found, balance = [], 0
    for change in account.changes:
        balance += change.balance_change
        if balance != change.balance:
            found.append(f"the list of account {number} does not add up at version {change.version}")
            balance = change.balance
    if balance != account.balance:
        found.append(f"account {number} has {account.balance} and its list ends with {balance}")
    return found


def _strangers(
    sides: Mapping[tuple[int, str], Change], sent: Mapping[str, Sent], funded: Mapping[str, int]
) -> list[str]:
    names = {name for _, name in sides}
    return [f"{name} is in the ledger and was never sent" for name in names - sent.keys() - funded.keys()]


def _transfer_problems(name: str, transfer: Sent, sides: Mapping[tuple[int, str], Change]) -> list[str]:
    if transfer.versions is None:
        return [f"{name} was never answered"]
    found = []
    for number, change in ((transfer.source, -transfer.amount), (transfer.destination, transfer.amount)):
        posted = sides.get((number, name))
        if posted is None:
            found.append(f"{name} was acknowledged and is not in the list of account {number}")
        elif posted.balance_change != change or posted.version != transfer.versions.get(number):
            found.append(f"{name} is in the list of account {number}, and not as it was acknowledged")
    return found


def feed_problems(
    name: str, standings: Mapping[int, Standing], followed: Sequence[int], truth: Mapping[int, Standing]
) -> list[str]:
    """Whether a subscriber was told everything about the accounts it follows, once, and nothing else."""
    if sorted(standings) != sorted(followed):
        return [f"{name} follows {len(followed)} accounts and was told of {len(standings)}"]
    found = []
    for number, seen in standings.items():
        true = truth[number]
        if seen.version != true.version:
            found.append(f"{name} is at version {seen.version} of account {number}, the ledger at {true.version}")
        elif seen.balance != true.balance:
            found.append(f"{name} has balance {seen.balance} of account {number}, the ledger {true.balance}")
        elif seen.digest != true.digest:
            found.append(f"{name} was told another history of account {number} than the ledger has")
    return found


def limited(problems: Sequence[str]) -> list[str]:
    """The first ones, and how many more there are."""
    if len(problems) <= PROBLEMS_MAX:
        return list(problems)
    return [*problems[:PROBLEMS_MAX], f"and {len(problems) - PROBLEMS_MAX} more"]
