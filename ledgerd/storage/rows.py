"""Rows of the database as the engine's nouns."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ledgerd.engine.ports import AccountState, ActorInfo, Record, Side, TokenState, UserState

_STILL = frozenset({"hold", "release", "expiry", "limit", "freeze", "close", "cancel"})
"""Kinds that move no money between the sides; the same list as ledgerd.moves_money."""


def time_text(time: datetime) -> str:
    """RFC 3339 in UTC with six digits."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _optional_time(time: datetime | None) -> str | None:
    return None if time is None else time_text(time)


def moved(kind: str, amount: int) -> int:
    """What a transaction of this kind and amount moves from its debit to its credit side, in minor units."""
    return 0 if kind in _STILL else amount


def record(row: Any) -> Record:
    """A row of ledgerd.records."""
    kind = row["kind"]
    change = moved(kind, row["amount"])
    sides = (_side(row, "debit", -change, row["held_change"]), _side(row, "credit", change, 0))
    return Record(
        transaction_id=str(row["transaction_id"]),
        kind=kind,
        status=row["status"],
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
