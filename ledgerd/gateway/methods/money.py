"""Methods that move money: each plans commands, nothing here waits or touches a balance.

Authorisation looks at the account the money leaves, after `direction` is applied: that side is ``debit`` in a command
of kind debit, transfer, limit and cancel; a credit has only the side it reaches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import UUID, uuid5

import msgspec
from msgspec import UNSET, Raw
from uuid_utils import uuid7

from ledgerd.engine.ports import AccountRef, Command, Outcome, Posted, Refused
from ledgerd.engine.views import account_view, refusal_error, transaction_view
from ledgerd.gateway.access import not_found, other_ref, own_ref, seen_account
from ledgerd.gateway.call import Call, Money, Plan
from ledgerd_protocol.codec import canonical_metadata, decode_items
from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.fields import ID_MAX
from ledgerd_protocol.messages import (
    AccountSetLimit,
    Credit,
    Debit,
    MoneyParams,
    Params,
    TransactionBatch,
    TransactionCancel,
    Transfer,
)
from ledgerd_protocol.money import amount_text
from ledgerd_protocol.results import Account, Actor, BatchOutcome, BatchResult, Entry, Transaction

# -- how large an answer can get --------------------------------------------------------------------------------------

_LONGEST_AMOUNT = "-9999999999.99999999"
_LONGEST_TIME = "2026-01-01T00:00:00.000000Z"
_LONGEST_UUID = "00000000-0000-7000-8000-000000000000"
_SCOPES = ["read", "user", "topup", "service", "operator"]


def _longest_transaction(entries: int) -> int:
    entry = Entry(
        account_id=ID_MAX,
        direction="credit",
        balance_change=_LONGEST_AMOUNT,
        held_change=_LONGEST_AMOUNT,
        balance=_LONGEST_AMOUNT,
        held=_LONGEST_AMOUNT,
        available=_LONGEST_AMOUNT,
        version=ID_MAX,
    )
    transaction = Transaction(
        transaction_id=_LONGEST_UUID,
        kind="advance_payment",
        status="cancelled",
        amount=_LONGEST_AMOUNT,
        currency="ABCDEFGHIJKL",
        debit_account_id=ID_MAX,
        credit_account_id=ID_MAX,
        entries=[entry] * entries,
        reference=None,
        reason=None,
        metadata=None,
        created_at=_LONGEST_TIME,
        replayed=True,
    )
    return len(msgspec.json.encode(transaction))


_REFUSAL_BYTES_MAX = 800
"""Of an error with everything the kernel adds: the ids, the times, the amounts, the names of mismatched fields."""

_ONE_SIDED_BYTES_MAX = max(_longest_transaction(1), _REFUSAL_BYTES_MAX)
_TWO_SIDED_BYTES_MAX = max(_longest_transaction(2), _REFUSAL_BYTES_MAX)
_ACTOR_BYTES_MAX = len(msgspec.json.encode({"actor": Actor(token_id=ID_MAX, user_id=ID_MAX, scopes=_SCOPES)}))
TRANSACTION_BYTES_MAX = _TWO_SIDED_BYTES_MAX + _ACTOR_BYTES_MAX + 2 * 255 * 6 + 4096
"""Of any transaction: 255 characters of reference and of reason, each perhaps escaped, and 4 KiB of metadata."""

_OUTCOME_BYTES = len('{"result":},')

ACCOUNT_BYTES_MAX = 640


def result_bytes_max(params: Params, *, operator: bool) -> int:
    """The most that the result of a money method, or the refusal in its place, may take, encoded.

    A command's own texts come back in it; operators are also shown the actor.
    """
    if isinstance(params, MoneyParams):
        size = _TWO_SIDED_BYTES_MAX if isinstance(params, Transfer) else _ONE_SIDED_BYTES_MAX
        if operator:
            size += _ACTOR_BYTES_MAX
        for text in (params.reference, params.reason):
            if text is not UNSET:
                size += len(msgspec.json.encode(text))
        # Canonical metadata is never longer than what it was read from.
        return size if params.metadata is UNSET else size + len(bytes(params.metadata))
    if isinstance(params, TransactionBatch):
        each = _TWO_SIDED_BYTES_MAX + _ACTOR_BYTES_MAX + _OUTCOME_BYTES
        return sum(each + len(bytes(item.params)) for item in params.items)
    if isinstance(params, AccountSetLimit):
        return max(ACCOUNT_BYTES_MAX, _REFUSAL_BYTES_MAX)
    return TRANSACTION_BYTES_MAX + _REFUSAL_BYTES_MAX  # a cancel shows the transaction it ran into


# -- one command ------------------------------------------------------------------------------------------------------


def outcome_result(command: Command, outcome: Outcome) -> Transaction:
    """The transaction, or what the refusal is answered with. Raises LedgerError."""
    if isinstance(outcome, Posted):
        return transaction_view(outcome.record, command.principal, replayed=outcome.replayed)
    raise refusal_error(outcome, command)


def _plan_one(command: Command) -> Plan:
    return Plan([command], partial(_conclude_one, command))


def _conclude_one(command: Command, outcomes: list[Outcome]) -> Transaction:
    return outcome_result(command, outcomes[0])


def _command(
    call: Call, kind: str, params: MoneyParams, debit: AccountRef | None, credit: AccountRef | None, amount: Raw
) -> Command:
    currency = getattr(params, "currency", UNSET)
    return Command(
        kind=kind,
        principal=call.principal,
        transaction_id=str(uuid7()) if params.transaction_id is UNSET else params.transaction_id,
        attempt_id=str(uuid7()),
        debit=debit,
        credit=credit,
        amount=amount_text(amount),
        currency=None if currency is UNSET else currency,
        reference=None if params.reference is UNSET else params.reference,
        reason=None if params.reason is UNSET else params.reason,
        metadata=None if params.metadata is UNSET else canonical_metadata(params.metadata),
        arrived_at=call.arrived_at,
    )


def credit_command(call: Call, params: Credit) -> Command:
    """Money from the world to an account."""
    ref = own_ref(call.principal, params.account_id, params.user_id)
    return _command(call, "credit", params, None, ref, params.amount)


def debit_command(call: Call, params: Debit) -> Command:
    """Money from an account to the world."""
    ref = own_ref(call.principal, params.account_id, params.user_id)
    return _command(call, "debit", params, ref, None, params.amount)


def transfer_command(call: Call, params: Transfer) -> Command:
    """Money between two accounts; the side it leaves may be left out and is then the caller's own."""
    principal = call.principal
    if params.direction == "debit":
        pays = own_ref(principal, params.source_account_id, params.source_user_id, "/source_account_id")
        gets = other_ref(params.destination_account_id, params.destination_user_id, "/destination_account_id")
    else:
        pays = own_ref(principal, params.destination_account_id, params.destination_user_id, "/destination_account_id")
        gets = other_ref(params.source_account_id, params.source_user_id, "/source_account_id")
    return _command(call, "transfer", params, pays, gets, params.amount)


_COMMANDS: dict[str, Callable[[Call, Any], Command]] = {
    "credit": credit_command,
    "debit": debit_command,
    "transfer": transfer_command,
}


def credit(call: Call, params: Credit) -> Plan:
    """Answer `credit`."""
    return _plan_one(credit_command(call, params))


def debit(call: Call, params: Debit) -> Plan:
    """Answer `debit`."""
    return _plan_one(debit_command(call, params))


def transfer(call: Call, params: Transfer) -> Plan:
    """Answer `transfer`."""
    return _plan_one(transfer_command(call, params))


def _unpaid_command(call: Call, kind: str, params: AccountSetLimit | TransactionCancel, amount: str | None) -> Command:
    return Command(
        kind=kind,
        principal=call.principal,
        transaction_id=str(uuid7()) if params.transaction_id is UNSET else params.transaction_id,
        attempt_id=str(uuid7()),
        debit=own_ref(call.principal, params.account_id, params.user_id),
        credit=None,
        amount=amount,
        currency=None if params.currency is UNSET else params.currency,
        reference=None,
        reason=None,
        metadata=None,
        arrived_at=call.arrived_at,
    )


def transaction_cancel(call: Call, params: TransactionCancel) -> Plan:
    """Answer `transaction_cancel`."""
    return _plan_one(_unpaid_command(call, "cancel", params, None))


def account_set_limit(call: Call, params: AccountSetLimit) -> Plan:
    """Answer `account_set_limit`: the limit is set as a version of the account, the answer is the account."""
    command = _unpaid_command(call, "limit", params, amount_text(params.overdraft_limit))
    ref = command.acting

    async def account_after(call: Call) -> Account:
        facts = await seen_account(call, ref, params.currency)
        states = await call.desk.books.account_states([facts.account_id])
        if not states:
            raise not_found("account")
        return account_view(states[0])

    return Plan([command], partial(_conclude_one, command), afterwards=account_after)


# -- many commands ----------------------------------------------------------------------------------------------------


def transaction_batch(call: Call, params: TransactionBatch) -> Plan:
    """Answer `transaction_batch`. All mistakes of all items are found before anything is executed."""
    items = decode_items(params)
    operator = "operator" in call.principal.scopes
    if sum(result_bytes_max(item, operator=operator) + _OUTCOME_BYTES for _, item in items) > call.result_bytes_max:
        raise LedgerError(ErrorCode.BATCH_TOO_LARGE, "The answer could be larger than a message may be.")
    commands: list[Command] = []
    refused: dict[int, Refused] = {}
    problems: list[dict[str, str]] = []
    for index, (method, item) in enumerate(items):
        if method.scopes.isdisjoint(call.principal.scopes):
            refused[index] = Refused(code=ErrorCode.PERMISSION_DENIED)
        assert isinstance(item, MoneyParams)
        if item.transaction_id is UNSET:
            assert params.batch_id is not UNSET
            item = msgspec.structs.replace(item, transaction_id=str(uuid5(UUID(params.batch_id), str(index))))
        try:
            commands.append(_COMMANDS[method.name](call, item))
        except LedgerError as error:
            problems += [
                {"pointer": f"/items/{index}/params{found['pointer']}", "detail": found["detail"]}
                for found in error.data["errors"]
            ]
    if problems:
        raise LedgerError(
            ErrorCode.INVALID_PARAMS, f"{len(problems)} parameters are not valid; see data.errors.", errors=problems
        )
    if len(commands) > 1:
        # The request itself has been counted; each of its commands counts like a request.
        call.desk.requests.require(call.principal.token_id, len(commands) - 1)
    return Plan(
        commands,
        partial(_conclude_batch, commands, params.atomic),
        refused=refused,
        atomic=params.atomic,
        batch_id=None if params.batch_id is UNSET else params.batch_id,
    )


def _conclude_batch(commands: list[Command], atomic: bool, outcomes: list[Outcome]) -> BatchResult:
    if atomic:
        refusals = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
        if refusals:
            raise _atomic_error(commands, refusals)
    results: list[BatchOutcome] = []
    for command, outcome in zip(commands, outcomes, strict=True):
        try:
            results.append(BatchOutcome(result=outcome_result(command, outcome)))
        except LedgerError as error:
            results.append(BatchOutcome(error=error.to_wire()))
    return BatchResult(results)


def _atomic_error(commands: list[Command], refusals: list[Refused]) -> LedgerError:
    """The one refusal that an atomic batch is answered with: of the member that was refused first.

    When no member is to blame (the database is away, the batch is too large) it is of the whole, and has no index.
    """
    for refused in refusals:
        if refused.index is not None:
            return refusal_error(refused, commands[refused.index])
    return refusal_error(refusals[0])


METHODS = {
    "credit": Money(credit),
    "debit": Money(debit),
    "transfer": Money(transfer),
    "transaction_cancel": Money(transaction_cancel),
    "account_set_limit": Money(account_set_limit),
    "transaction_batch": Money(transaction_batch),
}
