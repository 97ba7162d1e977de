"""How stored things look to a caller: minor units become decimal text, and what is not the caller's stays hidden.

Rules of this file: everything here is a pure function of its arguments; nothing else in the daemon decides who sees
which side of a transaction, or writes an amount for people.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, cast

from msgspec import UNSET, Raw, UnsetType

from ledgerd.engine.commands import AMOUNT_MEMBERS, Command, Principal, Record, Refused, Side
from ledgerd.engine.monitors import Monitor
from ledgerd.engine.states import (
    AccountState,
    AdvanceEvent,
    AdvanceHead,
    AdvanceState,
    AttemptState,
    BalanceState,
    FailedCommand,
    MonitorState,
    PaymentState,
    ReportItem,
    TokenState,
    UserState,
)
from ledgerd_protocol import events, results
from ledgerd_protocol.errors import LedgerError
from ledgerd_protocol.money import to_text

# -- who sees what ------------------------------------------------------------------------------------------------


class Owned(Protocol):
    """What is an account's, and with it a user's: its facts, a side of a transaction, an advance, a monitor."""

    @property
    def account_id(self) -> int:
        """The account."""

    @property
    def user_id(self) -> int:
        """Its owner."""


def visible(principal: Principal, owned: Owned) -> bool:
    """Whether the caller may see what is an account's: its own user's, or its token's one account."""
    if principal.sees_all:
        return True
    if principal.account_id is not None:
        return owned.account_id == principal.account_id
    return owned.user_id == principal.user_id


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

_REFERS_TO = {
    "capture": "hold_id",
    "release": "hold_id",
    "expiry": "hold_id",
    "reversal": "reverses",
    "win": "reference_transaction_id",
    "rollback": "reference_transaction_id",
    "advance_payment": "advance_id",
}
"""Under which name a transaction of a kind shows what it refers to."""

_ITSELF = {"hold": "hold_id", "advance": "advance_id"}
"""Kinds that show their own id under the name that others refer to it by."""


def transaction_view(
    record: Record,
    principal: Principal,
    *,
    replayed: bool = False,
    attempts: Sequence[AttemptState] | None = None,
) -> results.Transaction:
    """A transaction as this caller sees it: entries of visible accounts only, the actor for operators only."""
    scale = record.scale
    named, referred = _referred(record)
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
        # As it is stored: encoding it does not look at its type.
        metadata=None if record.metadata is None else cast("dict[str, Any]", Raw(record.metadata.encode())),
        created_at=record.created_at,
        hold_id=referred if named == "hold_id" else UNSET,
        expires_at=UNSET if record.expires_at is None else record.expires_at,
        reverses=referred if named == "reverses" else UNSET,
        reversed_amount=UNSET if record.reversed_amount is None else to_text(record.reversed_amount, scale),
        reference_transaction_id=referred if named == "reference_transaction_id" else UNSET,
        advance_id=referred if named == "advance_id" else UNSET,
        actor=_actor(record, principal),
        replayed=True if replayed else UNSET,
        attempts=UNSET if attempts is None else [_attempt(attempt) for attempt in attempts],
    )


def report_item(item: ReportItem, principal: Principal) -> results.Transaction | results.FailedTransaction:
    """A line of a report: a transaction, or an attempt that was refused."""
    if not isinstance(item, FailedCommand):
        return transaction_view(item, principal)
    return results.FailedTransaction(
        attempt_id=item.attempt_id,
        transaction_id=item.transaction_id,
        kind=item.kind,
        status="failed",
        error=item.code.text,
        amount=None if item.amount is None or item.scale is None else to_text(item.amount, item.scale),
        currency=item.currency,
        debit_account_id=item.debit_account,
        credit_account_id=item.credit_account,
        reference=item.reference,
        reason=item.reason,
        created_at=item.created_at,
        actor=_actor(item, principal),
    )


def _referred(record: Record) -> tuple[str | None, str | UnsetType]:
    """In which member the transaction shows what it refers to, and what that is; most kinds have none."""
    if record.refers_to is not None:
        return _REFERS_TO.get(record.kind), record.refers_to
    return _ITSELF.get(record.kind), record.transaction_id


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


def _actor(item: ReportItem, principal: Principal) -> results.Actor | UnsetType:
    """Who did it: for operators only."""
    if "operator" not in principal.scopes:
        return UNSET
    actor = item.actor
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


def monitor_event(
    record: Record, side: Side, monitor: Monitor, *, more: bool, position: str | UnsetType = UNSET
) -> events.MonitorCrossed:
    """A change that crosses a monitor; ``more`` when the same change crosses another one that is told next."""
    scale = record.scale
    amount = to_text(monitor.amount, scale)
    return events.MonitorCrossed(
        monitor_id=monitor.monitor_id,
        account_id=side.account_id,
        version=side.version,
        balance=to_text(side.balance, scale),
        currency=record.currency,
        transaction_id=record.transaction_id,
        created_at=record.created_at,
        below=amount if monitor.direction == "below" else UNSET,
        above=amount if monitor.direction == "above" else UNSET,
        more=more or UNSET,
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


def monitor_view(state: MonitorState) -> results.Monitor:
    """A monitor with its amount as text."""
    amount = to_text(state.amount, state.scale)
    return results.Monitor(
        monitor_id=state.monitor_id,
        account_id=state.account_id,
        version=state.after_version,
        currency=state.currency,
        label=state.label,
        created_at=state.created_at,
        below=amount if state.direction == "below" else UNSET,
        above=amount if state.direction == "above" else UNSET,
    )


def advance_view(
    state: AdvanceState, *, events: bool = False, transaction: results.Transaction | UnsetType = UNSET
) -> results.Advance:
    """An advance with its amounts as text; with ``events`` also what happened to it."""
    scale = state.scale
    return results.Advance(
        advance_id=state.advance_id,
        account_id=state.account_id,
        user_id=state.user_id,
        currency=state.currency,
        principal=to_text(state.principal, scale),
        outstanding=to_text(state.outstanding, scale),
        status="active" if state.outstanding else "completed",
        installments=state.installments,
        interval_days=state.interval_days,
        created_at=state.created_at,
        payments=[_payment(payment, scale) for payment in state.payments],
        payments_omitted=state.payments_omitted or UNSET,
        events=[_advance_history(event, scale) for event in state.events] if events else UNSET,
        events_omitted=(state.events_omitted or UNSET) if events else UNSET,
        transaction=transaction,
    )


def _payment(payment: PaymentState, scale: int) -> results.AdvancePayment:
    return results.AdvancePayment(
        number=payment.number,
        due_at=payment.due_at,
        amount=to_text(payment.amount, scale),
        rolled_over=to_text(payment.rolled_over, scale),
        paid=to_text(payment.paid, scale),
        status=payment.status,
        reason=payment.reason,
    )


def _advance_history(event: AdvanceEvent, scale: int) -> results.AdvanceHistory:
    return results.AdvanceHistory(
        event=event.event,
        type=event.type,
        number=event.number,
        amount=to_text(event.amount, scale),
        outstanding=to_text(event.outstanding, scale),
        reason=event.reason,
        transaction_id=event.transaction_id,
        created_at=event.created_at,
    )


def advance_event(event: AdvanceEvent) -> events.AdvanceHappened:
    """An event of an advance as it is pushed."""
    return events.AdvanceHappened(
        advance_id=event.advance_id,
        account_id=event.account_id,
        event=event.event,
        what=event.type,
        number=event.number,
        amount=to_text(event.amount, event.scale),
        outstanding=to_text(event.outstanding, event.scale),
        currency=event.currency,
        reason=event.reason,
        transaction_id=event.transaction_id,
        created_at=event.created_at,
    )


def advance_start(head: AdvanceHead, *, resumed: bool, reason: str | None) -> events.AdvanceStart:
    """Where an advance stands as a subscription begins; ``reason`` says why a resume became a snapshot."""
    return events.AdvanceStart(
        advance_id=head.advance_id,
        account_id=head.account_id,
        origin="resumed" if resumed else "snapshot",
        event=head.event,
        outstanding=to_text(head.outstanding, head.scale),
        currency=head.currency,
        reason=UNSET if reason is None else reason,
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
        if name == "mismatch" and isinstance(value, list) and command is not None:
            data[name] = [_REFERS_TO.get(command.kind, member) if member == "refers_to" else member for member in value]
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
