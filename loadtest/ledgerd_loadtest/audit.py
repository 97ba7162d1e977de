"""The auditor: what the daemon answered, held against what was sent and against the accounts before and after. Pure.

Rules of this file:

- A reply proves nothing by arriving: id, status, amount and the change of each account it shows must be those of the
  transfer that was sent.
- Every posted transfer takes exactly one version of each of its two accounts. So the versions that an account gained
  are as many as the transfers that touched it; those that were shown lie in between, and none is shown twice.
- A transfer moves money, it makes none: the sum over all accounts stays, and each account changed by what it was told.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping

import msgspec
from msgspec import Struct, field

from ledgerd_loadtest.commands import AMOUNT, AMOUNT_MINOR, SCALE, Request, Transfer
from ledgerd_protocol.money import to_minor

SAMPLE_MAX = 400
"""Transaction ids kept of one harvest, to be looked up afterwards."""

PROBLEMS_MAX = 10
"""Sentences kept about one kind of difference; the rest is only counted."""

NOT_SHOWN = 0
"""The version of a side that the reply did not show: it belongs to somebody else. No change has this version."""


class Point(Struct, frozen=True):
    """An account at one moment; ``balance`` in minor units."""

    balance: int
    version: int


def _longs() -> array[int]:
    return array("q")


class Touches(Struct):
    """How posted transfers changed accounts: three columns, one row per side of a transfer."""

    accounts: array[int] = field(default_factory=_longs)
    versions: array[int] = field(default_factory=_longs)
    changes: array[int] = field(default_factory=_longs)

    def add(self, account: int, version: int, change: int) -> None:
        """Account, its version after the change (or `NOT_SHOWN`), and the change in minor units."""
        self.accounts.append(account)
        self.versions.append(version)
        self.changes.append(change)


class Harvest(Struct):
    """What became of the transfers of one or more windows."""

    sent: int = 0
    posted: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    touches: Touches = field(default_factory=Touches)
    sample: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def merge(self, other: Harvest) -> None:
        """Take in what another harvest has."""
        self.sent += other.sent
        self.posted += other.posted
        for code, count in other.refused.items():
            self.refused[code] = self.refused.get(code, 0) + count
        self.touches.accounts.extend(other.touches.accounts)
        self.touches.versions.extend(other.touches.versions)
        self.touches.changes.extend(other.touches.changes)
        self.sample += other.sample
        self.problems += other.problems

    def note(self, problem: str) -> None:
        """Keep a sentence about something that must not be."""
        self.problems.append(problem)

    def note_posted(self, transfer: Transfer, debit_version: int, credit_version: int) -> None:
        """A transfer was posted and gave its accounts these versions."""
        if len(self.sample) < SAMPLE_MAX:
            self.sample.append(transfer.transaction_id)
        self.posted += 1
        self.touches.add(transfer.source, debit_version, -AMOUNT_MINOR)
        self.touches.add(transfer.destination, credit_version, AMOUNT_MINOR)

    def unaccounted(self) -> int:
        """Transfers that were sent and never answered."""
        return self.sent - self.posted - sum(self.refused.values())


# -- replies -----------------------------------------------------------------------------------------------------------


class _Entry(Struct, gc=False):
    account_id: int
    balance_change: str
    version: int


class _Transaction(Struct):
    transaction_id: str
    status: str
    amount: str
    entries: list[_Entry]
    replayed: bool = False


class _ErrorData(Struct):
    code: str
    applied: bool | None


class _Error(Struct):
    data: _ErrorData


class _Outcome(Struct):
    result: _Transaction | None = None
    error: _Error | None = None


class _Outcomes(Struct):
    outcomes: list[_Outcome]


class _BatchReply(Struct):
    result: _Outcomes | None = None
    error: _Error | None = None


_SINGLE = msgspec.json.Decoder(_Outcome)
_BATCH = msgspec.json.Decoder(_BatchReply)


def take_reply(harvest: Harvest, request: Request, reply: bytes) -> None:
    """Account for every transfer of a request with the reply to it."""
    try:
        outcomes = _outcomes(request, reply)
    except msgspec.MsgspecError as error:
        harvest.note(f"a reply is not what the protocol says: {error}")
        return
    if len(outcomes) != len(request.transfers):
        harvest.note(f"{len(request.transfers)} items were sent and {len(outcomes)} outcomes came back")
        return
    for transfer, outcome in zip(request.transfers, outcomes, strict=True):
        if outcome.result is not None:
            _take_posted(harvest, transfer, outcome.result)
        elif outcome.error is not None:
            code = outcome.error.data.code
            harvest.refused[code] = harvest.refused.get(code, 0) + 1
            if outcome.error.data.applied is not False:
                harvest.note(f"the outcome of {transfer.transaction_id} is unknown ({code})")
        else:
            harvest.note(f"{transfer.transaction_id} was answered with neither a result nor an error")


def _outcomes(request: Request, reply: bytes) -> list[_Outcome]:
    if not request.batch:
        return [_SINGLE.decode(reply)]
    answer = _BATCH.decode(reply)
    if answer.result is not None:
        return answer.result.outcomes
    return [_Outcome(error=answer.error)] * len(request.transfers)


def _take_posted(harvest: Harvest, transfer: Transfer, posted: _Transaction) -> None:
    said = (posted.transaction_id, posted.status, posted.amount, posted.replayed)
    if said != (transfer.transaction_id, "posted", AMOUNT, False):
        harvest.note(f"{transfer.transaction_id} was answered with {said}")
        return
    versions = {transfer.source: NOT_SHOWN, transfer.destination: NOT_SHOWN}
    changes = {transfer.source: -AMOUNT_MINOR, transfer.destination: AMOUNT_MINOR}
    for entry in posted.entries:
        if changes.get(entry.account_id) != minor(entry.balance_change):
            harvest.note(
                f"{transfer.transaction_id} changed account {entry.account_id} by {entry.balance_change}, "
                f"which is not the transfer of {AMOUNT} from {transfer.source} to {transfer.destination}"
            )
        versions[entry.account_id] = entry.version
    harvest.note_posted(transfer, versions[transfer.source], versions[transfer.destination])


def minor(text: str) -> int:
    """Minor units of a balance or a change, which may be negative or zero. Raises the errors of `to_minor`."""
    if text[:1] == "-":
        return -to_minor(text[1:], SCALE, zero_allowed=True)
    return to_minor(text, SCALE, zero_allowed=True)


# -- accounts ----------------------------------------------------------------------------------------------------------


def differences(before: Mapping[int, Point], after: Mapping[int, Point], harvest: Harvest) -> list[str]:
    """Sentences about everything that does not add up; empty if all does."""
    found = list(harvest.problems[:PROBLEMS_MAX])
    if len(harvest.problems) > PROBLEMS_MAX:
        found.append(f"and {len(harvest.problems) - PROBLEMS_MAX} more replies that are wrong")
    if missing := harvest.unaccounted():
        found.append(f"{missing} of {harvest.sent} transfers have no valid answer")
    sums = [sum(point.balance for point in points.values()) for points in (before, after)]
    if sums[0] != sums[1]:
        found.append(f"transfers changed the sum of all balances from {sums[0]} to {sums[1]} minor units")
    return found + _limited(_account_differences(before, after, harvest.touches))


def _account_differences(before: Mapping[int, Point], after: Mapping[int, Point], touches: Touches) -> list[str]:
    counts: Counter[int] = Counter(touches.accounts)
    changes: defaultdict[int, int] = defaultdict(int)
    shown: defaultdict[int, list[int]] = defaultdict(list)
    for account, version, change in zip(touches.accounts, touches.versions, touches.changes, strict=True):
        changes[account] += change
        if version != NOT_SHOWN:
            shown[account].append(version)
    found = [f"account {account} was touched and is not one of ours" for account in counts.keys() - before.keys()]
    for account, start in before.items():
        end = after.get(account)
        if end is None:
            found.append(f"account {account} is gone")
            continue
        if end.version - start.version != counts[account]:
            found.append(
                f"account {account} went from version {start.version} to {end.version} by {counts[account]} transfers"
            )
        if end.balance - start.balance != changes[account]:
            found.append(
                f"the balance of account {account} changed by {end.balance - start.balance} minor units, "
                f"its transfers by {changes[account]}"
            )
        versions = shown[account]
        if len(set(versions)) != len(versions):
            found.append(f"a version of account {account} was given to two transfers")
        if versions and not start.version < min(versions) <= max(versions) <= end.version:
            found.append(f"a version of account {account} lies outside {start.version + 1} to {end.version}")
    return found


def _limited(problems: list[str]) -> list[str]:
    if len(problems) <= PROBLEMS_MAX:
        return problems
    return [*problems[:PROBLEMS_MAX], f"and {len(problems) - PROBLEMS_MAX} more differences of accounts"]
