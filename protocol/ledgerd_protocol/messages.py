"""One Struct per command: its parameters.

Field order is the order of positional parameters. Absent optional parameters are `UNSET`, because "not said" and
"said null" are different things in a stored command. Unknown parameters are refused: a typo in a money command must
not pass. What is answered is in `ledgerd_protocol.results`; the table of methods in `ledgerd_protocol.methods`.
"""

from __future__ import annotations

import functools
from typing import Annotated, ClassVar, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from ledgerd_protocol.fields import (
    ID_MAX,
    AccountId,
    Amount,
    CurrencyCode,
    Email,
    Limit,
    Metadata,
    Name,
    Password,
    Scope,
    Text255,
    Time,
    TransactionId,
    TransactionKind,
    TransactionStatus,
    UserId,
    Version,
)


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
