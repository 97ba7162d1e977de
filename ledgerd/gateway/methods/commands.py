"""The building of money commands from the parameters of methods, and the method that is one command."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from msgspec import UNSET, Raw, UnsetType
from uuid_utils import uuid7

from ledgerd.engine.commands import AccountRef, Command, Outcome, Posted
from ledgerd.engine.views import refusal_error, transaction_view
from ledgerd.gateway.call import Call, Money, Plan
from ledgerd_protocol.codec import canonical_metadata
from ledgerd_protocol.messages import Params
from ledgerd_protocol.money import amount_text
from ledgerd_protocol.results import Transaction

Build = Callable[[Call, Any], Command]
"""Makes the command of a request. Raises LedgerError ``invalid_params``."""


def make_command(
    call: Call,
    kind: str,
    params: Params,
    *,
    debit: AccountRef | None = None,
    credit: AccountRef | None = None,
    amount: Raw | UnsetType = UNSET,
    refers_to: str | None = None,
    expires_in_s: int | None = None,
    installments: int | None = None,
    interval_days: int | None = None,
) -> Command:
    """A command of the caller. What every money method may carry is taken from the parameters, as far as they have it;
    a command without a transaction_id is given one.
    """
    metadata = getattr(params, "metadata", UNSET)
    return Command(
        kind=kind,
        principal=call.principal,
        transaction_id=_stated(params, "transaction_id") or str(uuid7()),
        attempt_id=str(uuid7()),
        debit=debit,
        credit=credit,
        amount=None if amount is UNSET else amount_text(amount),
        currency=_stated(params, "currency"),
        reference=_stated(params, "reference"),
        reason=_stated(params, "reason"),
        metadata=None if metadata is UNSET else canonical_metadata(metadata),
        arrived_at=call.arrived_at,
        refers_to=refers_to,
        expires_in_s=expires_in_s,
        installments=installments,
        interval_days=interval_days,
    )


def _stated(params: Params, name: str) -> str | None:
    value: str | UnsetType = getattr(params, name, UNSET)
    return None if value is UNSET else value


def outcome_result(command: Command, outcome: Outcome) -> Transaction:
    """The transaction, or what the refusal is answered with. Raises LedgerError."""
    if isinstance(outcome, Posted):
        return transaction_view(outcome.record, command.principal, replayed=outcome.replayed)
    raise refusal_error(outcome, command)


def plan_one(command: Command) -> Plan:
    """The plan of a request that is one command and answers its transaction."""
    return Plan([command], partial(_conclude_one, command))


def _conclude_one(command: Command, outcomes: list[Outcome]) -> Transaction:
    return outcome_result(command, outcomes[0])


def one(build: Build) -> Money:
    """The method that is this one command."""

    def plan(call: Call, params: Params) -> Plan:
        return plan_one(build(call, params))

    return Money(plan)
