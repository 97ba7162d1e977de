"""Advances: funds now, paid back in payments. The states of a payment and the events of an advance, as a table.

The table is the specification: the page that people read is compared with it, and so are the database's own checks.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

AdvanceStatus = Literal["active", "completed"]
PaymentStatus = Literal["not_due", "due", "paid", "failed"]
AdvanceEventKind = Literal["requested", "due", "paid", "part_paid", "failed", "rolled_over", "completed"]

INSTALLMENTS_DEFAULT = 12
INTERVAL_DAYS_DEFAULT = 7


class PaymentState(Struct, frozen=True):
    """A state of a payment: which states may follow it, and what it means."""

    status: PaymentStatus
    next: tuple[PaymentStatus, ...]
    meaning: str


PAYMENT_STATES: tuple[PaymentState, ...] = (
    PaymentState("not_due", ("due", "paid"), "Its time has not come. Early repayment can pay it."),
    PaymentState("due", ("paid", "failed"), "Its time has come, and it is being collected. Nobody ever reads it: it is "
                 "paid or failed in the same database transaction."),
    PaymentState("paid", (), "All that it asked for has been taken, with the money."),
    PaymentState("failed", (), "It could not be collected, for its reason; what was left of it has been added to the "
                 "next open payment, or to a new one an interval later. It asks for nothing any more."),
)  # fmt: skip
"""In the order in which a payment goes through them."""

EVENTS: dict[AdvanceEventKind, str] = {
    "requested": "The principal was paid to the account; the amount is the principal.",
    "due": "The time of a payment came; the amount is what was left of it.",
    "paid": "All that was left of a payment was taken, by the collector or by early repayment; the amount is that.",
    "part_paid": "Early repayment took a part of what was left of a payment; the amount is the part.",
    "failed": "A due payment could not be collected, for the reason; the amount is what was left of it.",
    "rolled_over": "The amount of a payment that failed was added to this payment, which may be a new one.",
    "completed": "Nothing is outstanding any more; the amount is that of the transaction that paid the last of it.",
}
"""What may happen to an advance."""


def next_states(status: str) -> tuple[PaymentStatus, ...]:
    """The states that may follow one."""
    return next(state.next for state in PAYMENT_STATES if state.status == status)
