"""The ledger as the protocol describes it: the one way to change accounts, and each command done once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from ledgerd_protocol.errors import ErrorCode
from tests.model.nouns import (
    ABSENT,
    AMOUNTLESS,
    HOLD_ENDS,
    PROFILE,
    REFERRING,
    STILL,
    Account,
    After,
    Attempt,
    Command,
    Outcome,
    Place,
    Posted,
    Refusal,
    Token,
    Transaction,
    Unit,
)
from tests.model.rules import Rules

_STATUS_AFTER = {"freeze": "frozen", "unfreeze": "active", "close": "closed"}


class Ledger(Rules):
    """Judges and applies commands. ``now`` must not be before what last changed any of the accounts."""

    def __init__(self, accounts: Iterable[Account], tokens: Iterable[Token]) -> None:
        super().__init__(accounts, tokens)
        self.attempts: dict[str, Attempt] = {}
        self.batch_sizes: dict[str, int] = {}

    def post(self, units: Sequence[Unit], *, now: int = 0, resent: bool = False) -> list[list[Outcome | None]]:
        """Outcomes per unit, per command; None for members of an atomic unit that another member brought down."""
        self.now = now
        return [
            [self._post(command, resent) for command in unit.commands]
            if unit.batch_id is None
            else self._post_atomic(unit, unit.batch_id, resent)
            for unit in units
        ]

    # -- units and commands ---------------------------------------------------------------------------------------

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

    def _post(self, sent: Command, resent: bool, place: Place | None = None, size: int = 1) -> Outcome:
        if resent and (attempt := self.attempts.get(sent.attempt_id)):
            return attempt.refusal
        command = self._with_its_sides(sent)
        outcome = (
            self._what_cannot_change(
                command,
                # A token that ended after the call was lost does not turn what was posted into a refusal.
                token_may_have_ended=resent and self._posted_by(command),
            )
            or self._the_id(command, place, size)
            or self._what_can_change(command)
            or (command.late_problem and Refusal(command.late_problem))
            or self._apply(command, place)
        )
        if isinstance(outcome, Refusal):
            self.attempts[sent.attempt_id] = Attempt(command, outcome)
        return outcome

    # -- the id ---------------------------------------------------------------------------------------------------

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

    def _posted_by(self, command: Command) -> bool:
        stored = self.transactions.get(command.transaction_id)
        return stored is not None and stored.token_id == command.token_id and not _mismatch(command, stored)

    # -- posting --------------------------------------------------------------------------------------------------

    def _apply(self, command: Command, place: Place | None) -> Posted:
        debit = self.accounts.get(command.debit or ABSENT)
        credit = self.accounts.get(command.credit or ABSENT)
        amount = self._amount_of(command)
        held_change = amount if command.kind == "hold" else 0
        if command.kind in HOLD_ENDS:
            held_change = -self.transactions[command.refers_to or ""].amount
        moved = 0 if command.kind in STILL else amount
        if debit is not None and command.kind == "limit":
            debit.overdraft_limit = amount
        if debit is not None and command.kind in _STATUS_AFTER:
            debit.status = _STATUS_AFTER[command.kind]
        transaction = Transaction(
            transaction_id=command.transaction_id,
            kind=command.kind,
            amount=amount,
            currency=self.accounts[command.acting].currency,
            debit_account=command.debit,
            credit_account=command.credit,
            debit=_step(debit, -moved, held_change) if debit is not None and command.kind != "cancel" else None,
            credit=_step(credit, moved) if credit is not None and command.kind not in STILL else None,
            token_id=command.token_id,
            created_at=self.now,
            status={"hold": "pending", "cancel": "cancelled"}.get(command.kind, "posted"),
            held_change=held_change,
            reference=command.reference,
            reason=command.reason,
            metadata=command.metadata,
            place=place,
            refers_to=command.refers_to,
            expires_in_s=command.expires_in_s,
            amount_omitted=command.amount is None and command.kind not in AMOUNTLESS,
        )
        self.transactions[transaction.transaction_id] = transaction
        return Posted(transaction)


def _reused(*mismatch: str) -> Refusal:
    return Refusal(ErrorCode.TRANSACTION_ID_REUSED, {"mismatch": list(mismatch)})


def _mismatch(command: Command, stored: Transaction) -> list[str]:
    """The members in which a command's normal form differs from the stored one.

    Of `REFERRING` kinds the accounts follow from ``refers_to``. Of the betting profile the currency has not been judged
    before, and the metadata is the first request's envelope, which another request with the same uuid need not have.
    """
    kind = command.kind
    pairs = {
        "kind": (kind, stored.kind),
        "debit_account_id": None if kind in REFERRING else (command.debit, stored.debit_account),
        "credit_account_id": None if kind in REFERRING else (command.credit, stored.credit_account),
        "amount": (command.amount, stored.stated_amount),
        "currency": (command.currency or stored.currency, stored.currency) if kind in PROFILE else None,
        "refers_to": (command.refers_to, stored.refers_to),
        "expires_in_s": (command.expires_in_s, stored.expires_in_s),
        "reference": (command.reference, stored.reference),
        "reason": (command.reason, stored.reason),
        "metadata": None if kind in PROFILE else (command.metadata, stored.metadata),
    }
    return [name for name, pair in pairs.items() if pair is not None and pair[0] != pair[1]]


def _step(account: Account, change: int, held_change: int = 0) -> After:
    account.balance += change
    account.held += held_change
    account.version += 1
    return After(account.version, account.balance, account.held, account.available)
