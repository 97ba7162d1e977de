"""What the storage knows, as the engine and the gateway read it: accounts, users, tokens, advances, pages of lists.

Amounts and times are as in `ledgerd.engine.commands`.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from ledgerd.engine.commands import ActorInfo, Record
from ledgerd_protocol.advances import AdvanceEventKind, PaymentStatus
from ledgerd_protocol.errors import ErrorCode


class AccountState(Struct, frozen=True):
    """An account as it is. ``available`` = balance - held + overdraft_limit."""

    account_id: int
    user_id: int
    currency: str
    scale: int
    balance: int
    held: int
    available: int
    overdraft_limit: int
    version: int
    status: str
    created_at: str
    updated_at: str


class BalanceState(Struct, frozen=True):
    """A balance as it was after ``version``, which was reached at ``as_of``."""

    account_id: int
    user_id: int
    currency: str
    scale: int
    balance: int
    held: int
    available: int
    version: int
    as_of: str


class UserState(Struct, frozen=True):
    """A user as it is."""

    user_id: int
    name: str
    email: str | None
    status: str
    created_at: str


class TokenState(Struct, frozen=True):
    """A token as it is, without its secret."""

    token_id: int
    user_id: int | None
    account_id: int | None
    scopes: tuple[str, ...]
    label: str | None
    created_at: str
    expires_at: str | None
    expires_at_s: float | None
    revoked_at: str | None


class AttemptState(Struct, frozen=True):
    """A refused attempt at a transaction_id."""

    attempt_id: str
    code: ErrorCode
    created_at: str


class MonitorState(Struct, frozen=True):
    """A monitor as it is. ``amount`` is in minor units of the account's currency.

    It looks at the changes above ``after_version``. ``user_id`` owns the account, ``set_by`` the token that set it;
    None if that is of no user. ``revision`` counts the changes of all monitors.
    """

    monitor_id: int
    account_id: int
    user_id: int
    currency: str
    scale: int
    direction: Literal["below", "above"]
    amount: int
    after_version: int
    label: str | None
    set_by: int | None
    created_at: str
    removed: bool
    revision: int


class PaymentState(Struct, frozen=True):
    """A payment of an advance; ``rolled_over`` of its amount came from payments that failed."""

    number: int
    due_at: str
    amount: int
    rolled_over: int
    paid: int
    status: PaymentStatus
    reason: str | None


class AdvanceEvent(Struct, frozen=True):
    """Something that happened to an advance; events of one are numbered without a hole, in the order of commits.

    ``type`` is one of `ledgerd_protocol.advances.EVENTS`. ``outstanding`` is what the advance asked for after it.
    """

    advance_id: str
    account_id: int
    currency: str
    scale: int
    event: int
    type: AdvanceEventKind
    number: int | None
    amount: int
    outstanding: int
    reason: str | None
    transaction_id: str | None
    created_at: str


class AdvanceState(Struct, frozen=True):
    """An advance as it is, all in one snapshot, with the latest of its payments and events; amounts in minor units.

    ``payments_omitted`` and ``events_omitted`` count those before, which were not read.
    """

    advance_id: str
    account_id: int
    user_id: int
    currency: str
    scale: int
    principal: int
    outstanding: int
    installments: int
    interval_days: int
    created_at: str
    payments: tuple[PaymentState, ...]
    payments_omitted: int
    events: tuple[AdvanceEvent, ...]
    events_omitted: int


class AdvanceHead(Struct, frozen=True):
    """How far an advance is: the number of its last event."""

    advance_id: str
    account_id: int
    currency: str
    scale: int
    outstanding: int
    event: int


class AdvanceStretch(Struct, frozen=True):
    """Events of advances that were committed after a place; those of one advance in order, perhaps not the next ones.

    ``end`` is the place after them; ``more`` says that there was more to read when this was read.
    """

    events: list[AdvanceEvent]
    end: Place
    more: bool


class Collected(Struct, frozen=True):
    """What one look for due payments came to.

    ``records`` are the payments collected, ``failed`` counts those that could not be; ``advances`` are the ids of all
    that were looked at. ``more``: there may be more to do at once.
    """

    records: list[Record]
    failed: int
    advances: list[str]
    more: bool


class FailedCommand(Struct, frozen=True):
    """A refused attempt, as a report shows it.

    ``amount`` is None where the command had none that the currency could express, ``scale`` where the currency is not
    one of this ledger.
    """

    attempt_id: str
    transaction_id: str
    kind: str
    code: ErrorCode
    amount: int | None
    currency: str | None
    scale: int | None
    debit_account: int | None
    credit_account: int | None
    reference: str | None
    reason: str | None
    created_at: str
    actor: ActorInfo


ReportItem = Record | FailedCommand


class ReportScope(Struct, frozen=True):
    """What a report is about: transactions of some ``accounts``, or all (None).

    Of the attempts those of the same accounts or all, if ``all_attempts``; else those of one token and of its user's
    tokens, or of these only the ones that ``attempts_of`` one account were made. An attempt is made of the account the
    money would have left, for money from outside of the one it would have reached.
    """

    accounts: tuple[int, ...] | None
    all_attempts: bool
    token_id: int
    user_id: int | None
    attempts_of: int | None


class ReportPlace(Struct, frozen=True):
    """Where a page of a report ended: with this item, or with all items of this time (``item_id`` None)."""

    created_at: str
    item_id: str | None
    failed: bool = False


class ReportStretch(Struct, frozen=True):
    """A page of a report, newest first.

    ``snapshot`` says what was committed when it was read; it is opaque. Nothing from before ``edge`` was looked at;
    None says that there is nothing. ``total`` counts the items of all pages, if that was asked for.
    """

    items: list[ReportItem]
    snapshot: bytes
    edge: str | None
    total: int | None


class Listing(Struct, frozen=True):
    """Records of one account. ``edge`` is the last version that was looked at; None if there are no more to look at."""

    records: list[Record]
    edge: int | None


class LedgerFacts(Struct, frozen=True):
    """What a daemon needs to know about its database before it serves. ``currencies`` maps code to scale.

    ``cursor_key`` is a secret of the database with which the cursors of lists are signed, so that every daemon on it
    takes the others' cursors.
    """

    epoch: str
    deployment: int
    currencies: dict[str, int]
    cursor_key: bytes


class Place(Struct, frozen=True):
    """A point in the order in which transactions were committed.

    ``exact`` is for reading on from it. ``position`` is for clients to keep: short, opaque, and at or before that
    point; it lags while somebody keeps a transaction open. Neither means anything to the engine.
    """

    exact: str
    position: str


class Stretch(Struct, frozen=True):
    """Transactions that were committed after a place, in an order that respects the versions of every account.

    ``end`` is the place after them; ``more`` says that there was more to read when this was read.
    """

    records: list[Record]
    end: Place
    more: bool


class DueHold(Struct, frozen=True):
    """A hold that is pending and whose time is over, and the account that is held."""

    hold_id: str
    account_id: int


class Audited(Struct, frozen=True):
    """Some advances that were looked at. ``wrong`` says of those that do not add up why, by id; minor units.

    ``next_id`` is where the ones after them begin; None if they were the last.
    """

    wrong: dict[str, str]
    next_id: str | None
