"""Between the engine's nouns and the model's: what a lane and a reader of the real storage do with rows."""

from __future__ import annotations

from datetime import UTC, datetime

from ledgerd.engine import commands as engine
from ledgerd.engine.states import AccountState
from ledgerd_protocol.errors import ErrorCode
from tests.model import SECOND, STILL, Account, After, Ledger, Transaction
from tests.model import Command as ModelCommand
from tests.model import Refusal as ModelRefusal
from tests.model import Unit as ModelUnit

SCALE = 2
"""Decimals of every currency of a simulated ledger."""


def time_text(us: int) -> str:
    """Microseconds of Unix time as the protocol writes times."""
    moment = datetime.fromtimestamp(us // SECOND, UTC).replace(microsecond=us % SECOND)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def model_unit(unit: engine.Unit) -> ModelUnit:
    """A unit as the model takes it: with a batch id only where all stand or fall together."""
    return ModelUnit(tuple(map(model_command, unit.commands)), unit.batch_id if unit.atomic else None)


def model_command(command: engine.Command) -> ModelCommand:
    """A command whose accounts the router has filled in."""
    return ModelCommand(
        kind=command.kind,
        token_id=command.principal.token_id,
        transaction_id=command.transaction_id,
        attempt_id=command.attempt_id,
        debit=command.debit_account,
        credit=command.credit_account,
        amount=command.amount_minor,
        problem=command.amount_problem,
        currency=command.currency,
        reference=command.reference,
        reason=command.reason,
        metadata=command.metadata,
        refers_to=command.refers_to,
        expires_in_s=command.expires_in_s,
        late_problem=command.late_problem,
    )


def record_of(transaction: Transaction, ledger: Ledger) -> engine.Record:
    """A stored transaction as it was posted."""
    moved = 0 if transaction.kind in STILL else transaction.amount
    token = ledger.tokens[transaction.token_id]
    sides = (
        _side(ledger, transaction.debit_account, "debit", transaction.debit, -moved, transaction.held_change),
        _side(ledger, transaction.credit_account, "credit", transaction.credit, moved, 0),
    )
    return engine.Record(
        transaction_id=transaction.transaction_id,
        kind=transaction.kind,
        status=transaction.status,
        amount=transaction.amount,
        currency=transaction.currency,
        scale=SCALE,
        debit_account=transaction.debit_account,
        credit_account=transaction.credit_account,
        sides=tuple(side for side in sides if side is not None),
        reference=transaction.reference,
        reason=transaction.reason,
        metadata=transaction.metadata,
        created_at=time_text(transaction.created_at),
        actor=engine.ActorInfo(token.token_id, token.user_id, tuple(sorted(token.scopes))),
        refers_to=transaction.refers_to,
        expires_at=time_text(transaction.expires_at) if transaction.kind == "hold" else None,
    )


def _side(
    ledger: Ledger, account_id: int | None, direction: str, after: After | None, change: int, held_change: int
) -> engine.Side | None:
    if account_id is None or after is None:
        return None
    return engine.Side(
        account_id=account_id,
        user_id=ledger.accounts[account_id].user_id,
        direction=direction,
        version=after.version,
        balance=after.balance,
        held=after.held,
        available=after.available,
        balance_change=change,
        held_change=held_change,
    )


def refused(
    refusal: ModelRefusal, command: engine.Command, now_us: int, record: engine.Record | None, index: int | None
) -> engine.Refused:
    """A refusal as a lane answers it; ``record`` is what a refused cancel ran into."""
    facts = command.debit_facts or command.credit_facts
    return engine.Refused(
        code=refusal.code,
        data=None if refusal.data is None else dict(refusal.data),
        scale=0 if facts is None else facts.scale,
        attempt_id=command.attempt_id,
        created_at=time_text(now_us),
        record=record if refusal.code == ErrorCode.ALREADY_POSTED else None,
        index=index,
    )


def account_state(account: Account, created_us: int, updated_us: int) -> AccountState:
    """An account as it is."""
    return AccountState(
        account_id=account.account_id,
        user_id=account.user_id,
        currency=account.currency,
        scale=SCALE,
        balance=account.balance,
        held=account.held,
        available=account.available,
        overdraft_limit=account.overdraft_limit,
        version=account.version,
        status=account.status,
        created_at=time_text(created_us),
        updated_at=time_text(updated_us),
    )
