"""How large the answers to money commands can get: known before anything is executed, so that none is ever lost."""

from __future__ import annotations

import msgspec
from msgspec import UNSET

from ledgerd.gateway.wallet_bodies import answer_bytes_max
from ledgerd_protocol.fields import ID_MAX
from ledgerd_protocol.messages import (
    AccountName,
    AdvanceRepay,
    AdvanceRequest,
    Credit,
    Debit,
    HoldCapture,
    HoldPlace,
    HoldRelease,
    MoneyParams,
    Params,
    TransactionBatch,
    TransactionReverse,
    Transfer,
    WalletRequest,
)
from ledgerd_protocol.results import Actor, Advance, AdvanceHistory, AdvancePayment, Entry, Transaction

_LONGEST_AMOUNT = "-9999999999.99999999"
_LONGEST_TIME = "2026-01-01T00:00:00.000000Z"
_LONGEST_UUID = "00000000-0000-7000-8000-000000000000"
_LONGEST_REASON = "insufficient_funds"
_LARGEST_COUNT = 2**31 - 1
_SCOPES = ["read", "user", "topup", "service", "operator"]


def _longest_transaction(entries: int, *members: str) -> int:
    """Of a transaction with so many entries and these members that others do not have, without texts of its own."""
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
        **dict.fromkeys(members, _LONGEST_UUID),  # type: ignore[arg-type]  # no member is longer
    )
    return len(msgspec.json.encode(transaction))


REFUSAL_BYTES_MAX = 800
"""Of an error with everything the kernel adds: the ids, the times, the amounts, the names of mismatched fields."""

_TRANSACTIONS: dict[type[Params], int] = {
    Credit: _longest_transaction(1),
    Debit: _longest_transaction(1),
    Transfer: _longest_transaction(2),
    HoldPlace: _longest_transaction(1, "hold_id", "expires_at"),
    HoldCapture: _longest_transaction(2, "hold_id"),
    HoldRelease: _longest_transaction(1, "hold_id"),
    TransactionReverse: _longest_transaction(2, "reverses"),
}
_ANSWERS_BYTES_MAX = {params: max(size, REFUSAL_BYTES_MAX) for params, size in _TRANSACTIONS.items()}
"""Of the transaction that a command answers, or the refusal in its place."""

_LONGEST_BYTES = max(_ANSWERS_BYTES_MAX.values())

_ACTOR_BYTES_MAX = len(msgspec.json.encode({"actor": Actor(token_id=ID_MAX, user_id=ID_MAX, scopes=_SCOPES)}))
TRANSACTION_BYTES_MAX = (
    _longest_transaction(2, "hold_id", "expires_at", "reverses", "reversed_amount", "reference_transaction_id")
    + _ACTOR_BYTES_MAX
    + 2 * 255 * 6
    + 4096
)
"""Of any transaction: 255 characters of reference and of reason, each perhaps escaped, and 4 KiB of metadata."""

PAYMENTS_SHOWN_MAX = EVENTS_SHOWN_MAX = 200
"""The latest of an advance that is read by itself."""

PAYMENTS_LISTED_MAX = 100
"""The latest of each advance in a list, and in the answer to a command."""


def _longest_advance(payments: int, events: int) -> int:
    """Of an advance with so many payments and events, without its transaction."""
    payment = AdvancePayment(
        number=_LARGEST_COUNT,
        due_at=_LONGEST_TIME,
        amount=_LONGEST_AMOUNT,
        rolled_over=_LONGEST_AMOUNT,
        paid=_LONGEST_AMOUNT,
        status="not_due",
        reason=_LONGEST_REASON,
    )
    event = AdvanceHistory(
        event=_LARGEST_COUNT,
        type="rolled_over",
        number=_LARGEST_COUNT,
        amount=_LONGEST_AMOUNT,
        outstanding=_LONGEST_AMOUNT,
        reason=_LONGEST_REASON,
        transaction_id=_LONGEST_UUID,
        created_at=_LONGEST_TIME,
    )
    advance = Advance(
        advance_id=_LONGEST_UUID,
        account_id=ID_MAX,
        user_id=ID_MAX,
        currency="ABCDEFGHIJKL",
        principal=_LONGEST_AMOUNT,
        outstanding=_LONGEST_AMOUNT,
        status="completed",
        installments=_LARGEST_COUNT,
        interval_days=_LARGEST_COUNT,
        created_at=_LONGEST_TIME,
        payments=[payment] * payments,
        payments_omitted=_LARGEST_COUNT,
        events=[event] * events,
        events_omitted=_LARGEST_COUNT,
    )
    return len(msgspec.json.encode(advance)) + len(',"transaction":')


ADVANCE_BYTES_MAX = _longest_advance(PAYMENTS_SHOWN_MAX, EVENTS_SHOWN_MAX)
_ADVANCES: dict[type[Params], int] = {
    AdvanceRequest: _longest_transaction(1, "advance_id") + _longest_advance(PAYMENTS_LISTED_MAX, 0),
    AdvanceRepay: _longest_transaction(1, "advance_id") + _longest_advance(PAYMENTS_LISTED_MAX, 0),
}

OUTCOME_BYTES = len('{"result":},')
"""Around one outcome of a `transaction_batch`."""

ACCOUNT_BYTES_MAX = 640


def result_bytes_max(params: Params, *, operator: bool) -> int:
    """The most that the result of a money method, or the refusal in its place, may take, encoded.

    A command's own texts come back in it; operators are also shown the actor.
    """
    if isinstance(params, MoneyParams):
        size = _ADVANCES.get(type(params)) or _ANSWERS_BYTES_MAX[type(params)]
        if operator:
            size += _ACTOR_BYTES_MAX
        for text in (params.reference, params.reason):
            if text is not UNSET:
                size += len(msgspec.json.encode(text))
        # Canonical metadata is never longer than what it was read from.
        return size if params.metadata is UNSET else size + len(bytes(params.metadata))
    if isinstance(params, TransactionBatch):
        each = _LONGEST_BYTES + _ACTOR_BYTES_MAX + OUTCOME_BYTES
        return sum(each + len(bytes(item.params)) for item in params.items)
    if isinstance(params, WalletRequest):
        return max(answer_bytes_max(params), REFUSAL_BYTES_MAX)
    if isinstance(params, AccountName):
        return max(ACCOUNT_BYTES_MAX, REFUSAL_BYTES_MAX)
    return TRANSACTION_BYTES_MAX + REFUSAL_BYTES_MAX  # a cancel shows the transaction it ran into
