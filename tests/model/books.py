"""Accounts, tokens and transactions as they are, and the questions that the rules ask of them."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from tests.model.nouns import (
    ABSENT,
    HOLD_ENDS,
    REFERRING,
    Account,
    Command,
    Hold,
    Token,
    Transaction,
)


class Books:
    """What is known. ``now`` is the time of the call that is being judged."""

    def __init__(self, accounts: Iterable[Account], tokens: Iterable[Token]) -> None:
        self.accounts = {account.account_id: account for account in accounts}
        self.tokens = {token.token_id: token for token in tokens}
        self.transactions: dict[str, Transaction] = {}
        self.now = 0

    # -- what became of a transaction -----------------------------------------------------------------------------

    def about(self, transaction_id: str | None, *kinds: str) -> list[Transaction]:
        """The transactions of these kinds that refer to this one."""
        return [each for each in self.transactions.values() if each.refers_to == transaction_id and each.kind in kinds]

    def present_status(self, transaction_id: str) -> str:
        """As posted, or for a hold how it ended."""
        for end in self.about(transaction_id, *HOLD_ENDS):
            return {"capture": "captured", "release": "released", "expiry": "expired"}[end.kind]
        return self.transactions[transaction_id].status

    def reversed_amount(self, transaction_id: str) -> int:
        """How much of a transaction has been given back."""
        return sum(reversal.amount for reversal in self.about(transaction_id, "reversal"))

    @property
    def pending_holds(self) -> dict[str, Hold]:
        """The holds that have not ended, expired ones included until their expiry is posted."""
        return {
            each.transaction_id: Hold(each.debit_account or ABSENT, each.expires_at)
            for each in self.transactions.values()
            if each.kind == "hold" and not self.about(each.transaction_id, *HOLD_ENDS)
        }

    def _remaining(self, original: Transaction) -> int:
        return original.amount - self.reversed_amount(original.transaction_id)

    def _rolled_back(self, bet: Transaction) -> bool:
        return any(each.credit_account == bet.debit_account for each in self.about(bet.transaction_id, "rollback"))

    # -- what a command is about ----------------------------------------------------------------------------------

    def _with_its_sides(self, command: Command) -> Command:
        """The command with the accounts of what it refers to, where those count."""
        reference = self._reference(command)
        debit, credit = command.debit, command.credit
        if command.kind in REFERRING:
            debit, credit = ABSENT, None
            if reference is not None:
                debit, credit = reference.debit_account, reference.credit_account
            if reference is not None and command.kind == "reversal":
                debit, credit = credit, debit
        elif command.kind in ("win", "rollback") and reference is not None:
            credit = reference.debit_account
        return msgspec.structs.replace(command, debit=debit, credit=credit)

    def _reference(self, command: Command) -> Transaction | None:
        """What the command refers to, if it is of the kind that it must be, and of the same owner for bets."""
        reference = self.transactions.get(command.refers_to or "")
        if reference is None:
            return None
        if command.kind in HOLD_ENDS:
            return reference if reference.kind == "hold" else None
        if command.kind in ("win", "rollback"):
            named = self.accounts.get(command.credit or ABSENT)
            if reference.kind != "bet" or named is None:
                return None
            return reference if self.accounts[reference.debit_account or ABSENT].user_id == named.user_id else None
        return reference

    def _usable_reference(self, command: Command) -> Transaction | None:
        """What a `REFERRING` command refers to, unless its token may not act for the account that the money leaves."""
        account = self.accounts.get(command.acting)
        if account is None or not self._acts_for(self.tokens[command.token_id], account):
            return None
        return self._reference(command)

    def _amount_of(self, command: Command) -> int:
        """What moves, or is held, or is no longer held."""
        reference = self._reference(command)
        if command.kind == "rollback":
            return 0 if reference is None or self._rolled_back(reference) else reference.amount
        if command.amount is not None:
            return command.amount
        if reference is None:
            return 0
        return self._remaining(reference) if command.kind == "reversal" else reference.amount

    # -- whose it is ----------------------------------------------------------------------------------------------

    def _acts_for(self, token: Token, account: Account) -> bool:
        return (token.sees_all or account.user_id == token.user_id) and token.account_id in (None, account.account_id)

    def _sees(self, token: Token, transaction: Transaction) -> bool:
        if token.sees_all:
            return True
        if token.account_id is not None and token.account_id not in transaction.accounts:
            return False
        return any(self.accounts[account].user_id == token.user_id for account in transaction.accounts)
