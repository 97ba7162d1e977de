"""The rules in their order of judgement: what cannot change between two tries, and what can. Ids come between them."""

from __future__ import annotations

from collections.abc import Callable

from ledgerd_protocol.errors import ErrorCode
from ledgerd_protocol.money import MINOR_MAX
from tests.model.books import Books
from tests.model.nouns import ABSENT, AMOUNTLESS, PROFILE, REFERRING, REVERSIBLE, Command, Refusal, Token, Transaction

_SPENDS = frozenset({"user", "service", "operator"})
_SERVES = frozenset({"service", "operator"})
_RULES = frozenset({"operator"})
_SCOPES_OF = {
    "credit": frozenset({"topup", "service", "operator"}),
    **dict.fromkeys(("limit", "freeze", "unfreeze", "expiry"), _RULES),
    **dict.fromkeys(("capture", "reversal", "bet", "win", "rollback"), _SERVES),
    **dict.fromkeys(("debit", "transfer", "hold", "release", "cancel", "close"), _SPENDS),
}
_NO_DESTINATION = Refusal(ErrorCode.NOT_FOUND, {"resource": "destination"})
_NO_REFERENCE = Refusal(ErrorCode.REFERENCE_NOT_FOUND)


class Rules(Books):
    """Each rule answers why a command is refused, or None."""

    # -- what cannot change between two tries ---------------------------------------------------------------------

    def _what_cannot_change(self, command: Command, *, token_may_have_ended: bool) -> Refusal | None:
        token = self.tokens.get(command.token_id)
        if token is None:
            return Refusal(ErrorCode.UNAUTHENTICATED)
        if token.ended and not token_may_have_ended:
            return Refusal(ErrorCode.SESSION_EXPIRED)
        if not token.scopes & _SCOPES_OF[command.kind]:
            return Refusal(ErrorCode.PERMISSION_DENIED)
        # A reference that is not there may be there at the next try: that is judged after the id.
        if command.kind in REFERRING and self._usable_reference(command) is None:
            return None
        return self._bad_accounts(command, token) or _bad_amount(command)

    def _bad_accounts(self, command: Command, token: Token) -> Refusal | None:
        account = self.accounts.get(command.acting)
        if account is None or not self._acts_for(token, account):
            return Refusal(ErrorCode.NOT_FOUND, {"resource": "account"})
        if command.kind == "release" and not token.sees_all:
            placed_by = self.tokens[self.transactions[command.refers_to or ""].token_id]
            if placed_by.user_id != token.user_id:
                return Refusal(ErrorCode.PERMISSION_DENIED)
        other = None
        if command.kind in ("transfer", "hold") and command.credit is not None:
            other = self.accounts.get(command.credit)
            if other is None:
                return _NO_DESTINATION
        if account is other:
            return Refusal(ErrorCode.SAME_ACCOUNT)
        # Betting suppliers hear of an id they used before they hear of its currency.
        if command.kind not in PROFILE and command.currency not in (None, account.currency):
            return Refusal(ErrorCode.CURRENCY_MISMATCH)
        if other is not None and other.currency != account.currency:
            return Refusal(ErrorCode.CURRENCY_MISMATCH) if token.sees_all else _NO_DESTINATION
        return None

    # -- what can change between two tries ------------------------------------------------------------------------

    def _what_can_change(self, command: Command) -> Refusal | None:
        rules: dict[str, Callable[[Command], Refusal | None]] = {
            "cancel": lambda _: None,
            "limit": self._limit,
            "freeze": self._not_closed,
            "unfreeze": self._not_closed,
            "close": self._close,
            "hold": self._hold,
            "capture": self._capture,
            "release": self._release,
            "expiry": self._expiry,
            "reversal": self._reversal,
            "bet": self._bet,
            "win": self._win,
            "rollback": self._rollback,
        }
        return rules.get(command.kind, self._movement)(command)

    def _movement(self, command: Command) -> Refusal | None:
        return self._payer(command) or self._money(command, command.amount or 0)

    def _limit(self, command: Command) -> Refusal | None:
        account = self.accounts[command.acting]
        short = account.balance - account.held + (command.amount or 0) < 0
        return self._not_closed(command) or (Refusal(ErrorCode.LIMIT_EXCEEDED) if short else None)

    def _close(self, command: Command) -> Refusal | None:
        account = self.accounts[command.acting]
        return self._not_closed(command) or (
            Refusal(ErrorCode.ACCOUNT_NOT_EMPTY) if account.balance or account.held else None
        )

    def _hold(self, command: Command) -> Refusal | None:
        return self._payer(command) or self._receiver(command) or self._funds(command, command.amount or 0)

    def _capture(self, command: Command) -> Refusal | None:
        hold = self._usable_reference(command)
        if hold is None:
            return _NO_REFERENCE
        amount = hold.amount if command.amount is None else command.amount
        too_much = Refusal(ErrorCode.AMOUNT_OUT_OF_RANGE, {"remaining": hold.amount}) if amount > hold.amount else None
        return self._receiver(command) or self._ended(hold) or too_much or self._room(command, amount)

    def _release(self, command: Command) -> Refusal | None:
        hold = self._usable_reference(command)
        return _NO_REFERENCE if hold is None else self._ended(hold)

    def _expiry(self, command: Command) -> Refusal | None:
        hold = self._usable_reference(command)
        if hold is None:
            return _NO_REFERENCE
        due = hold.transaction_id in self.pending_holds and self.now >= hold.expires_at
        return None if due else Refusal(ErrorCode.HOLD_NOT_ACTIVE)

    def _reversal(self, command: Command) -> Refusal | None:
        original = self._usable_reference(command)
        if original is None:
            return _NO_REFERENCE
        debit = self.accounts.get(command.debit or ABSENT)
        if debit is not None and debit.status == "closed":
            return Refusal(ErrorCode.ACCOUNT_CLOSED)
        if refusal := self._receiver(command):
            return refusal
        if original.kind not in REVERSIBLE:
            return Refusal(ErrorCode.NOT_REVERSIBLE)
        remaining = self._remaining(original)
        amount = remaining if command.amount is None else command.amount
        if amount > remaining or not remaining:
            return Refusal(ErrorCode.ALREADY_REVERSED, {"remaining": remaining})
        return self._money(command, amount)

    def _bet(self, command: Command) -> Refusal | None:
        account = self.accounts[command.acting]
        for rollback in self.about(command.transaction_id, "rollback"):
            if self.accounts[rollback.credit_account or ABSENT].user_id == account.user_id:
                return Refusal(ErrorCode.TRANSACTION_ID_CANCELLED)
        return self._currency(command) or self._movement(command)

    def _win(self, command: Command) -> Refusal | None:
        if refusal := self._currency(command) or self._receiver(command):
            return refusal
        bet = self._reference(command)
        if bet is None or self._rolled_back(bet):
            return _NO_REFERENCE
        if self.about(bet.transaction_id, "win"):
            return Refusal(ErrorCode.ALREADY_REVERSED)
        return self._money(command, command.amount or 0)

    def _rollback(self, command: Command) -> Refusal | None:
        if refusal := self._receiver(command):
            return refusal
        bet = self._reference(command)
        if bet is not None and self.about(bet.transaction_id, "win"):
            return Refusal(ErrorCode.NOT_REVERSIBLE)
        return self._money(command, self._amount_of(command))

    # -- the parts of those rules ---------------------------------------------------------------------------------

    def _money(self, command: Command, amount: int) -> Refusal | None:
        room = self._room(command, amount)
        # Who may not see the far side has to have the money to learn that it is full.
        told = room if self._told_of_the_receiver(command) else None
        return self._receiver(command) or told or self._funds(command, amount) or room

    def _payer(self, command: Command) -> Refusal | None:
        debit = self.accounts.get(command.debit or ABSENT)
        if debit is None:
            return None
        if debit.owner_disabled:
            return Refusal(ErrorCode.USER_DISABLED)
        if debit.status != "active":
            return Refusal(ErrorCode.ACCOUNT_CLOSED if debit.status == "closed" else ErrorCode.ACCOUNT_FROZEN)
        return None

    def _receiver(self, command: Command) -> Refusal | None:
        credit = self.accounts.get(command.credit or ABSENT)
        if credit is None or credit.status != "closed":
            return None
        return Refusal(ErrorCode.ACCOUNT_CLOSED) if self._told_of_the_receiver(command) else _NO_DESTINATION

    def _told_of_the_receiver(self, command: Command) -> bool:
        return self.tokens[command.token_id].sees_all or command.debit is None

    def _room(self, command: Command, amount: int) -> Refusal | None:
        credit = self.accounts.get(command.credit or ABSENT)
        overflow = credit is not None and credit.balance + amount > MINOR_MAX
        return Refusal(ErrorCode.LIMIT_EXCEEDED) if overflow else None

    def _funds(self, command: Command, amount: int) -> Refusal | None:
        debit = self.accounts.get(command.debit or ABSENT)
        if debit is None or debit.available >= amount:
            return None
        data = {"available": debit.available, "requested": amount, "version": debit.version}
        return Refusal(ErrorCode.INSUFFICIENT_FUNDS, data)

    def _not_closed(self, command: Command) -> Refusal | None:
        closed = self.accounts[command.acting].status == "closed"
        return Refusal(ErrorCode.ACCOUNT_CLOSED) if closed else None

    def _currency(self, command: Command) -> Refusal | None:
        other = command.currency not in (None, self.accounts[command.acting].currency)
        return Refusal(ErrorCode.CURRENCY_MISMATCH) if other else None

    def _ended(self, hold: Transaction) -> Refusal | None:
        active = hold.transaction_id in self.pending_holds and self.now < hold.expires_at
        return None if active else Refusal(ErrorCode.HOLD_NOT_ACTIVE)


def _bad_amount(command: Command) -> Refusal | None:
    if command.kind in AMOUNTLESS:
        return None
    if command.amount is None:
        omitted = command.problem is None and command.kind in ("capture", "reversal")
        return None if omitted else Refusal(command.problem or ErrorCode.AMOUNT_OUT_OF_RANGE)
    smallest = 0 if command.kind == "limit" else 1
    return None if smallest <= command.amount <= MINOR_MAX else Refusal(ErrorCode.AMOUNT_OUT_OF_RANGE)
