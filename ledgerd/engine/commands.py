"""Who acts, what a command is on its way in, and what its outcome is on the way out.

All amounts in this file are integers in minor units of a currency; all times are RFC 3339 text in UTC with six digits
unless a name says otherwise. What a person reads (decimal text) is made at the gateway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct
from msgspec.structs import force_setattr

from ledgerd_protocol.errors import ErrorCode

# -- who ----------------------------------------------------------------------------------------------------------


class ActorInfo(Struct, frozen=True):
    """Who posted a transaction, as stored."""

    token_id: int
    user_id: int | None
    scopes: tuple[str, ...]


class Principal(Struct, frozen=True):
    """Whom a connection acts for: a token, and with it a user, perhaps only one account, and scopes.

    ``expires_at_s`` is Unix time in seconds or None. ``user_id`` is None for service and operator tokens of no user.
    ``sees_all`` says whether objects of other users are visible. It and ``actor`` follow from the rest, and are made
    once because every command asks for them.
    """

    token_id: int
    user_id: int | None
    account_id: int | None
    scopes: frozenset[str]
    expires_at_s: float | None
    sees_all: bool = False
    actor: ActorInfo = ActorInfo(0, None, ())

    def __post_init__(self) -> None:
        sees_all = self.account_id is None and not self.scopes.isdisjoint(("service", "operator"))
        force_setattr(self, "sees_all", sees_all)
        force_setattr(self, "actor", ActorInfo(self.token_id, self.user_id, tuple(sorted(self.scopes))))

    def ids(self) -> dict[str, int]:
        """What a log line about the principal names it by."""
        return {"token_id": self.token_id, **({} if self.user_id is None else {"user_id": self.user_id})}


SYSTEM = Principal(token_id=0, user_id=None, account_id=None, scopes=frozenset({"operator"}), expires_at_s=None)
"""The daemon itself, for what it does by the clock. Its token has no secret, so nobody can sign in with it."""


# -- commands on their way in -------------------------------------------------------------------------------------


class AccountRef(Struct, frozen=True):
    """How a command names an account; exactly one member is set.

    ``user_id`` means that user's account in the command's currency; so does ``wallet``, the user's wallet name, but
    where there is none in that currency it means the user's first account, so that the kernel finds the currency
    wrong. ``payer_of`` is a transaction_id and means the account that transaction debits, ``receiver_of`` the one it
    credits; where that side is the world, the other side.
    """

    account_id: int | None = None
    user_id: int | None = None
    wallet: str | None = None
    payer_of: str | None = None
    receiver_of: str | None = None


class AccountFacts(Struct, frozen=True):
    """What never changes about an account, and may therefore be cached. ``scale`` is the currency's decimals."""

    account_id: int
    user_id: int
    currency: str
    scale: int


REFERRING = frozenset({"capture", "release", "expiry", "reversal", "advance_payment"})
"""Kinds whose accounts are those of the transaction they refer to."""


LOGGED_ACCOUNTS_MAX = 10
"""Accounts that a log line about a unit names."""

ABSENT = 0
"""Stands for an account that a command names and that does not exist; real account ids are positive."""


class Command(Struct):
    """One money command. The second half is filled in by the router from the accounts' facts.

    ``debit`` is where the money leaves and ``credit`` where it arrives, after `direction` is applied; None is the
    world, the outside of the ledger. ``amount`` is the client's decimal text, already matched against the grammar.
    ``currency`` is as stated, None if omitted. ``metadata`` is canonical JSON text. ``arrived_at`` is trio time.
    ``debit_account`` and ``credit_account`` are ids, ABSENT for a named account that does not exist, None for the
    world. For kind `limit`, ``debit`` is the account and ``amount`` the new limit; for `cancel`, `freeze`, `unfreeze`
    and `close`, ``debit`` is the account. ``amount`` None means all there is, for `capture`, `reversal` and
    `advance_payment`.

    ``refers_to`` is the transaction that a `capture`, `release`, `expiry` (a hold), `reversal` (the original),
    `advance_payment` (the advance), `win` or `rollback` (a bet) is about. Of the `REFERRING` kinds ``debit`` only says
    who acts; the kernel takes both sides from the transaction referred to. ``late_problem`` refuses a command that
    nothing else refuses. ``installments`` and ``interval_days`` are of an `advance`.
    """

    kind: str
    principal: Principal
    transaction_id: str
    attempt_id: str
    debit: AccountRef | None
    credit: AccountRef | None
    amount: str | None
    currency: str | None
    reference: str | None
    reason: str | None
    metadata: str | None
    arrived_at: float
    refers_to: str | None = None
    expires_in_s: int | None = None
    late_problem: ErrorCode | None = None
    installments: int | None = None
    interval_days: int | None = None

    debit_account: int | None = None
    credit_account: int | None = None
    debit_facts: AccountFacts | None = None
    credit_facts: AccountFacts | None = None
    amount_minor: int | None = None
    amount_problem: ErrorCode | None = None

    @property
    def acting(self) -> AccountRef:
        """The account whose owner acts: the one the money leaves, or for a credit the one it reaches."""
        ref = self.debit or self.credit
        assert ref is not None
        return ref


class Unit:
    """Commands that travel together: one command, or a batch. Answered exactly once, by calling `answer`.

    ``atomic`` means all or none. ``deadline`` is trio time after which the unit must not be executed any more.
    ``passed_over`` counts how often a free lane took other units first. ``routed`` is the router's mark and ``turn``
    the committer's: units of one turn are sent in order.
    """

    __slots__ = (
        "_answer", "accounts", "answered", "atomic", "batch_id",
        "commands", "deadline", "passed_over", "routed", "turn",
    )  # fmt: skip

    def __init__(
        self,
        commands: list[Command],
        answer: Callable[[list[Outcome]], None],
        *,
        deadline: float,
        atomic: bool = False,
        batch_id: str | None = None,
    ) -> None:
        self.commands = commands
        self.atomic = atomic
        self.batch_id = batch_id
        self.deadline = deadline
        self.accounts: frozenset[int] = frozenset()
        self.passed_over = 0
        self.routed = False
        self.turn: object | None = None
        self.answered = False
        self._answer = answer

    def gather_accounts(self) -> None:
        """Set `accounts` from the commands, once their account ids are filled in."""
        accounts = set()
        for command in self.commands:
            # Neither the world (None) nor an absent account (0) is locked.
            if command.debit_account:
                accounts.add(command.debit_account)
            if command.credit_account:
                accounts.add(command.credit_account)
        self.accounts = frozenset(accounts)

    def answer(self, outcomes: list[Outcome]) -> None:
        """Give the outcomes, in the order of the commands. Only the first call counts: a unit is answered once."""
        if not self.answered:
            self.answered = True
            self._answer(outcomes)

    def ids(self) -> dict[str, Any]:
        """What a log line about the unit names it by: its first command, who sent it, and the accounts it is on."""
        first = self.commands[0]
        named = {
            "transaction_id": first.transaction_id,
            "commands": len(self.commands),
            "batch_id": self.batch_id,
            **first.principal.ids(),
            "account_ids": sorted(self.accounts)[:LOGGED_ACCOUNTS_MAX],
        }
        return {name: value for name, value in named.items() if value is not None}

    def refuse(self, code: ErrorCode, *, applied: bool | None = False) -> None:
        """Answer every command with the same refusal, which the database has not recorded."""
        self.answer([Refused(code=code, applied=applied) for _ in self.commands])


# -- outcomes on their way out ------------------------------------------------------------------------------------


class Side(Struct, frozen=True):
    """How a transaction changed one account, and the account after it. ``user_id`` owns the account."""

    account_id: int
    user_id: int
    direction: str
    version: int
    balance: int
    held: int
    available: int
    balance_change: int
    held_change: int


class Record(Struct, frozen=True):
    """A stored transaction. ``sides`` has one element per account that took a version; the world takes none.

    An account id is None where the side is the world. ``refers_to`` is as in `Command`. ``status`` is as it was when
    the transaction was posted, unless a method of `Books` says that it is the present one. ``expires_at`` is a hold's;
    ``reversed_amount`` is None where nobody asked for it.
    """

    transaction_id: str
    kind: str
    status: str
    amount: int
    currency: str
    scale: int
    debit_account: int | None
    credit_account: int | None
    sides: tuple[Side, ...]
    reference: str | None
    reason: str | None
    metadata: str | None
    created_at: str
    actor: ActorInfo
    refers_to: str | None = None
    expires_at: str | None = None
    reversed_amount: int | None = None

    def ids(self) -> dict[str, Any]:
        """What a log line about the transaction names it by."""
        accounts = [side.account_id for side in self.sides]
        named = {"transaction_id": self.transaction_id, "user_id": self.actor.user_id, "account_ids": accounts}
        return {name: value for name, value in named.items() if value is not None}


class Posted(Struct, frozen=True):
    """The command is applied; ``replayed`` when it had been before."""

    record: Record
    replayed: bool = False


class Refused(Struct, frozen=True):
    """The command changed nothing (``applied`` False), or nobody knows (None).

    ``data`` holds the further members of error.data, amounts still in minor units under the names in
    `AMOUNT_MEMBERS` with ``scale`` to write them. ``record`` is the transaction a refused cancel ran into, if the
    caller may see it. ``attempt_id`` and ``created_at`` are None when the refusal was not recorded in the database.
    ``index`` is the member of an atomic batch that was refused first.
    """

    code: ErrorCode
    applied: bool | None = False
    data: dict[str, object] | None = None
    scale: int = 0
    attempt_id: str | None = None
    created_at: str | None = None
    record: Record | None = None
    index: int | None = None
    detail: str | None = None


AMOUNT_MEMBERS = frozenset({"available", "requested", "remaining"})


Outcome = Posted | Refused
