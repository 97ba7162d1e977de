"""How stored things look to a caller: minor units become decimal text, and what is not the caller's stays hidden.

Rules of this file: everything here is a pure function of its arguments; nothing else in the daemon decides who sees
which side of a transaction, or writes an amount for people.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

from msgspec import UNSET, Raw, UnsetType

from ledgerd.engine.ports import (
    AMOUNT_MEMBERS,
    AccountState,
    AttemptState,
    BalanceState,
    Command,
    Principal,
    Record,
    Refused,
    Side,
    TokenState,
    UserState,
)
from ledgerd_protocol import events, results
from ledgerd_protocol.errors import LedgerError
from ledgerd_protocol.money import to_text

# -- who sees what ------------------------------------------------------------------------------------------------


def visible(principal: Principal, side: Side) -> bool:
    """Whether the caller may see this side of a transaction: its own user's, or its token's one account."""
    if principal.sees_all:
        return True
    if principal.account_id is not None:
        return side.account_id == principal.account_id
    return side.user_id == principal.user_id


def visible_record(principal: Principal, record: Record) -> bool:
    """Whether the caller may know of the transaction at all: a side of it is the caller's, or the caller sent it.

    The second half is for tombstones, which have no sides.
    """
    if principal.sees_all or any(visible(principal, side) for side in record.sides):
        return True
    if principal.account_id is not None or principal.user_id is None:
        return record.actor.token_id == principal.token_id
    return record.actor.user_id == principal.user_id


# -- transactions and what they change ----------------------------------------------------------------------------


def transaction_view(
    record: Record,
    principal: Principal,
    *,
    replayed: bool = False,
    attempts: Sequence[AttemptState] | None = None,
) -> results.Transaction:
    """A transaction as this caller sees it: entries of visible accounts only, the actor for operators only."""
    scale = record.scale
    return results.Transaction(
        transaction_id=record.transaction_id,
        kind=record.kind,
        status=record.status,
        amount=to_text(record.amount, scale),
        currency=record.currency,
        debit_account_id=record.debit_account,
        credit_account_id=record.credit_account,
        entries=[_entry(side, scale) for side in record.sides if visible(principal, side)],
        reference=record.reference,
        reason=record.reason,
        metadata=None if record.metadata is None else Raw(record.metadata.encode()),
        created_at=record.created_at,
        actor=_actor(record) if "operator" in principal.scopes else UNSET,
        replayed=True if replayed else UNSET,
        attempts=UNSET if attempts is None else [_attempt(attempt) for attempt in attempts],
    )


def _entry(side: Side, scale: int) -> results.Entry:
    balance = to_text(side.balance, scale)
    return results.Entry(
        account_id=side.account_id,
        direction=cast("Literal['debit', 'credit']", side.direction),
        balance_change=to_text(side.balance_change, scale),
        held_change=to_text(side.held_change, scale),
        balance=balance,
        held=to_text(side.held, scale),
        available=balance if side.available == side.balance else to_text(side.available, scale),
        version=side.version,
    )


def _actor(record: Record) -> results.Actor:
    actor = record.actor
    return results.Actor(token_id=actor.token_id, user_id=actor.user_id, scopes=list(actor.scopes))


def _attempt(attempt: AttemptState) -> results.Attempt:
    return results.Attempt(attempt_id=attempt.attempt_id, reason=attempt.code.text, created_at=attempt.created_at)


def update_event(record: Record, side: Side, *, skipped: int = 0, position: str | UnsetType = UNSET) -> events.Update:
    """One version of one account; ``skipped`` is the number of versions before it that were not shown."""
    scale = record.scale
    return events.Update(
        account_id=side.account_id,
        version=side.version,
        balance=to_text(side.balance, scale),
        held=to_text(side.held, scale),
        available=to_text(side.available, scale),
        currency=record.currency,
        balance_change=to_text(side.balance_change, scale),
        held_change=to_text(side.held_change, scale),
        transaction_id=record.transaction_id,
        kind=record.kind,
        created_at=record.created_at,
        skipped=skipped or UNSET,
        position=position,
    )


def account_start(state: AccountState, *, resumed: bool = False, reason: str | None = None) -> events.AccountStart:
    """Where an account stands as a subscription begins; ``reason`` says why a resume became a snapshot."""
    scale = state.scale
    return events.AccountStart(
        account_id=state.account_id,
        origin="resumed" if resumed else "snapshot",
        version=state.version,
        balance=to_text(state.balance, scale),
        held=to_text(state.held, scale),
        available=to_text(state.available, scale),
        currency=state.currency,
        reason=UNSET if reason is None else reason,
    )


# -- everything else ----------------------------------------------------------------------------------------------


def account_view(state: AccountState) -> results.Account:
    """An account with its amounts as text."""
    scale = state.scale
    return results.Account(
        account_id=state.account_id,
        user_id=state.user_id,
        currency=state.currency,
        balance=to_text(state.balance, scale),
        held=to_text(state.held, scale),
        available=to_text(state.available, scale),
        overdraft_limit=to_text(state.overdraft_limit, scale),
        version=state.version,
        status=state.status,
        created_at=state.created_at,
        updated_at=state.updated_at,
    )


def balance_view(state: BalanceState) -> results.Balance:
    """A balance with its amounts as text."""
    scale = state.scale
    return results.Balance(
        account_id=state.account_id,
        user_id=state.user_id,
        balance=to_text(state.balance, scale),
        held=to_text(state.held, scale),
        available=to_text(state.available, scale),
        currency=state.currency,
        version=state.version,
        as_of=state.as_of,
    )


def user_view(state: UserState) -> results.User:
    """A user."""
    return results.User(
        user_id=state.user_id, name=state.name, email=state.email, status=state.status, created_at=state.created_at
    )


def token_view(state: TokenState, secret: str | UnsetType = UNSET) -> results.TokenInfo:
    """A token; ``secret`` only in the answer that made it."""
    return results.TokenInfo(
        token_id=state.token_id,
        user_id=state.user_id,
        account_id=state.account_id,
        scopes=list(state.scopes),
        label=state.label,
        created_at=state.created_at,
        expires_at=state.expires_at,
        revoked_at=state.revoked_at,
        token=secret,
    )


def refusal_error(refused: Refused, command: Command | None = None) -> LedgerError:
    """The error a refusal is answered with. With its ``command``, data also names the transaction_id, and shows the
    transaction that a late cancel ran into.
    """
    data: dict[str, object] = {}
    for name, value in (refused.data or {}).items():
        data[name] = to_text(value, refused.scale) if name in AMOUNT_MEMBERS and isinstance(value, int) else value
    if refused.index is not None:
        data["index"] = refused.index
    if command is not None:
        data["transaction_id"] = command.transaction_id
        if refused.record is not None and visible_record(command.principal, refused.record):
            data["transaction"] = transaction_view(refused.record, command.principal)
    if refused.attempt_id is not None:
        data["attempt_id"] = refused.attempt_id
    if refused.created_at is not None:
        data["created_at"] = refused.created_at
    error = LedgerError(refused.code, refused.detail, applied=refused.applied)
    # Set afterwards: a member named like a parameter of LedgerError would not pass as a keyword.
    error.data.update(data)
    return error
