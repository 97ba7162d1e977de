"""Where engine and storage meet: the small protocols that `daemon.py` joins, and how they fail.

The nouns both speak are in `ledgerd.engine.commands` and `ledgerd.engine.states`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from ledgerd.engine.commands import AccountFacts, AccountRef, Outcome, Principal, Record, Unit
from ledgerd.engine.states import (
    AccountState,
    AdvanceEvent,
    AdvanceHead,
    AdvanceState,
    AdvanceStretch,
    AttemptState,
    Audited,
    BalanceState,
    Collected,
    DueHold,
    LedgerFacts,
    Listing,
    MonitorState,
    Place,
    ReportPlace,
    ReportScope,
    ReportStretch,
    Stretch,
    TokenState,
    UserState,
)


class StorageUnavailable(Exception):
    """The database cannot be reached, or the connection was lost while it worked.

    ``applied`` is False when the statement surely did not run, None when its outcome is unknown.
    """

    def __init__(self, message: str, *, applied: bool | None = False) -> None:
        super().__init__(message)
        self.applied = applied


class CallRefused(Exception):
    """The database refused a whole call for a reason that sending it again will not mend. Nothing was applied."""


class Lane(Protocol):
    """One database connection that posts money commands, one call at a time."""

    async def post(self, units: Sequence[Unit], *, resent: bool) -> list[list[Outcome]]:
        """Judge and post the units in order, in one transaction; outcomes per unit, per command.

        ``resent`` says that an earlier call with the same commands may have been applied.
        Raises StorageUnavailable (send the same call again), CallRefused (do not).
        """


class Holds(Protocol):
    """Knows the pending holds."""

    async def expired_holds(self, limit: int) -> list[DueHold]:
        """Pending holds whose time is over, the oldest first. Raises StorageUnavailable."""


class Collections(Protocol):
    """Takes the payments of advances."""

    async def collect_due(self, limit: int) -> Collected:
        """Collect what is due of advances that no other daemon is at: at most so many payments.

        Raises StorageUnavailable, also when others were at work on the same accounts for too long, and CallRefused;
        what was not collected is still due.
        """


class Audits(Protocol):
    """Compares what is stored."""

    async def audit_advances(self, first_id: str | None, limit: int) -> Audited:
        """Do the sums of advances hold, from ``first_id`` on (the first of all if None), at most so many of them?

        Raises StorageUnavailable.
        """


class Directory(Protocol):
    """Finds accounts."""

    async def find_accounts(self, refs: Sequence[tuple[AccountRef, str]]) -> list[AccountFacts | None]:
        """Facts of each named account, None where there is none; the text is the currency, for user_id and wallet.

        Raises StorageUnavailable.
        """


class Feed(Protocol):
    """Reads what subscriptions deliver."""

    async def account_states(self, account_ids: Sequence[int]) -> list[AccountState]:
        """The accounts as they are, in one snapshot, in order of account_id. Raises StorageUnavailable."""

    async def history(self, account_id: int, after_version: int, limit: int) -> list[Record]:
        """Records that gave the account versions above ``after_version``, ascending, without a hole.

        Raises StorageUnavailable.
        """

    async def heads(self, account_ids: Sequence[int]) -> dict[int, int]:
        """The newest version of each account. Raises StorageUnavailable."""

    async def unknown_accounts(self, user_ids: Sequence[int], known: Sequence[int], limit: int) -> list[AccountState]:
        """Accounts of the users, of each at most ``limit``, that are not among ``known``, by account_id.

        Raises StorageUnavailable.
        """

    async def here(self) -> Place:
        """The present place: all that was committed before this call comes before it. Raises StorageUnavailable."""

    async def place(self, position: str) -> Place | None:
        """Where a client stopped; None if that is no position of this data. Raises StorageUnavailable."""

    async def committed_since(self, place: Place, limit: int) -> Stretch:
        """What was committed after a place, by any daemon: about ``limit`` transactions, more where one call made them.

        Waits for nobody: what is not committed yet comes when it is. Only a reading of ``more`` may repeat a few
        transactions of an earlier one. Raises StorageUnavailable.
        """

    async def advance_heads(
        self, account_ids: Sequence[int], advance_ids: Sequence[str], *, everything: bool = False
    ) -> list[AdvanceHead]:
        """Advances of the accounts that run or are named, or all of them. Raises StorageUnavailable."""

    async def advance_events(self, advance_id: str, after_event: int, limit: int) -> list[AdvanceEvent]:
        """Events of an advance with numbers above ``after_event``, ascending. Raises StorageUnavailable."""

    async def advance_events_since(self, place: Place, limit: int) -> AdvanceStretch:
        """Events that were committed after a place, by any daemon: about ``limit``. Raises StorageUnavailable."""

    async def monitors_since(self, revision: int, limit: int, *, removed: bool) -> list[MonitorState]:
        """Monitors that were set, or with ``removed`` also removed, after a revision; ascending, none of them early.

        Raises StorageUnavailable.
        """


class Books(Directory, Feed, Holds, Collections, Protocol):
    """Everything else the gateway asks of the database. Every method raises StorageUnavailable.

    Methods that create raise LedgerError (already_exists, not_found) where the database says so.
    """

    async def token_by_hash(self, token_hash: bytes) -> TokenState | None:
        """The token with this SHA-256, whatever its state."""

    async def take_password_try(self, email: str | None, address: str | None, per_min: int) -> int:
        """Take a try at a password: 0, or in how many milliseconds there will be one; none is taken then.

        Of each e-mail and each address there are ``per_min`` at once, and as many more per minute, whatever daemon
        they are tried at. None is not counted.
        """

    async def return_password_try(self, email: str | None, address: str | None, per_min: int) -> None:
        """Give a try back: the password was right."""

    async def login_material(self, email: str) -> tuple[UserState, str | None] | None:
        """The user with this e-mail (case does not matter) and the argon2 hash of the password."""

    async def open_session(
        self, *, token_hash: bytes, user_id: int, password_hash: str, scopes: Sequence[str], expires_at_s: float | None
    ) -> TokenState | None:
        """A token for who gave the right password; None if the user's password is another by now."""

    async def change_password(self, *, user_id: int, old_hash: str, new_hash: str, kept_token_id: int) -> int | None:
        """Set a password and revoke the user's other tokens: how many, or None if the old one is another by now."""

    async def register_user(
        self,
        *,
        name: str,
        email: str | None,
        password_hash: str | None,
        currency: str,
        scale: int,
        token_hash: bytes,
        scopes: Sequence[str],
        expires_at_s: float | None,
    ) -> tuple[UserState, AccountState, TokenState]:
        """Create user, account and token in one transaction. Raises LedgerError already_exists (e-mail)."""

    async def user(self, user_id: int) -> UserState | None:
        """A user."""

    async def create_wallet_users(
        self, names: Sequence[str], *, token_id: int, currency: str, scale: int, amount: int
    ) -> int:
        """Create a user for each wallet name that is new and not empty, with an account that begins with ``amount``.

        How many are new. Raises LedgerError if the token is not good any more.
        """

    async def users(self, after_user_id: int, limit: int) -> list[UserState]:
        """Everybody with an id above ``after_user_id``, ascending."""

    async def update_user(self, user_id: int, *, name: str | None, email: str | None) -> UserState | None:
        """Change what is not None; the user afterwards, if there is one. Raises LedgerError already_exists (e-mail)."""

    async def set_user_status(self, user_id: int, status: str) -> UserState | None:
        """Make a user ``active`` or ``disabled``; the user afterwards, if there is one.

        When this returns, no daemon posts any more what a disabled user may not spend.
        """

    async def create_token(
        self,
        *,
        token_hash: bytes,
        user_id: int | None,
        account_id: int | None,
        scopes: Sequence[str],
        expires_at_s: float | None,
        label: str | None,
    ) -> TokenState:
        """Create a token. Raises LedgerError not_found (user)."""

    async def tokens(self, user_id: int | None, after_token_id: int, limit: int) -> list[TokenState]:
        """Tokens of a user (of everybody when None) with ids above ``after_token_id``, ascending."""

    async def token(self, token_id: int) -> TokenState | None:
        """A token by its number."""

    async def revoked_tokens(self, token_ids: Sequence[int]) -> list[int]:
        """Those of the tokens (at most 1,000) that are revoked, or do not exist. Open sessions ask this every few s."""

    async def revoke_tokens(self, *, token_id: int | None = None, user_id: int | None = None) -> int:
        """Revoke one token, or all of a user; how many were not revoked before."""

    async def open_account(self, *, user_id: int, currency: str, scale: int) -> AccountState:
        """Open an account. Raises LedgerError already_exists, not_found (user)."""

    async def accounts(self, user_id: int | None, after_account_id: int, limit: int) -> list[AccountState]:
        """Accounts of a user (of everybody when None) with ids above ``after_account_id``, ascending."""

    async def balance_at(
        self, account_id: int, *, version: int | None = None, at: str | None = None
    ) -> BalanceState | None:
        """The balance after a version or at a time; None if the account is younger or the version is not there yet."""

    async def transaction(self, transaction_id: str) -> Record | None:
        """A stored transaction (tombstones included), with its present status and how much of it is reversed."""

    async def attempts(self, transaction_id: str, token_ids_of: Principal) -> list[AttemptState]:
        """Refused attempts at an id that this principal may see: its own user's, or all for operators."""

    async def transactions(
        self,
        account_id: int,
        *,
        newest_first: bool,
        after_version: int | None,
        limit: int,
        kind: str | None,
        status: str | None,
        reference: str | None,
        created_from: str | None,
        created_before: str | None,
    ) -> Listing:
        """Records of an account in version order, beyond ``after_version`` in the direction of travel.

        With their present status and how much of each is reversed. Looks at no more than some ten thousand versions,
        however few of them the filters let through.
        """

    async def report(
        self,
        scope: ReportScope,
        *,
        created_from: str,
        created_before: str | None,
        after: ReportPlace | None,
        snapshot: bytes | None,
        status: str | None,
        limit: int,
        count: bool,
    ) -> ReportStretch:
        """At most ``limit`` transactions and refused attempts, newest first, in their present status.

        ``after`` and ``snapshot`` are None for the first page, for others where it ended and that of the first: then
        nothing is shown that was committed later. Fewer than ``limit`` may be found although there are more; ``edge``
        tells. ``count`` counts the items of all pages.
        """

    async def set_monitor(
        self,
        *,
        account_id: int,
        direction: Literal["below", "above"],
        amount: int,
        label: str | None,
        token_id: int,
        per_account_max: int,
    ) -> MonitorState:
        """Set a monitor. Raises LedgerError already_exists, limit_exceeded, not_found (account)."""

    async def monitor(self, monitor_id: int) -> MonitorState | None:
        """A monitor, removed or not."""

    async def monitors(
        self, user_id: int | None, account_id: int | None, after_monitor_id: int, limit: int
    ) -> list[MonitorState]:
        """Monitors that are set: of a user's accounts, of one account, of everybody's (None); by number, ascending."""

    async def remove_monitor(self, monitor_id: int) -> MonitorState | None:
        """Remove a monitor; as it is then, None if it was removed before or is not there."""

    async def advance(self, advance_id: str, *, payments_max: int, events_max: int) -> AdvanceState | None:
        """An advance with at most so many of its latest payments and events."""

    async def advances(
        self,
        account_id: int,
        *,
        running: bool | None,
        before: tuple[str, str] | None,
        limit: int,
        payments_max: int,
    ) -> list[AdvanceState]:
        """Advances of an account without events, the newest first; ``running`` False are those that are paid back.

        ``before`` is the created_at and the advance_id of the last one seen.
        """

    def facts(self) -> LedgerFacts:
        """Epoch and currencies, as read when the daemon connected. Raises StorageUnavailable before the first time."""
