"""One Struct per result. Results may gain members; clients ignore members they do not know."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from ledgerd_protocol.advances import AdvanceEventKind, AdvanceStatus, PaymentStatus


class Pong(Struct, frozen=True, omit_defaults=True):
    """The daemon's time, and the echo if one was sent."""

    time: str
    echo: str | UnsetType = UNSET


class CurrencyInfo(Struct, frozen=True):
    """A currency the daemon accepts and its number of decimals."""

    currency: str
    scale: int


class SystemInfo(Struct, frozen=True):
    """What this daemon is and allows. `limits` has the units in its names."""

    name: str
    version: str
    protocol: str
    epoch: str
    currencies: list[CurrencyInfo]
    default_currency: str
    limits: dict[str, int]
    features: list[str]


class User(Struct, frozen=True):
    """A user. Times are RFC 3339 in UTC."""

    user_id: int
    name: str
    email: str | None
    status: str
    created_at: str


class Account(Struct, frozen=True):
    """An account. Amounts are decimal text in the account's currency; available = balance - held + overdraft_limit."""

    account_id: int
    user_id: int
    currency: str
    balance: str
    held: str
    available: str
    overdraft_limit: str
    version: int
    status: str
    created_at: str
    updated_at: str


class Balance(Struct, frozen=True):
    """A balance and the version and time it belongs to."""

    account_id: int
    user_id: int
    balance: str
    held: str
    available: str
    currency: str
    version: int
    as_of: str


class TokenInfo(Struct, frozen=True, omit_defaults=True):
    """A token. `token`, the secret, is there only in the answer that made it."""

    token_id: int
    user_id: int | None
    account_id: int | None
    scopes: list[str]
    label: str | None
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    token: str | UnsetType = UNSET


class Session(Struct, frozen=True, omit_defaults=True):
    """Who the connection acts for. `token` is there only after session_login."""

    authenticated: bool
    user: User | None
    account_id: int | None
    scopes: list[str]
    expires_at: str | None
    token: str | UnsetType = UNSET


class Registered(Struct, frozen=True):
    """A new user, the account at balance zero, and the secret of its first token."""

    user: User
    account: Account
    token: str


class Entry(Struct, frozen=True):
    """One side of a transaction: how it changed an account, and the account after it."""

    account_id: int
    direction: Literal["debit", "credit"]
    balance_change: str
    held_change: str
    balance: str
    held: str
    available: str
    version: int


class Actor(Struct, frozen=True):
    """Who sent a transaction; shown to operators."""

    token_id: int
    user_id: int | None
    scopes: list[str]


class Transaction(Struct, frozen=True, omit_defaults=True):
    """One movement of money. Entries are those of accounts the present caller may see; the world's side is null.

    `hold_id` belongs to holds and what ends them, `expires_at` to holds, `reverses` to reversals, and
    `reference_transaction_id` to wins and rollbacks. `reversed_amount` is shown of what can be reversed, where a
    transaction is read, not as it is posted.
    """

    transaction_id: str
    kind: str
    status: str
    amount: str
    currency: str
    debit_account_id: int | None
    credit_account_id: int | None
    entries: list[Entry]
    reference: str | None
    reason: str | None
    metadata: dict[str, Any] | None  # the daemon encodes it as it is stored, with its numbers as they were spelled
    created_at: str
    hold_id: str | UnsetType = UNSET
    expires_at: str | UnsetType = UNSET
    reverses: str | UnsetType = UNSET
    reversed_amount: str | UnsetType = UNSET
    reference_transaction_id: str | UnsetType = UNSET
    advance_id: str | UnsetType = UNSET
    actor: Actor | UnsetType = UNSET
    replayed: bool | UnsetType = UNSET
    attempts: list[Attempt] | UnsetType = UNSET


class Attempt(Struct, frozen=True):
    """A refused try to post a transaction_id. `reason` is the error's stable string."""

    attempt_id: str
    reason: str
    created_at: str


class BatchOutcome(Struct, frozen=True, omit_defaults=True):
    """The outcome of one batch item: a result or an error object."""

    result: Any = UNSET
    error: Any = UNSET


class BatchResult(Struct, frozen=True):
    """Outcomes in the order of the items."""

    outcomes: list[BatchOutcome]


class Page(Struct, frozen=True):
    """One page of a list; next_cursor is null on the last page."""

    items: list[Any]
    next_cursor: str | None
    as_of: str


class Opening(Struct, frozen=True):
    """An account as it was just before a transaction: after `version`; 0 is its opening."""

    version: int
    balance: str
    held: str
    available: str


class TransactionPage(Struct, frozen=True):
    """A page of an account's transactions, and the account just before the oldest of them; null if there is none."""

    items: list[Any]
    next_cursor: str | None
    as_of: str
    opening: Opening | None


class FailedTransaction(Struct, frozen=True, omit_defaults=True):
    """A refused command in a report. `error` is the error's stable string, `reason` what the command said.

    `amount` is null if the command had none, or none that the currency can express.
    """

    attempt_id: str
    transaction_id: str
    kind: str
    status: Literal["failed"]
    error: str
    amount: str | None
    currency: str | None
    debit_account_id: int | None
    credit_account_id: int | None
    reference: str | None
    reason: str | None
    created_at: str
    actor: Actor | UnsetType = UNSET


class ReportPage(Struct, frozen=True):
    """A page of a report: transactions and failed ones. The totals are null unless the first page asked for them."""

    items: list[Any]
    next_cursor: str | None
    as_of: str
    total_items: int | None
    total_pages: int | None


class AdvancePayment(Struct, frozen=True):
    """A payment of an advance. It asks for `amount` - `paid`; `rolled_over` of it came from payments that failed."""

    number: int
    due_at: str
    amount: str
    rolled_over: str
    paid: str
    status: PaymentStatus
    reason: str | None


class AdvanceHistory(Struct, frozen=True):
    """Something that happened to an advance; events are numbered without a hole. `outstanding` is as after it."""

    event: int
    type: AdvanceEventKind
    number: int | None
    amount: str
    outstanding: str
    reason: str | None
    transaction_id: str | None
    created_at: str


class Advance(Struct, frozen=True, omit_defaults=True):
    """An advance. Of very many payments or events the latest are shown, and `..._omitted` counts the others.

    `events` are shown by advance_get, and `transaction` in the answer to the command that posted it.
    """

    advance_id: str
    account_id: int
    user_id: int
    currency: str
    principal: str
    outstanding: str
    status: AdvanceStatus
    installments: int
    interval_days: int
    created_at: str
    payments: list[AdvancePayment]
    payments_omitted: int | UnsetType = UNSET
    events: list[AdvanceHistory] | UnsetType = UNSET
    events_omitted: int | UnsetType = UNSET
    transaction: Transaction | UnsetType = UNSET


class Monitor(Struct, frozen=True, omit_defaults=True):
    """What is to be told of an account. It has `below` or `above`, and looks at the changes after `version`."""

    monitor_id: int
    account_id: int
    version: int
    currency: str
    label: str | None
    created_at: str
    below: str | UnsetType = UNSET
    above: str | UnsetType = UNSET


class Removed(Struct, frozen=True):
    """How many were removed: 0 if it had been removed before."""

    removed: int


class Revoked(Struct, frozen=True):
    """A revoked token, or how many were."""

    revoked: int


WalletStatus = Literal[
    "RS_OK",
    "RS_ERROR_UNKNOWN",
    "RS_ERROR_INVALID_TOKEN",
    "RS_ERROR_TOKEN_EXPIRED",
    "RS_ERROR_WRONG_CURRENCY",
    "RS_ERROR_NOT_ENOUGH_MONEY",
    "RS_ERROR_USER_DISABLED",
    "RS_ERROR_WRONG_SYNTAX",
    "RS_ERROR_WRONG_TYPES",
    "RS_ERROR_DUPLICATE_TRANSACTION",
    "RS_ERROR_TRANSACTION_DOES_NOT_EXIST",
]


class WalletAnswer(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How the betting wallet answers. Currency and balance, an integer in the wallet's unit, only with RS_OK."""

    user: str | UnsetType = UNSET
    status: WalletStatus
    request_uuid: str | UnsetType = UNSET
    currency: str | UnsetType = UNSET
    balance: int | UnsetType = UNSET


class WalletCreated(Struct, frozen=True, omit_defaults=True):
    """How many users are new. The status is there only if nothing was done."""

    created: int
    status: WalletStatus | UnsetType = UNSET
