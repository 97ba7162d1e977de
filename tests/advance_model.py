"""The rules of advances once more, in plain Python, as plainly as they can be said: the database must agree with them.

Time is whatever number the caller counts in, days for example; amounts are integers in minor units. Nothing here reads
a clock or a database, or knows about accounts: whether a payment can be taken is asked of the caller.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from ledgerd_protocol.advances import next_states

REASON = "insufficient_funds"


class Payment(Struct):
    """A payment of the schedule."""

    number: int
    due_at: float
    amount: int
    rolled_over: int = 0
    paid: int = 0
    status: str = "not_due"
    reason: str | None = None

    @property
    def left(self) -> int:
        """What it still asks for; nothing once it is paid or has failed."""
        return self.amount - self.paid if self.open else 0

    @property
    def open(self) -> bool:
        return self.status in ("not_due", "due")

    def become(self, status: str, reason: str | None = None) -> None:
        """Go to a state that may follow the present one."""
        assert status in next_states(self.status), (self.status, status)
        self.status, self.reason = status, reason

    def pay(self, amount: int) -> None:
        """Take money; paid when that was all."""
        assert 0 < amount <= self.left
        self.paid += amount
        if self.paid == self.amount:
            self.become("paid")


class Event(Struct, frozen=True):
    """What happened, as it is told."""

    type: str
    number: int | None
    amount: int
    outstanding: int
    reason: str | None = None


class TooSmall(Exception):
    """Not every payment could ask for something."""


class Advance:
    """An advance whose principal was paid at ``now``."""

    def __init__(self, principal: int, *, installments: int = 12, interval: float = 7, now: float = 0) -> None:
        if principal < installments:
            raise TooSmall
        each, rest = divmod(principal, installments)
        self.principal = self.outstanding = principal
        self.interval = interval
        self.payments = [
            Payment(number, now + interval * number, each + (number <= rest)) for number in range(1, installments + 1)
        ]
        self.events: list[Event] = []
        self._note("requested", None, principal)

    def collect(self, now: float, take: Callable[[int], bool]) -> list[int]:
        """Collect what is due in order, each payment whole or not at all, if ``take`` says so; what was taken."""
        taken = []
        while payment := next((each for each in self.payments if each.open and each.due_at <= now), None):
            left = payment.left
            payment.become("due")
            self._note("due", payment.number, left)
            if take(left):
                self._pay(payment, left)
                self._finish(left)
                taken.append(left)
            else:
                self._roll_over(payment, left)
        return taken

    def repay(self, amount: int, now: float) -> None:
        """Take an early repayment: what is due first, then the latest payments."""
        assert 0 < amount <= self.outstanding
        due = [each for each in self.payments if each.open and each.due_at <= now]
        later = [each for each in self.payments if each.open and each.due_at > now]
        left = amount
        for payment in [*due, *reversed(later)]:
            part = min(left, payment.left)
            if part:
                self._pay(payment, part)
                left -= part
        self._finish(amount)

    def faults(self) -> list[str]:
        """What cannot be, whatever happened."""
        paid = sum(each.paid for each in self.payments)
        asked = sum(each.left for each in self.payments)
        found = []
        if paid + asked != self.principal:
            found.append(f"paid {paid} and asked for {asked} of {self.principal}")
        if asked != self.outstanding:
            found.append(f"asked for {asked}, {self.outstanding} outstanding")
        if (self.events[-1].type == "completed") != (self.outstanding == 0):
            found.append(f"{self.outstanding} outstanding after {self.events[-1].type}")
        return found

    def _roll_over(self, payment: Payment, left: int) -> None:
        payment.become("failed", REASON)
        self._note("failed", payment.number, left, REASON)
        later = [each for each in self.payments if each.open and each.number > payment.number]
        if later:
            later[0].amount += left
            later[0].rolled_over += left
            number = later[0].number
        else:
            number = len(self.payments) + 1
            self.payments.append(Payment(number, payment.due_at + self.interval, left, rolled_over=left))
        self._note("rolled_over", number, left)

    def _pay(self, payment: Payment, amount: int) -> None:
        payment.pay(amount)
        self.outstanding -= amount
        self._note("paid" if payment.status == "paid" else "part_paid", payment.number, amount)

    def _finish(self, amount: int) -> None:
        if self.outstanding == 0:
            self._note("completed", None, amount)

    def _note(self, kind: str, number: int | None, amount: int, reason: str | None = None) -> None:
        self.events.append(Event(kind, number, amount, self.outstanding, reason))
