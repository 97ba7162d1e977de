"""What the model speaks of: accounts, tokens, commands, transactions, outcomes. Nothing here decides."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from ledgerd_protocol.errors import ErrorCode

ABSENT = 0
"""Names an account that does not exist."""

SECOND = 1_000_000
"""A second in the unit of all times here."""

STILL = frozenset({"hold", "release", "expiry", "limit", "freeze", "unfreeze", "close", "cancel"})
"""Kinds whose amount does not move from one side to the other."""

HOLD_ENDS = frozenset({"capture", "release", "expiry"})
"""Kinds that end a hold."""

REFERRING = HOLD_ENDS | {"reversal"}
"""Kinds whose accounts are those of the transaction they refer to."""

PROFILE = frozenset({"bet", "win", "rollback"})
"""Kinds of the betting wallet profile."""

REVERSIBLE = frozenset({"credit", "debit", "transfer", "capture"})
"""Kinds of which a reversal may give back some or all."""

AMOUNTLESS = frozenset({"release", "expiry", "rollback", "freeze", "unfreeze", "close", "cancel"})
"""Kinds whose command names no amount."""


class Account(Struct):
    """An account as it is."""

    account_id: int
    user_id: int
    currency: str
    balance: int = 0
    held: int = 0
    overdraft_limit: int = 0
    version: int = 0
    status: str = "active"
    owner_disabled: bool = False

    @property
    def available(self) -> int:
        """What may leave the account."""
        return self.balance - self.held + self.overdraft_limit


class Token(Struct):
    """What a bearer may do. ``ended`` when revoked or expired."""

    token_id: int
    scopes: frozenset[str]
    user_id: int | None = None
    account_id: int | None = None
    ended: bool = False

    @property
    def sees_all(self) -> bool:
        """Whether other users' things are visible."""
        return self.account_id is None and bool(self.scopes & {"service", "operator"})


class Command(Struct, frozen=True):
    """One money command after defaults and direction. None is the world; ``problem`` is why ``amount`` is None.

    An ``amount`` of None without a problem means all there is, for captures and reversals. Of `REFERRING` kinds the
    accounts are not looked at. ``late_problem`` refuses what nothing else refuses.
    """

    kind: str
    token_id: int
    transaction_id: str
    attempt_id: str
    debit: int | None = None
    credit: int | None = None
    amount: int | None = None
    problem: ErrorCode | None = None
    currency: str | None = None
    reference: str | None = None
    reason: str | None = None
    metadata: str | None = None
    refers_to: str | None = None
    expires_in_s: int | None = None
    late_problem: ErrorCode | None = None

    @property
    def acting(self) -> int:
        """The account the money leaves; for money from the world the one it reaches."""
        account = self.credit if self.debit is None else self.debit
        assert account is not None
        return account


class Unit(Struct, frozen=True):
    """Commands that travel together; with a ``batch_id`` they stand or fall together."""

    commands: tuple[Command, ...]
    batch_id: str | None = None


class Place(Struct, frozen=True):
    """Where in which atomic batch a transaction was posted."""

    batch_id: str
    index: int


class After(Struct, frozen=True):
    """An account right after a transaction."""

    version: int
    balance: int
    held: int
    available: int


class Transaction(Struct, frozen=True):
    """A stored transaction. A side is None where it took no version: the world's, a tombstone's, the far one of a hold.

    ``held_change`` is of the debit side. ``amount_omitted`` when the command meant all there was.
    """

    transaction_id: str
    kind: str
    amount: int
    currency: str
    debit_account: int | None
    credit_account: int | None
    debit: After | None
    credit: After | None
    token_id: int
    created_at: int
    status: str = "posted"
    held_change: int = 0
    reference: str | None = None
    reason: str | None = None
    metadata: str | None = None
    place: Place | None = None
    refers_to: str | None = None
    expires_in_s: int | None = None
    amount_omitted: bool = False

    @property
    def accounts(self) -> set[int]:
        """The accounts it names, without the world."""
        return {account for account in (self.debit_account, self.credit_account) if account is not None}

    @property
    def stated_amount(self) -> int | None:
        """The amount of its command; None where that named none."""
        return None if self.amount_omitted or self.kind in AMOUNTLESS else self.amount

    @property
    def expires_at(self) -> int:
        """From when on a hold can no longer be captured or released."""
        return self.created_at + (self.expires_in_s or 0) * SECOND


class Hold(Struct, frozen=True):
    """A hold that is pending."""

    account: int
    expires_at: int


class Posted(Struct, frozen=True):
    """The command is applied; ``replayed`` when it had been before."""

    transaction: Transaction
    replayed: bool = False


class Refusal(Struct, frozen=True):
    """The command changed nothing. ``data`` are the further members of error.data."""

    code: ErrorCode
    data: Mapping[str, object] | None = None


class Attempt(Struct, frozen=True):
    """A refused command on record."""

    command: Command
    refusal: Refusal


Outcome = Posted | Refusal
