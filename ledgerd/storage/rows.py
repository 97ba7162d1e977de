"""Rows of the database as the engine's nouns."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from ledgerd.engine.commands import ActorInfo, Record, Side
from ledgerd.engine.states import (
    AccountState,
    AdvanceEvent,
    AdvanceHead,
    AdvanceState,
    MonitorState,
    PaymentState,
    TokenState,
    UserState,
)
from ledgerd.times import time_text

_STILL = frozenset({"hold", "release", "expiry", "limit", "freeze", "unfreeze", "close", "cancel"})
"""Kinds that move no money between the sides; the same list as ledgerd.moves_money."""


def _optional_time(time: datetime | None) -> str | None:
    return None if time is None else time_text(time)


def expiry_text(created_at: datetime, expires_in_s: int) -> str:
    """When what was made then is over."""
    return time_text(created_at + timedelta(seconds=expires_in_s))


def moved(kind: str, amount: int) -> int:
    """What a transaction of this kind and amount moves from its debit to its credit side, in minor units."""
    return 0 if kind in _STILL else amount


def record(row: Any) -> Record:
    """A row of ledgerd.records, as it was posted."""
    return _record(row, row["status"], None)


def present_record(row: Any) -> Record:
    """A row of ledgerd.present_records, with what became of it since."""
    return _record(row, row["present_status"], row["reversed_amount"])


def _record(row: Any, status: str, reversed_amount: int | None) -> Record:
    kind, refers_to, expires_in_s = row["kind"], row["refers_to"], row["expires_in_s"]
    change = moved(kind, row["amount"])
    sides = (_side(row, "debit", -change, row["held_change"]), _side(row, "credit", change, 0))
    return Record(
        transaction_id=str(row["transaction_id"]),
        kind=kind,
        status=status,
        amount=row["amount"],
        currency=row["currency"],
        scale=row["scale"],
        debit_account=_account(row["debit_account"]),
        credit_account=_account(row["credit_account"]),
        sides=tuple(side for side in sides if side is not None),
        reference=row["reference"],
        reason=row["reason"],
        metadata=row["metadata"],
        created_at=time_text(row["created_at"]),
        actor=ActorInfo(row["token_id"], row["actor_user"], tuple(sorted(row["actor_scopes"] or ()))),
        refers_to=None if refers_to is None else str(refers_to),
        expires_at=None if expires_in_s is None else expiry_text(row["created_at"], expires_in_s),
        reversed_amount=reversed_amount,
    )


def _side(row: Any, direction: str, change: int, held_change: int) -> Side | None:
    """One side of a row of ledgerd.records; None if it took no version."""
    if row[f"{direction}_version"] is None:
        return None
    return Side(
        account_id=row[f"{direction}_account"],
        user_id=row[f"{direction}_user"],
        direction=direction,
        version=row[f"{direction}_version"],
        balance=row[f"{direction}_balance"],
        held=row[f"{direction}_held"],
        available=row[f"{direction}_available"],
        balance_change=change,
        held_change=held_change,
    )


def _account(account_id: int) -> int | None:
    """The world's accounts are negative and nobody's to see."""
    return account_id if account_id > 0 else None


def account_state(row: Any) -> AccountState:
    """A row of ledgerd.accounts with its currency's scale."""
    return AccountState(
        account_id=row["account_id"],
        user_id=row["user_id"],
        currency=row["currency"],
        scale=row["scale"],
        balance=row["balance"],
        held=row["held"],
        available=row["balance"] - row["held"] + row["overdraft_limit"],
        overdraft_limit=row["overdraft_limit"],
        version=row["version"],
        status=row["status"],
        created_at=time_text(row["created_at"]),
        updated_at=time_text(row["updated_at"]),
    )


def user_state(row: Any) -> UserState:
    """A row of ledgerd.users."""
    return UserState(row["user_id"], row["name"], row["email"], row["status"], time_text(row["created_at"]))


def monitor_state(row: Any) -> MonitorState:
    """A row of ledgerd.monitors with its account's owner, currency and scale, and the user of the token that set it."""
    return MonitorState(
        monitor_id=row["monitor_id"],
        account_id=row["account_id"],
        user_id=row["user_id"],
        currency=row["currency"],
        scale=row["scale"],
        direction=row["direction"],
        amount=row["amount"],
        after_version=row["after_version"],
        label=row["label"],
        set_by=row["set_by"],
        created_at=time_text(row["created_at"]),
        removed=row["removed_at"] is not None,
        revision=row["revision"],
    )


def advance_state(row: Any) -> AdvanceState:
    """An advance with its account's owner, currency and scale, and its payments and events column by column."""
    payments = tuple(
        PaymentState(number, time_text(due_at), amount, rolled_over, paid, status, reason)
        for number, due_at, amount, rolled_over, paid, status, reason in _columns(
            row, "p", "number", "due_at", "amount", "rolled_over", "paid", "status", "reason"
        )
    )
    events = tuple(
        _advance_event(row, values)
        for values in _columns(
            row, "e", "event", "type", "number", "amount", "outstanding", "reason", "transaction_id", "created_at"
        )
    )
    return AdvanceState(
        advance_id=str(row["advance_id"]),
        account_id=row["account_id"],
        user_id=row["user_id"],
        currency=row["currency"],
        scale=row["scale"],
        principal=row["principal"],
        outstanding=row["outstanding"],
        installments=row["installments"],
        interval_days=row["interval_days"],
        created_at=time_text(row["created_at"]),
        payments=payments,
        payments_omitted=row["payments"] - len(payments),
        events=events,
        events_omitted=row["events"] - len(events),
    )


def _columns(row: Any, prefix: str, *names: str) -> Iterator[tuple[Any, ...]]:
    """Rows that were aggregated column by column; an aggregate of nothing is null."""
    return zip(*(row[f"{prefix}_{name}"] or () for name in names), strict=True)


def _advance_event(of: Any, values: tuple[Any, ...]) -> AdvanceEvent:
    event, kind, number, amount, outstanding, reason, transaction_id, created_at = values
    return AdvanceEvent(
        advance_id=str(of["advance_id"]),
        account_id=of["account_id"],
        currency=of["currency"],
        scale=of["scale"],
        event=event,
        type=kind,
        number=number,
        amount=amount,
        outstanding=outstanding,
        reason=reason,
        transaction_id=None if transaction_id is None else str(transaction_id),
        created_at=time_text(created_at),
    )


def advance_event(row: Any) -> AdvanceEvent:
    """A row of ledgerd.advance_events with the advance's account, its currency and scale."""
    names = ("event", "type", "number", "amount", "outstanding", "reason", "transaction_id", "created_at")
    return _advance_event(row, tuple(row[name] for name in names))


def advance_head(row: Any) -> AdvanceHead:
    """An advance with its account's currency and scale, and the number of its last event."""
    names = ("account_id", "currency", "scale", "outstanding", "event")
    return AdvanceHead(str(row["advance_id"]), *(row[name] for name in names))


def token_state(row: Any) -> TokenState:
    """A row of ledgerd.tokens."""
    expires_at = row["expires_at"]
    return TokenState(
        token_id=row["token_id"],
        user_id=row["user_id"],
        account_id=row["account_id"],
        scopes=tuple(row["scopes"]),
        label=row["label"],
        created_at=time_text(row["created_at"]),
        expires_at=_optional_time(expires_at),
        expires_at_s=None if expires_at is None else expires_at.timestamp(),
        revoked_at=_optional_time(row["revoked_at"]),
    )
