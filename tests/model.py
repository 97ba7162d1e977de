"""The rules of the ledger in plain Python, written from the protocol: what the kernel must answer, as plainly as it can
be said. Two implementations that must agree are worth more than either alone.

`Ledger` judges and applies commands. `audit` needs no commands: it looks at accounts and transactions, from wherever
they come, and says what cannot be. Amounts are integers in minor units. Nothing here reads a clock or a database.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec import Struct

from ledgerd_protocol.errors import ErrorCode
from ledgerd_protocol.money import MINOR_MAX

ABSENT = 0
"""Names an account that does not exist."""

STILL = frozenset({"limit", "cancel"})
"""Kinds whose amount does not move from one side to the other."""


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
    """One money command after defaults and direction. None is the world; ``problem`` is why ``amount`` is None."""

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
    """A stored transaction. A side is None where it took no version: the world's, and a tombstone's."""

    transaction_id: str
    kind: str
    amount: int
    currency: str
    debit_account: int | None
    credit_account: int | None
    debit: After | None
    credit: After | None
    token_id: int
    reference: str | None = None
    reason: str | None = None
    metadata: str | None = None
    place: Place | None = None

    @property
    def accounts(self) -> set[int]:
        """The accounts it names, without the world."""
        return {account for account in (self.debit_account, self.credit_account) if account is not None}


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


class Ledger:
    """Accounts, tokens, transactions and refused attempts, and the one way to change them."""

    def __init__(self, accounts: Iterable[Account], tokens: Iterable[Token]) -> None:
        self.accounts = {account.account_id: account for account in accounts}
        self.tokens = {token.token_id: token for token in tokens}
        self.transactions: dict[str, Transaction] = {}
        self.attempts: dict[str, Attempt] = {}
        self.batch_sizes: dict[str, int] = {}

    def post(self, units: Sequence[Unit], *, resent: bool = False) -> list[list[Outcome | None]]:
        """Outcomes per unit, per command; None for members of an atomic unit that another member brought down."""
        return [
            [self._post(command, resent) for command in unit.commands]
            if unit.batch_id is None
            else self._post_atomic(unit, unit.batch_id, resent)
            for unit in units
        ]

    def _post_atomic(self, unit: Unit, batch_id: str, resent: bool) -> list[Outcome | None]:
        outcomes: list[Outcome | None] = [None] * len(unit.commands)
        for index, command in enumerate(unit.commands):
            if resent and (attempt := self.attempts.get(command.attempt_id)):
                outcomes[index] = attempt.refusal
                return outcomes
        accounts = {account_id: msgspec.structs.replace(account) for account_id, account in self.accounts.items()}
        transactions = dict(self.transactions)
        for index, command in enumerate(unit.commands):
            outcome = self._post(command, resent, Place(batch_id, index), len(unit.commands))
            if isinstance(outcome, Refusal):
                self.accounts, self.transactions = accounts, transactions
                outcomes = [None] * len(unit.commands)
                outcomes[index] = outcome
                return outcomes
            outcomes[index] = outcome
        self.batch_sizes.setdefault(batch_id, len(unit.commands))
        return outcomes

    def _post(self, command: Command, resent: bool, place: Place | None = None, size: int = 1) -> Outcome:
        if resent and (attempt := self.attempts.get(command.attempt_id)):
            return attempt.refusal
        outcome = (
            self._what_cannot_change(command, resent)
            or self._the_id(command, place, size)
            or self._what_can_change(command)
            or self._apply(command, place)
        )
        if isinstance(outcome, Refusal):
            self.attempts[command.attempt_id] = Attempt(command, outcome)
        return outcome

    # -- the order of judgement -----------------------------------------------------------------------------------

    def _what_cannot_change(self, command: Command, resent: bool) -> Refusal | None:
        token = self.tokens.get(command.token_id)
        if token is None:
            return Refusal(ErrorCode.UNAUTHENTICATED)
        # A token that ended after the call was lost does not turn what was posted into a refusal.
        if token.ended and not (resent and self._posted_by(command)):
            return Refusal(ErrorCode.SESSION_EXPIRED)
        if not token.scopes & _SCOPES_OF.get(command.kind, _SPENDS):
            return Refusal(ErrorCode.PERMISSION_DENIED)

        account = self.accounts.get(command.acting)
        if (
            account is None
            or not (token.sees_all or account.user_id == token.user_id)
            or token.account_id not in (None, account.account_id)
        ):
            return Refusal(ErrorCode.NOT_FOUND, {"resource": "account"})
        other = None
        if command.kind == "transfer":
            other = self.accounts.get(command.credit or ABSENT)
            if other is None:
                return _NO_DESTINATION
        if account is other:
            return Refusal(ErrorCode.SAME_ACCOUNT)
        if command.currency not in (None, account.currency):
            return Refusal(ErrorCode.CURRENCY_MISMATCH)
        if other is not None and other.currency != account.currency:
            return Refusal(ErrorCode.CURRENCY_MISMATCH) if token.sees_all else _NO_DESTINATION
        if command.kind == "cancel":
            return None
        if command.amount is None:
            return Refusal(command.problem or ErrorCode.AMOUNT_OUT_OF_RANGE)
        smallest = 0 if command.kind == "limit" else 1
        if not smallest <= command.amount <= MINOR_MAX:
            return Refusal(ErrorCode.AMOUNT_OUT_OF_RANGE)
        return None

    def _the_id(self, command: Command, place: Place | None, size: int) -> Outcome | None:
        known_size = None if place is None else self.batch_sizes.get(place.batch_id)
        stored = self.transactions.get(command.transaction_id)
        if stored is None:
            return None if known_size is None else _reused("items")
        if not self._sees(self.tokens[command.token_id], stored):
            return Refusal(ErrorCode.TRANSACTION_ID_REUSED)
        mismatch = _mismatch(command, stored)
        if not mismatch:
            if place is not None and stored.place != place:
                return _reused("batch_id")
            if place is not None and known_size != size:
                return _reused("items")
            return Posted(stored, replayed=True)
        if stored.kind == "cancel" and command.kind != "cancel":
            return Refusal(ErrorCode.TRANSACTION_ID_CANCELLED)
        if command.kind == "cancel" and stored.kind != "cancel":
            return Refusal(ErrorCode.ALREADY_POSTED)
        return _reused(*mismatch)

    def _what_can_change(self, command: Command) -> Refusal | None:
        debit = self.accounts.get(command.debit or ABSENT)
        credit = self.accounts.get(command.credit or ABSENT)
        amount = command.amount or 0
        sees_all = self.tokens[command.token_id].sees_all
        if command.kind == "cancel":
            return None
        if command.kind == "limit":
            assert debit is not None
            if debit.status == "closed":
                return Refusal(ErrorCode.ACCOUNT_CLOSED)
            short = debit.balance - debit.held + amount < 0
            return Refusal(ErrorCode.LIMIT_EXCEEDED) if short else None
        if debit is not None:
            if debit.owner_disabled:
                return Refusal(ErrorCode.USER_DISABLED)
            if debit.status != "active":
                return Refusal(ErrorCode.ACCOUNT_CLOSED if debit.status == "closed" else ErrorCode.ACCOUNT_FROZEN)
        if credit is not None and credit.status == "closed":
            return Refusal(ErrorCode.ACCOUNT_CLOSED) if sees_all or debit is None else _NO_DESTINATION
        overflow = credit is not None and credit.balance + amount > MINOR_MAX
        # Who may not see the far side has to have the money to learn that it is full.
        if overflow and (sees_all or debit is None):
            return Refusal(ErrorCode.LIMIT_EXCEEDED)
        if debit is not None and debit.available < amount:
            data = {"available": debit.available, "requested": amount, "version": debit.version}
            return Refusal(ErrorCode.INSUFFICIENT_FUNDS, data)
        return Refusal(ErrorCode.LIMIT_EXCEEDED) if overflow else None

    def _apply(self, command: Command, place: Place | None) -> Posted:
        debit = self.accounts.get(command.debit or ABSENT)
        credit = self.accounts.get(command.credit or ABSENT)
        amount = command.amount or 0
        moved = 0 if command.kind in STILL else amount
        if debit is not None and command.kind == "limit":
            debit.overdraft_limit = amount
        takes_versions = command.kind != "cancel"
        transaction = Transaction(
            transaction_id=command.transaction_id,
            kind=command.kind,
            amount=amount,
            currency=self.accounts[command.acting].currency,
            debit_account=command.debit,
            credit_account=command.credit,
            debit=_step(debit, -moved) if debit is not None and takes_versions else None,
            credit=_step(credit, moved) if credit is not None and takes_versions else None,
            token_id=command.token_id,
            reference=command.reference,
            reason=command.reason,
            metadata=command.metadata,
            place=place,
        )
        self.transactions[transaction.transaction_id] = transaction
        return Posted(transaction)

    # -- what the rules ask ---------------------------------------------------------------------------------------

    def _posted_by(self, command: Command) -> bool:
        stored = self.transactions.get(command.transaction_id)
        return stored is not None and stored.token_id == command.token_id and not _mismatch(command, stored)

    def _sees(self, token: Token, transaction: Transaction) -> bool:
        if token.sees_all:
            return True
        if token.account_id is not None and token.account_id not in transaction.accounts:
            return False
        return any(self.accounts[account].user_id == token.user_id for account in transaction.accounts)


_SPENDS = frozenset({"user", "service", "operator"})
_SCOPES_OF = {"credit": frozenset({"topup", "service", "operator"}), "limit": frozenset({"operator"})}
_NO_DESTINATION = Refusal(ErrorCode.NOT_FOUND, {"resource": "destination"})


def _reused(*mismatch: str) -> Refusal:
    return Refusal(ErrorCode.TRANSACTION_ID_REUSED, {"mismatch": list(mismatch)})


def _mismatch(command: Command, stored: Transaction) -> list[str]:
    """The members in which a command's normal form differs from the stored one."""
    pairs = {
        "kind": (command.kind, stored.kind),
        "debit_account_id": (command.debit, stored.debit_account),
        "credit_account_id": (command.credit, stored.credit_account),
        "amount": (command.amount or 0, stored.amount),
        "reference": (command.reference, stored.reference),
        "reason": (command.reason, stored.reason),
        "metadata": (command.metadata, stored.metadata),
    }
    return [name for name, (ours, theirs) in pairs.items() if ours != theirs]


def _step(account: Account, change: int) -> After:
    account.balance += change
    account.version += 1
    return After(account.version, account.balance, account.held, account.available)


# -- the auditor ------------------------------------------------------------------------------------------------------


def audit(accounts: Mapping[int, Account], transactions: Iterable[Transaction]) -> list[str]:
    """Every sentence is something that cannot be; an empty list is a clean ledger.

    ``transactions`` must be all that ever touched the accounts.
    """
    problems: list[str] = []
    steps: dict[int, list[tuple[After, int]]] = defaultdict(list)
    world: dict[str, int] = defaultdict(int)
    seen: set[str] = set()
    for transaction in transactions:
        if transaction.transaction_id in seen:
            problems.append(f"transaction {transaction.transaction_id} is stored twice")
        seen.add(transaction.transaction_id)
        moved = 0 if transaction.kind in STILL else transaction.amount
        for account_id, after, change in (
            (transaction.debit_account, transaction.debit, -moved),
            (transaction.credit_account, transaction.credit, moved),
        ):
            if account_id is None:
                world[transaction.currency] += change
            elif after is not None:
                steps[account_id].append((after, change))
            elif transaction.kind != "cancel":
                problems.append(f"transaction {transaction.transaction_id} took no version of account {account_id}")
    for account in accounts.values():
        problems += _problems_of(account, steps[account.account_id])
        world[account.currency] += account.balance
    problems += [f"{total} minor units of {currency} came from nowhere" for currency, total in world.items() if total]
    return problems


def _problems_of(account: Account, steps: list[tuple[After, int]]) -> list[str]:
    name = f"account {account.account_id}"
    problems = []
    steps.sort(key=lambda step: step[0].version)
    versions = [after.version for after, _ in steps]
    if versions != list(range(1, account.version + 1)):
        problems.append(f"{name} is at version {account.version} with versions {versions}")
    balance = 0
    for after, change in steps:
        balance += change
        if after.balance != balance:
            problems.append(f"{name} version {after.version} has balance {after.balance}, not {balance}")
        if after.available < 0:
            problems.append(f"{name} version {after.version} is overdrawn: {after.available} available")
    if account.balance != balance:
        problems.append(f"{name} has balance {account.balance}, its transactions give {balance}")
    if account.available < 0:
        problems.append(f"{name} is overdrawn: {account.available} available")
    return problems
