"""What happened, as it was seen from outside: the only thing that a verdict is made of. One line of JSON per record.

All instants are seconds of the monotonic clock of the process that made the calls, which made all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct, field

Outcome = Literal["ok", "refused", "unknown"]


class Operation(Struct, tag="operation", kw_only=True):
    """One call. ``result`` is there if it was answered; ``error`` is the stable string of a refusal.

    ``unknown`` is every call that may be carried out, or have been, although nobody said so: the answer did not come in
    time, or it said ``applied: null``.
    """

    number: int
    workload: str
    line: str  # the connection, which may have been made anew underneath
    daemon: int
    method: str
    params: dict[str, Any]
    invoked_s: float
    answered_s: float | None = None
    outcome: Outcome = "unknown"
    result: Any = None
    error: str | None = None
    data: dict[str, Any] | None = None
    in_order: int | None = None  # its place among those that one connection sent without waiting


class Told(Struct, tag="told", kw_only=True):
    """What one subscriber was told of one account: version, transaction and balance, in the order in which it came."""

    subscriber: str
    account_id: int
    changes: list[tuple[int, str, int]]
    arrived_s: list[float]
    problems: list[str] = []


class Fault(Struct, tag="fault", kw_only=True):
    """Something that was broken, and until when."""

    kind: str
    began_s: float
    ended_s: float
    detail: str = ""


class LedgerAccount(Struct, tag="account", kw_only=True):
    """An account in the end; money in minor units."""

    account_id: int
    group: str
    version: int = 0
    balance: int = 0
    held: int = 0
    overdraft_limit: int = 0


class LedgerTransaction(Struct, tag="transaction", kw_only=True):
    """A transaction in the end, as `transaction_list` shows it; ``in_lists`` is how often."""

    transaction: dict[str, Any]
    in_lists: int = 0


class LedgerAdvance(Struct, tag="advance", kw_only=True):
    """An advance in the end, as `advance_get` shows it."""

    advance: dict[str, Any]


class Signs(Struct, tag="signs", kw_only=True):
    """What the processes say of themselves: each is zero or empty where nothing is wrong."""

    deadlocks: int = 0
    fence_hits: int = 0
    ended_by_themselves: list[str] = []
    errors_logged: list[str] = []
    verify: list[str] = []


Record = Operation | Told | Fault | LedgerAccount | LedgerTransaction | LedgerAdvance | Signs


class History(Struct, kw_only=True):
    """Everything of one run."""

    operations: list[Operation] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    accounts: dict[int, LedgerAccount] = field(default_factory=dict)
    transactions: dict[str, LedgerTransaction] = field(default_factory=dict)
    advances: list[LedgerAdvance] = field(default_factory=list)
    signs: Signs = field(default_factory=Signs)

    def records(self) -> Iterable[Record]:
        """All of them, the operations in the order of their invocation."""
        yield from self.operations
        yield from self.told
        yield from self.faults
        yield from self.accounts.values()
        yield from self.transactions.values()
        yield from self.advances
        yield self.signs


def write(history: History, path: Path) -> None:
    """One line per record. Raises OSError."""
    encode = msgspec.json.Encoder().encode
    with path.open("wb") as file:
        for record in history.records():
            file.write(encode(record) + b"\n")


def read(path: Path) -> History:
    """What `write` wrote. Raises OSError, msgspec.MsgspecError."""
    history = History()
    decode = msgspec.json.Decoder(Record).decode
    with path.open("rb") as file:
        for line in file:
            _add(history, decode(line))
    return history


def _add(history: History, record: Record) -> None:
    match record:
        case Operation():
            history.operations.append(record)
        case Told():
            history.told.append(record)
        case Fault():
            history.faults.append(record)
        case LedgerAccount():
            history.accounts[record.account_id] = record
        case LedgerTransaction():
            history.transactions[record.transaction["transaction_id"]] = record
        case LedgerAdvance():
            history.advances.append(record)
        case Signs():
            history.signs = record
