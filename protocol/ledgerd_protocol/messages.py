"""One Struct per command: its parameters.

Field order is the order of positional parameters. Absent optional parameters are `UNSET`, because "not said" and
"said null" are different things in a stored command. Unknown parameters are refused: a typo in a money command must
not pass. What is answered is in `ledgerd_protocol.results`; the table of methods in `ledgerd_protocol.methods`.
"""

from __future__ import annotations

import functools
from typing import Annotated, ClassVar, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from ledgerd_protocol.advances import INSTALLMENTS_DEFAULT, INTERVAL_DAYS_DEFAULT, AdvanceStatus
from ledgerd_protocol.fields import (
    HOLD_EXPIRES_IN_S_DEFAULT,
    ID_MAX,
    AccountId,
    Amount,
    CurrencyCode,
    Email,
    ExpiresIn,
    Installments,
    IntervalDays,
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
    WalletAmount,
    WalletAnything,
    WalletFlag,
    WalletNames,
    WalletText,
)


class Params(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every command's parameters. Of each group of names in `exclusive` at most one may be given.

    Of `lenient` ones nothing is refused while they are read: see `WalletBody`.
    """

    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = ()
    lenient: ClassVar[bool] = False


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


class SessionChangePassword(Params, frozen=True, kw_only=True):
    """Set the user's password, given the present one, and revoke every token of the user but the connection's."""

    password: Annotated[str, Meta(max_length=1024)]
    new_password: Password


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


class UserList(Params, frozen=True, kw_only=True):
    """Every user, oldest first."""

    cursor: Annotated[str, Meta(max_length=512)] | UnsetType = UNSET
    limit: Limit = 100


class UserUpdate(Params, frozen=True, kw_only=True):
    """Change the name or the e-mail of a user, without user_id the caller's own; what is left out stays."""

    user_id: UserId | UnsetType = UNSET
    name: Name | UnsetType = UNSET
    email: Email | UnsetType = UNSET


class UserDisable(Params, frozen=True, kw_only=True):
    """Let a user spend nothing more, from the answer on; money may still reach it."""

    user_id: UserId


class UserEnable(Params, frozen=True, kw_only=True):
    """Let a disabled user spend again."""

    user_id: UserId


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


class AccountStatusParams(AccountName, frozen=True, kw_only=True):
    """What a change of an account's status may carry."""

    transaction_id: TransactionId | UnsetType = UNSET
    reason: Text255 | UnsetType = UNSET


class AccountFreeze(AccountStatusParams, frozen=True, kw_only=True):
    """Let nothing more be spent from an account; money may still reach it, and what was held may be captured."""


class AccountUnfreeze(AccountStatusParams, frozen=True, kw_only=True):
    """Let a frozen account be spent from again."""


class AccountClose(AccountStatusParams, frozen=True, kw_only=True):
    """Close an account for ever; nothing may be left on it, held back included."""


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


class HoldPlace(MoneyParams, frozen=True, kw_only=True):
    """Hold money of an account back, perhaps for a destination, until it is captured, released or expires."""

    exclusive = (("account_id", "user_id"),)

    account_id: AccountId | UnsetType = UNSET
    user_id: UserId | UnsetType = UNSET
    amount: Amount
    currency: CurrencyCode | UnsetType = UNSET
    destination_account_id: AccountId | UnsetType = UNSET
    expires_in_s: ExpiresIn = HOLD_EXPIRES_IN_S_DEFAULT


class HoldCapture(MoneyParams, frozen=True, kw_only=True):
    """Take the money of a hold, or the part of it that is named; the rest is free again."""

    hold_id: TransactionId
    amount: Amount | UnsetType = UNSET


class HoldRelease(MoneyParams, frozen=True, kw_only=True):
    """Give the money of a hold free again."""

    hold_id: TransactionId


class TransactionReverse(MoneyParams, frozen=True, kw_only=True):
    """Move back what a transaction moved, or the part of it that is named; several times, up to the whole."""

    original_transaction_id: TransactionId
    amount: Amount | UnsetType = UNSET


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


REPORT_CURSOR_MAX = 1024
"""Characters of a report's cursor: it carries a snapshot, which a hundred open transactions make 500 bytes at most."""


class TransactionReport(Params, frozen=True, kw_only=True):
    """All transactions and refused attempts that the caller may see, newest first, of at most the last five days."""

    exclusive = (("account_id", "user_id"),)

    created_from: Time | UnsetType = UNSET
    created_before: Time | UnsetType = UNSET
    status: TransactionStatus | UnsetType = UNSET
    account_id: AccountId | UnsetType = UNSET
    user_id: UserId | UnsetType = UNSET
    currency: CurrencyCode | UnsetType = UNSET
    cursor: Annotated[str, Meta(max_length=REPORT_CURSOR_MAX)] | UnsetType = UNSET
    limit: Limit = 100
    with_total: bool = False


# -- advances ------------------------------------------------------------------------------------------------------


class AdvanceRequest(MoneyParams, frozen=True, kw_only=True):
    """Pay an advance to an account, to be paid back in equal payments, the first an interval later."""

    exclusive = (("account_id", "user_id"),)

    account_id: AccountId | UnsetType = UNSET
    user_id: UserId | UnsetType = UNSET
    amount: Amount
    currency: CurrencyCode | UnsetType = UNSET
    installments: Installments = INSTALLMENTS_DEFAULT
    interval_days: IntervalDays = INTERVAL_DAYS_DEFAULT


class AdvanceGet(Params, frozen=True, kw_only=True):
    """An advance with its payments and what happened to it."""

    advance_id: TransactionId


class AdvanceList(AccountName, frozen=True, kw_only=True):
    """Advances of one account, the newest first, with their payments."""

    status: AdvanceStatus | UnsetType = UNSET
    cursor: Annotated[str, Meta(max_length=512)] | UnsetType = UNSET
    limit: Limit = 100


class AdvanceRepay(MoneyParams, frozen=True, kw_only=True):
    """Pay an advance back early, all that is outstanding or the part that is named."""

    advance_id: TransactionId
    amount: Amount | UnsetType = UNSET


# -- monitors ------------------------------------------------------------------------------------------------------


class MonitorSet(AccountName, frozen=True, kw_only=True):
    """Be told whenever the balance of an account falls below an amount, or rises above one."""

    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = (("account_id", "user_id"), ("below", "above"))

    below: Amount | UnsetType = UNSET
    above: Amount | UnsetType = UNSET
    label: Text255 | UnsetType = UNSET


class MonitorList(Params, frozen=True, kw_only=True):
    """Monitors of an account, of a user's accounts or of the caller's own; services and operators see everybody's."""

    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = (("account_id", "user_id"),)

    account_id: AccountId | UnsetType = UNSET
    user_id: UserId | UnsetType = UNSET
    cursor: Annotated[str, Meta(max_length=512)] | UnsetType = UNSET
    limit: Limit = 100


class MonitorRemove(Params, frozen=True, kw_only=True):
    """Remove a monitor; it tells nothing any more."""

    monitor_id: Annotated[int, Meta(ge=1, le=ID_MAX)]


# -- the betting wallet --------------------------------------------------------------------------------------------


class WalletBody(Params, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """Base of the bodies of the betting wallet, which come from suppliers who know their own protocol only.

    Members that are not listed are ignored, and those that are stay raw: what is wrong with them is answered as a
    status, in the profile's own order. A body that is no object has no members.
    """

    lenient: ClassVar[bool] = True


class WalletCreateUsers(WalletBody, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """Create betting users by name, each with 100,000 units of USD; empty and existing names are passed over."""

    users: WalletNames | UnsetType = UNSET


class WalletBalance(WalletBody, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """The balance of a betting user."""

    user: WalletText | UnsetType = UNSET
    request_uuid: WalletText | UnsetType = UNSET
    currency: WalletText | UnsetType = UNSET
    token: WalletText | UnsetType = UNSET


class WalletRequest(WalletBody, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """What bet, win and rollback have in common."""

    user: WalletText | UnsetType = UNSET
    transaction_uuid: WalletText | UnsetType = UNSET
    request_uuid: WalletText | UnsetType = UNSET
    currency: WalletText | UnsetType = UNSET
    token: WalletText | UnsetType = UNSET
    round: WalletText | UnsetType = UNSET
    round_closed: WalletFlag | UnsetType = UNSET
    game_code: WalletText | UnsetType = UNSET
    supplier_user: WalletText | UnsetType = UNSET
    supplier_transaction_id: WalletText | UnsetType = UNSET
    is_free: WalletFlag | UnsetType = UNSET
    is_aggregated: WalletFlag | UnsetType = UNSET
    reward_uuid: WalletText | UnsetType = UNSET
    bet: WalletText | UnsetType = UNSET
    meta: WalletAnything | UnsetType = UNSET


class WalletBet(WalletRequest, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """A betting user stakes an amount."""

    amount: WalletAmount | UnsetType = UNSET


class WalletWin(WalletRequest, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """A bet is won: one win for each bet."""

    amount: WalletAmount | UnsetType = UNSET
    reference_transaction_uuid: WalletText | UnsetType = UNSET


class WalletRollback(WalletRequest, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """A bet never was: its stake comes back, and if it comes later it is refused."""

    reference_transaction_uuid: WalletText | UnsetType = UNSET


# -- the live feed -------------------------------------------------------------------------------------------------


class Since(Params, frozen=True, kw_only=True):
    """Where a subscriber stopped: the epoch it saw, and the last version of each account, or the last event of each
    advance, or of `all` the position.
    """

    epoch: Annotated[str, Meta(max_length=64)]
    versions: Annotated[dict[AccountId, Version], Meta(max_length=1000)] | UnsetType = UNSET
    advances: Annotated[dict[TransactionId, Version], Meta(max_length=5000)] | UnsetType = UNSET
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
    """Follow balances, transactions or monitors; the answer is the subscription's id, events follow it."""

    channel: Literal["balances", "transactions", "advances", "monitors", "alerts"]
    options: SubscribeOptions = SubscribeOptions()


class LedgerUnsubscribe(Params, frozen=True, kw_only=True):
    """End a subscription; after the answer nothing more comes for it."""

    subscription: Annotated[str, Meta(max_length=64)]
