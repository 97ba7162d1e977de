"""One Struct per result. Results may gain members; clients ignore members they do not know."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Raw, Struct, UnsetType


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
    """One movement of money. Entries are those of accounts the present caller may see; the world's side is null."""

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
    metadata: Raw | None
    created_at: str
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


class Revoked(Struct, frozen=True):
    """A revoked token, or how many were."""

    revoked: int
