"""One Struct per command and per result, and the table of methods that ties them to scopes.

Field order is the order of positional parameters. Absent optional parameters are `UNSET`, because "not said" and
"said null" are different things in a stored command. Unknown parameters are refused: a typo in a money command must
not pass. Results may gain members; clients ignore members they do not know.
"""

from __future__ import annotations

import functools
import re
from typing import Annotated, Any, ClassVar, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

# -- shared types --------------------------------------------------------------------------------------------------

ID_MAX = 2**63 - 1

AccountId = Annotated[int, Meta(ge=1, le=ID_MAX, description="An account's number.")]
UserId = Annotated[int, Meta(ge=1, le=ID_MAX, description="A user's number.")]
Version = Annotated[int, Meta(ge=0, le=ID_MAX, description="Changes of the account so far; 0 is its opening.")]
_END = r"$(?!\n)"
"""The end of the text in every dialect of patterns: in Python's, ``$`` alone also matches before a last newline."""
_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_NOT_NIL_NOR_MAX = r"(?!00000000-0000-0000-0000-000000000000)(?!ffffffff-ffff-ffff-ffff-ffffffffffff)"
TransactionId = Annotated[
    str,
    Meta(
        pattern=f"^{_NOT_NIL_NOR_MAX}{_UUID}{_END}",
        max_length=36,
        description="A UUID in lower case chosen by the client; version 7 is best.",
    ),
]
CurrencyCode = Annotated[
    str, Meta(pattern=f"^[A-Z][A-Z0-9]{{2,11}}{_END}", max_length=12, description="A currency code of ISO 4217.")
]
Text255 = Annotated[str, Meta(max_length=255)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Email = Annotated[
    str, Meta(pattern=rf"^[^@\s]{{1,64}}@[^@\s]+\.[^@\s.]+{_END}", max_length=254, description="An e-mail address.")
]
Password = Annotated[str, Meta(min_length=8, max_length=1024)]
Time = Annotated[
    str,
    Meta(
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?([Zz]|[+-][0-9]{2}:[0-9]{2})"
        + _END,
        max_length=35,
        description="A time as in RFC 3339, with its offset.",
    ),
]
Limit = Annotated[int, Meta(ge=1, le=1000, description="Items per page.")]
Scope = Literal["read", "user", "topup", "service", "operator"]
Amount = Annotated[
    Raw,
    Meta(
        description="Decimal text with at most the currency's decimals, as a string or a number.",
        examples=["10.00"],
        extra={"rule": "amount"},
        extra_json_schema={"type": ["string", "number"], "pattern": r"^(0|[1-9][0-9]{0,17})(\.[0-9]{1,8})?$"},
    ),
]
"""Decimal text as a JSON string or number; see `ledgerd_protocol.money`. Kept raw so that it is judged as text."""
Metadata = Annotated[
    Raw,
    Meta(
        description="An object of the client's own, at most 4096 bytes and 4 levels.",
        extra={"rule": "metadata"},
        extra_json_schema={"type": "object"},
    ),
]
"""Kept raw so that numbers keep their spelling; see `ledgerd_protocol.metadata`."""

TransactionKind = Literal[
    "credit", "debit", "transfer", "hold", "capture", "release", "expiry", "reversal", "bet", "win", "rollback",
    "advance", "advance_payment", "limit", "freeze", "close", "cancel",
]  # fmt: skip
TransactionStatus = Literal["posted", "pending", "captured", "released", "expired", "failed", "cancelled"]


def is_transaction_id(text: str) -> bool:
    """Whether the text is a transaction_id as the protocol wants it."""
    return re.fullmatch(_NOT_NIL_NOR_MAX + _UUID, text) is not None


class Params(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every command's parameters. Of each group of names in `exclusive` at most one may be given."""

    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = ()


class Nothing(Params, frozen=True, kw_only=True):
    """No parameters."""


# -- system and sessions -------------------------------------------------------------------------------------------


class SystemPing(Params, frozen=True, kw_only=True):
    """Is the daemon there? Answers with the daemon's time and the echo."""

    echo: Annotated[str, Meta(max_length=1024)] | UnsetType = UNSET


class SessionLogin(Params, frozen=True, kw_only=True):
    """Sign in with e-mail and password; the connection acts for the user and a token is returned."""

    email: Annotated[str, Meta(max_length=254)]
    password: Annotated[str, Meta(max_length=1024)]


class SessionAuthenticate(Params, frozen=True, kw_only=True):
    """Sign in with a token."""

    token: Annotated[str, Meta(max_length=256)]


class SessionLogout(Params, frozen=True, kw_only=True):
    """Revoke the connection's token, or with `all` every token of its user."""

    all: bool = False


# -- users and tokens ----------------------------------------------------------------------------------------------


class UserRegister(Params, frozen=True, kw_only=True):
    """Create a user, an account at balance zero, and a token, in one transaction."""

    name: Name
    email: Email | UnsetType = UNSET
    password: Password | UnsetType = UNSET
    currency: CurrencyCode | UnsetType = UNSET


class UserGet(Params, frozen=True, kw_only=True):
    """A user; without user_id the caller's own."""

    user_id: UserId | UnsetType = UNSET


class TokenCreate(Params, frozen=True, kw_only=True):
    """Make a token no wider than the caller's. The secret is shown once."""

    user_id: UserId | UnsetType = UNSET
    account_id: AccountId | UnsetType = UNSET
    scopes: Annotated[list[Scope], Meta(min_length=1, max_length=5)]
    expires_at: Time | UnsetType = UNSET
    label: Text255 | UnsetType = UNSET


class TokenList(Params, frozen=True, kw_only=True):
    """Tokens of a user, without their secrets; the caller's own without user_id."""

    user_id: UserId | UnsetType = UNSET
    cursor: Annotated[str, Meta(max_length=512)] | UnsetType = UNSET
    limit: Limit = 100


class TokenRevoke(Params, frozen=True, kw_only=True):
    """Revoke a token; it is refused from then on, by every daemon."""

    token_id: Annotated[int, Meta(ge=1, le=ID_MAX)]


# -- accounts ------------------------------------------------------------------------------------------------------


class AccountOpen(Params, frozen=True, kw_only=True):
    """Open the account of a user in a currency; one for each pair."""

    currency: CurrencyCode
    user_id: UserId | UnsetType = UNSET


class AccountName(Params, frozen=True, kw_only=True):
    """Names one account: by account_id, or by user_id and currency; a user token may leave both out."""

    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = (("account_id", "user_id"),)

    account_id: AccountId | UnsetType = UNSET
    user_id: UserId | UnsetType = UNSET
    currency: CurrencyCode | UnsetType = UNSET


class AccountGet(AccountName, frozen=True, kw_only=True):
    """An account as it is now."""


class AccountList(Params, frozen=True, kw_only=True):
    """Accounts of a user, oldest first; operators and services may list everybody's by leaving user_id out."""

    user_id: UserId | UnsetType = UNSET
    cursor: Annotated[str, Meta(max_length=512)] | UnsetType = UNSET
    limit: Limit = 100


class AccountSetLimit(AccountName, frozen=True, kw_only=True):
    """Set how far below zero the available balance of an account may go (an absolute amount, zero by default)."""

    overdraft_limit: Amount
    transaction_id: TransactionId | UnsetType = UNSET


class BalanceGet(AccountName, frozen=True, kw_only=True):
    """The balance now, or as it was `at` a time or after a `version`; with min_version waits briefly for it."""

    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = (("account_id", "user_id"), ("at", "version", "min_version"))

    at: Time | UnsetType = UNSET
    version: Version | UnsetType = UNSET
    min_version: Version | UnsetType = UNSET


# -- money ---------------------------------------------------------------------------------------------------------


class MoneyParams(Params, frozen=True, kw_only=True):
    """What every money command may carry."""

    transaction_id: TransactionId | UnsetType = UNSET
    reference: Text255 | UnsetType = UNSET
    metadata: Metadata | UnsetType = UNSET
    reason: Text255 | UnsetType = UNSET


class Credit(MoneyParams, frozen=True, kw_only=True):
    """Money comes into an account from outside the ledger."""

    exclusive = (("account_id", "user_id"),)

    account_id: AccountId | UnsetType = UNSET
    user_id: UserId | UnsetType = UNSET
    amount: Amount
    currency: CurrencyCode | UnsetType = UNSET


class Debit(MoneyParams, frozen=True, kw_only=True):
    """Money leaves an account to outside the ledger."""

    exclusive = (("account_id", "user_id"),)

    account_id: AccountId | UnsetType = UNSET
    user_id: UserId | UnsetType = UNSET
    amount: Amount
    currency: CurrencyCode | UnsetType = UNSET


class Transfer(MoneyParams, frozen=True, kw_only=True):
    """Money moves between two accounts; with direction `credit` from the destination to the source."""

    exclusive = (("source_account_id", "source_user_id"), ("destination_account_id", "destination_user_id"))

    source_account_id: AccountId | UnsetType = UNSET
    source_user_id: UserId | UnsetType = UNSET
    destination_account_id: AccountId | UnsetType = UNSET
    destination_user_id: UserId | UnsetType = UNSET
    amount: Amount
    currency: CurrencyCode | UnsetType = UNSET
    direction: Literal["debit", "credit"] = "debit"


BATCH_ITEMS_MAX = 1_000
"""Commands of one transaction_batch."""


ItemParams = Annotated[
    Raw, Meta(description="The parameters of the method, by name.", extra_json_schema={"type": "object"})
]


class BatchItem(Params, frozen=True, kw_only=True):
    """One command of a batch."""

    method: Annotated[str, Meta(max_length=64)]
    params: ItemParams = field(default_factory=functools.partial(Raw, b"{}"))


class TransactionBatch(Params, frozen=True, kw_only=True):
    """Up to 1,000 money commands as one unit; with `atomic` all of them or none."""

    items: Annotated[list[BatchItem], Meta(min_length=1)]
    atomic: bool = False
    batch_id: TransactionId | UnsetType = UNSET


class TransactionGet(Params, frozen=True, kw_only=True):
    """A transaction by id; with `attempts` also the refused attempts to post it."""

    transaction_id: TransactionId
    attempts: bool = False


class TransactionCancel(Params, frozen=True, kw_only=True):
    """Make sure that a transaction_id will never be posted; final."""

    exclusive = (("account_id", "user_id"),)

    transaction_id: TransactionId
    account_id: AccountId | UnsetType = UNSET
    user_id: UserId | UnsetType = UNSET
    currency: CurrencyCode | UnsetType = UNSET


class TransactionList(Params, frozen=True, kw_only=True):
    """Transactions of one account in the order of its versions."""

    exclusive = (("account_id", "user_id"),)

    account_id: AccountId | UnsetType = UNSET
    user_id: UserId | UnsetType = UNSET
    currency: CurrencyCode | UnsetType = UNSET
    kind: TransactionKind | UnsetType = UNSET
    status: TransactionStatus | UnsetType = UNSET
    reference: Text255 | UnsetType = UNSET
    created_from: Time | UnsetType = UNSET
    created_before: Time | UnsetType = UNSET
    order: Literal["newest_first", "oldest_first"] = "newest_first"
    cursor: Annotated[str, Meta(max_length=512)] | UnsetType = UNSET
    limit: Limit = 100


# -- the live feed -------------------------------------------------------------------------------------------------


class Since(Params, frozen=True, kw_only=True):
    """Where a subscriber stopped: the epoch it saw, and the last version of each account, or of `all` the position."""

    epoch: Annotated[str, Meta(max_length=64)]
    versions: Annotated[dict[AccountId, Version], Meta(max_length=1000)] | UnsetType = UNSET
    position: Annotated[str, Meta(max_length=64)] | UnsetType = UNSET


class SubscribeOptions(Params, frozen=True, kw_only=True):
    """What to follow and how; without account_ids and user_id everything the caller owns."""

    exclusive = (("account_ids", "user_id"),)

    account_ids: Annotated[list[AccountId], Meta(min_length=1)] | UnsetType = UNSET
    user_id: UserId | UnsetType = UNSET
    all: bool = False
    mode: Literal["stream", "latest"] = "stream"
    since: Since | UnsetType = UNSET
    heartbeat_ms: Annotated[int, Meta(ge=1000, le=3_600_000)] | UnsetType = UNSET


class LedgerSubscribe(Params, frozen=True, kw_only=True):
    """Follow balances or transactions; the answer is the subscription's id, events follow it."""

    channel: Literal["balances", "transactions"]
    options: SubscribeOptions = SubscribeOptions()


class LedgerUnsubscribe(Params, frozen=True, kw_only=True):
    """End a subscription; after the answer nothing more comes for it."""

    subscription: Annotated[str, Meta(max_length=64)]


# -- results -------------------------------------------------------------------------------------------------------


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


# -- the table of methods ------------------------------------------------------------------------------------------

READERS = frozenset({"read", "user", "service", "operator"})
SPENDERS = frozenset({"user", "service", "operator"})
ISSUERS = frozenset({"topup", "service", "operator"})
OWNERS = frozenset({"user", "operator"})
OPERATORS = frozenset({"operator"})
ANYBODY: frozenset[str] = frozenset()
"""Needs no scope; the only set that also serves connections that have not signed in."""


class Method(Struct, frozen=True):
    """One method: its parameters, its result, and the scopes of which the caller needs one."""

    name: str
    params: type[Params]
    result: Any
    scopes: frozenset[str]
    money: bool = False

    @property
    def positional(self) -> bool:
        """Whether positional parameters are accepted: for reads, system, session and feed methods, never for money."""
        return not self.money


def _table(*methods: Method) -> dict[str, Method]:
    return {method.name: method for method in methods}


METHODS: dict[str, Method] = _table(
    Method("rpc.discover", Nothing, dict[str, Any], ANYBODY),
    Method("system_ping", SystemPing, Pong, ANYBODY),
    Method("system_info", Nothing, SystemInfo, ANYBODY),
    Method("session_login", SessionLogin, Session, ANYBODY),
    Method("session_authenticate", SessionAuthenticate, Session, ANYBODY),
    Method("session_status", Nothing, Session, ANYBODY),
    Method("session_logout", SessionLogout, Revoked, ANYBODY),
    Method("user_register", UserRegister, Registered, ANYBODY),
    Method("user_get", UserGet, User, READERS),
    Method("token_create", TokenCreate, TokenInfo, OWNERS),
    Method("token_list", TokenList, Page, OWNERS),
    Method("token_revoke", TokenRevoke, Revoked, OWNERS),
    Method("account_open", AccountOpen, Account, OWNERS),
    Method("account_get", AccountGet, Account, READERS),
    Method("account_list", AccountList, Page, READERS),
    Method("account_set_limit", AccountSetLimit, Account, OPERATORS, money=True),
    Method("balance_get", BalanceGet, Balance, READERS),
    Method("credit", Credit, Transaction, ISSUERS, money=True),
    Method("debit", Debit, Transaction, SPENDERS, money=True),
    Method("transfer", Transfer, Transaction, SPENDERS, money=True),
    Method("transaction_batch", TransactionBatch, BatchResult, SPENDERS | ISSUERS, money=True),
    Method("transaction_get", TransactionGet, Transaction, READERS),
    Method("transaction_cancel", TransactionCancel, Transaction, SPENDERS, money=True),
    Method("transaction_list", TransactionList, Page, READERS),
    Method("ledger_subscribe", LedgerSubscribe, str, READERS),
    Method("ledger_unsubscribe", LedgerUnsubscribe, bool, READERS),
)

BATCHABLE = frozenset({"credit", "debit", "transfer"})
"""Methods that transaction_batch takes as items."""
