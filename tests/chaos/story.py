"""Small histories made by hand: a story is told rightly, and a test then changes one thing."""

from __future__ import annotations

from typing import Any

from ledgerd_loadtest.chaos.history import (
    History,
    LedgerAccount,
    LedgerTransaction,
    Operation,
    Told,
)
from ledgerd_loadtest.chaos.verdict import verdict
from ledgerd_protocol.money import to_text


class Story:
    """Two accounts of the bank, 7 and 8, and what is done to them, one second after the other."""

    def __init__(self) -> None:
        self.history = History(
            accounts={number: LedgerAccount(account_id=number, group="bank") for number in (7, 8)},
            told=[Told(subscriber="Ann", account_id=number, changes=[], arrived_s=[]) for number in (7, 8)],
        )
        self.now_s = 0.0

    def call(
        self, method: str, params: dict[str, Any], result: Any = None, *, workload: str = "bank", **more: Any
    ) -> Operation:
        """A call that takes a second, and is answered unless it has another outcome."""
        answered = more.get("outcome", "ok") != "unknown"
        operation = Operation(
            number=len(self.history.operations),
            workload=workload,
            line=more.pop("line", "line"),
            daemon=0,
            method=method,
            params=params,
            invoked_s=self.now_s,
            answered_s=self.now_s + 0.5 if answered else None,
            outcome=more.pop("outcome", "ok"),
            result=result,
            **more,
        )
        self.now_s += 1
        self.history.operations.append(operation)
        return operation

    def credit(self, name: str, account: int, amount: int, **more: Any) -> Operation:
        """Money from outside."""
        params = {"transaction_id": name, "account_id": account, "amount": to_text(amount, 2)}
        return self.call("credit", params, self.posted(name, "credit", None, account, amount), **more)

    def debit(self, name: str, account: int, amount: int, **more: Any) -> Operation:
        """Money to the outside."""
        params = {"transaction_id": name, "account_id": account, "amount": to_text(amount, 2)}
        return self.call("debit", params, self.posted(name, "debit", account, None, amount), **more)

    def transfer(self, name: str, source: int, destination: int, amount: int, **more: Any) -> Operation:
        """Money from one to the other."""
        params = self.transfer_params(name, source, destination, amount)
        return self.call("transfer", params, self.posted(name, "transfer", source, destination, amount), **more)

    def transfer_params(self, name: str, source: int, destination: int, amount: int) -> dict[str, Any]:
        """What a transfer says."""
        return {
            "transaction_id": name,
            "source_account_id": source,
            "destination_account_id": destination,
            "amount": to_text(amount, 2),
        }

    def posted(
        self, name: str, kind: str, debit: int | None, credit: int | None, amount: int, held: int = 0, **more: Any
    ) -> dict[str, Any]:
        """Do it to the ledger; the transaction as it is shown."""
        entries = []
        moved = 0 if kind == "hold" else amount
        for account, change, held_change in ((debit, -moved, held), (credit, moved, 0)):
            if account is None or (kind in ("hold", "expiry") and account == credit):
                continue
            state = self.history.accounts[account]
            state.version, state.balance = state.version + 1, state.balance + change
            state.held += held_change
            texts = [to_text(x, 2) for x in (change, held_change, state.balance, state.held)]
            entry = dict(zip(("balance_change", "held_change", "balance", "held"), texts, strict=True))
            entry |= {"available": to_text(state.balance - state.held, 2)}
            entries.append({"account_id": account, "direction": "", "version": state.version, **entry})
            told = next(told for told in self.history.told if told.account_id == account)
            told.changes.append((state.version, name, state.balance))
            told.arrived_s.append(self.now_s + 0.6)
        transaction = {
            "transaction_id": name,
            "kind": kind,
            "amount": to_text(amount, 2),
            "debit_account_id": debit,
            "credit_account_id": credit,
            "entries": entries,
            "created_at": f"2026-03-07T12:00:{int(self.now_s):02}.000000Z",
            **more,
        }
        self.history.transactions[name] = LedgerTransaction(transaction=transaction, in_lists=len(entries))
        return transaction

    def count(self) -> Operation:
        """Read both accounts at once."""
        return self.call("account_list", {"limit": 2}, [self.state(7), self.state(8)])

    def look(self, account: int) -> Operation:
        """Read one account."""
        return self.call("balance_get", {"account_id": account}, [self.state(account)])

    def state(self, account: int) -> list[int]:
        """An account as a read shows it."""
        state = self.history.accounts[account]
        return [account, state.version, state.balance, state.balance - state.held]

    def red(self) -> set[str]:
        """The checks that find something."""
        return {name for name, problems in verdict(self.history).items() if problems}


def a_day() -> Story:
    """Both accounts are funded, money goes there and back, and everybody looks on."""
    story = Story()
    story.credit("fund 7", 7, 1_000)
    story.credit("fund 8", 8, 1_000)
    story.transfer("there", 7, 8, 250)
    story.count()
    story.transfer("back", 8, 7, 100)
    story.count()
    story.look(7)
    return story
