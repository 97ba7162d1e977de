"""What cannot be, said of accounts, transactions and pending holds without knowing a single command."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from tests.model.nouns import (
    ABSENT,
    HOLD_ENDS,
    REVERSIBLE,
    STILL,
    Account,
    After,
    Hold,
    Transaction,
)

_STATUS_AFTER = {"freeze": "frozen", "unfreeze": "active", "close": "closed"}
_AMOUNTLESS = frozenset({"freeze", "unfreeze", "close", "cancel"})
_MAY_BE_ZERO = _AMOUNTLESS | {"limit", "rollback"}


def audit(
    accounts: Mapping[int, Account], transactions: Iterable[Transaction], holds: Mapping[str, Hold] | None = None
) -> list[str]:
    """Every sentence is something that cannot be; an empty list is a clean ledger.

    ``transactions`` must be all that ever touched the accounts, and nothing else may have set the accounts' status.
    ``holds`` are those that are pending, None if nobody looked.
    """
    problems: list[str] = []
    known: dict[str, Transaction] = {}
    for transaction in transactions:
        if transaction.transaction_id in known:
            problems.append(f"transaction {transaction.transaction_id} is stored twice")
        known[transaction.transaction_id] = transaction
    for transaction in known.values():
        problems += [f"{transaction.kind} {transaction.transaction_id} {what}" for what in _faults(transaction, known)]
    problems += _faults_of_ends(known)
    pending = _pending(known)
    if holds is not None:
        problems += [f"hold {hold_id} is pending on one side only" for hold_id in holds.keys() ^ pending.keys()]
        problems += [
            f"hold {hold_id} is kept as {holds[hold_id]}, not as {pending[hold_id]}"
            for hold_id in holds.keys() & pending.keys()
            if holds[hold_id] != pending[hold_id]
        ]

    steps: dict[int, list[tuple[After, Transaction, int, int]]] = defaultdict(list)
    world: dict[str, int] = defaultdict(int)
    for transaction in known.values():
        moved = 0 if transaction.kind in STILL else transaction.amount
        for account_id, after, change, held_change in (
            (transaction.debit_account, transaction.debit, -moved, transaction.held_change),
            (transaction.credit_account, transaction.credit, moved, 0),
        ):
            if account_id is None:
                world[transaction.currency] += change
            elif after is not None:
                steps[account_id].append((after, transaction, change, held_change))
    for account in accounts.values():
        held = sum(known[hold_id].amount for hold_id, hold in pending.items() if hold.account == account.account_id)
        problems += _faults_of_account(account, steps[account.account_id], held)
        world[account.currency] += account.balance
    problems += [f"{total} minor units of {currency} came from nowhere" for currency, total in world.items() if total]
    return problems


def _pending(known: Mapping[str, Transaction]) -> dict[str, Hold]:
    ended = {each.refers_to for each in known.values() if each.kind in HOLD_ENDS}
    return {
        each.transaction_id: Hold(each.debit_account or ABSENT, each.expires_at)
        for each in known.values()
        if each.kind == "hold" and each.transaction_id not in ended
    }


# -- one transaction and what it refers to ----------------------------------------------------------------------------


def _faults(this: Transaction, known: Mapping[str, Transaction]) -> Iterator[str]:
    takes = {"debit"} if this.kind in STILL else {"debit", "credit"}
    if this.kind == "cancel":
        takes = set()
    for side, account, after in (
        ("debit", this.debit_account, this.debit),
        ("credit", this.credit_account, this.credit),
    ):
        if (after is not None) != (side in takes and account is not None):
            yield f"took {'a' if after else 'no'} version of account {account}"
    if this.status != {"hold": "pending", "cancel": "cancelled"}.get(this.kind, "posted"):
        yield f"was posted as {this.status}"
    if this.amount < 0 or (this.amount and this.kind in _AMOUNTLESS) or not (this.amount or this.kind in _MAY_BE_ZERO):
        yield f"has the amount {this.amount}"
    if this.kind == "hold":
        if this.held_change != this.amount:
            yield f"holds {this.held_change} of {this.amount}"
        if this.expires_in_s is None:
            yield "never expires"
    elif this.kind not in HOLD_ENDS and this.held_change:
        yield f"changes what is held by {this.held_change}"

    reference = known.get(this.refers_to or "")
    if this.kind in HOLD_ENDS:
        yield from _faults_of_end(this, reference)
    elif this.kind == "reversal":
        if reference is None or reference.kind not in REVERSIBLE:
            yield "gives back what cannot be given back"
        elif (this.debit_account, this.credit_account) != (reference.credit_account, reference.debit_account):
            yield "does not go the way back"
    elif this.kind == "win":
        if reference is None or reference.kind != "bet" or reference.debit_account != this.credit_account:
            yield "is of no bet of its account"
    elif this.kind == "rollback":
        is_its_bet = reference is not None and reference.kind == "bet" and this.credit_account in reference.accounts
        if this.amount and not (is_its_bet and reference is not None and reference.amount == this.amount):
            yield "gives back what no bet of its account took"
    elif this.kind == "advance_payment":
        if reference is None or reference.kind != "advance" or reference.credit_account != this.debit_account:
            yield "pays back no advance of its account"
    elif this.refers_to is not None:
        yield "refers to something"


def _faults_of_end(this: Transaction, hold: Transaction | None) -> Iterator[str]:
    if hold is None or hold.kind != "hold":
        yield "ends no hold"
        return
    if (this.debit_account, this.credit_account) != (hold.debit_account, hold.credit_account):
        yield "names other accounts than its hold"
    if this.held_change != -hold.amount:
        yield f"lets {-this.held_change} of {hold.amount} go"
    if this.amount > hold.amount or (this.kind != "capture" and this.amount != hold.amount):
        yield f"takes {this.amount} of {hold.amount}"
    if (this.created_at >= hold.expires_at) != (this.kind == "expiry"):
        yield "came at the wrong time"


def _faults_of_ends(known: Mapping[str, Transaction]) -> Iterator[str]:
    """What several transactions together cannot do to one."""
    about: dict[str, list[Transaction]] = defaultdict(list)
    for each in known.values():
        if each.refers_to is not None:
            about[each.refers_to].append(each)
    for transaction_id, those in about.items():
        ends = [each for each in those if each.kind in HOLD_ENDS]
        if len(ends) > 1:
            yield f"hold {transaction_id} ended {len(ends)} times"
        wins = [each for each in those if each.kind == "win"]
        if len(wins) > 1:
            yield f"bet {transaction_id} was won {len(wins)} times"
        returns = [each for each in those if each.kind == "rollback" and each.amount]
        if len(returns) + bool(wins) > 1:
            yield f"bet {transaction_id} was won {len(wins)} and rolled back {len(returns)} times"
        returned = sum(each.amount for each in those if each.kind in ("reversal", "advance_payment"))
        original = known.get(transaction_id)
        if original is not None and returned > original.amount:
            yield f"{returned} of {original.amount} were given back of {transaction_id}"
        if original is not None and original.kind == "bet":
            stones = [each for each in those if each.kind == "rollback" and not each.amount and not returns]
            if any(stone.credit_account == original.debit_account for stone in stones):
                yield f"bet {transaction_id} was posted although it had been rolled back"


# -- one account ------------------------------------------------------------------------------------------------------


def _faults_of_account(
    account: Account, steps: list[tuple[After, Transaction, int, int]], pending: int
) -> Iterator[str]:
    name = f"account {account.account_id}"
    steps.sort(key=lambda step: step[0].version)
    versions = [after.version for after, _, _, _ in steps]
    if versions != list(range(1, account.version + 1)):
        yield f"{name} is at version {account.version} with versions {versions}"
    balance = held = limit = then = 0
    status = "active"
    for after, transaction, change, held_change in steps:
        at = f"{name} version {after.version}"
        if status == "closed":
            yield f"{at} came after the account was closed"
        balance += change
        held += held_change
        limit = transaction.amount if transaction.kind == "limit" else limit
        status = _STATUS_AFTER.get(transaction.kind, status)
        if (after.balance, after.held) != (balance, held):
            yield f"{at} has balance {after.balance} and held {after.held}, not {balance} and {held}"
        if after.available != balance - held + limit:
            yield f"{at} has {after.available} available, not {balance - held + limit}"
        if after.available < 0 or held < 0:
            yield f"{at} is overdrawn: {after.available} available, {held} held"
        if status == "closed" and (balance or held):
            yield f"{at} was closed with balance {balance} and held {held}"
        if transaction.created_at < then:
            yield f"{at} is older than the version before it"
        then = transaction.created_at
    if (account.balance, account.held) != (balance, held):
        yield f"{name} has balance {account.balance} and held {account.held}, its transactions give {balance}, {held}"
    if account.held != pending:
        yield f"{name} holds {account.held}, its pending holds are {pending}"
    if account.overdraft_limit != limit:
        yield f"{name} has the limit {account.overdraft_limit}, its transactions give {limit}"
    if account.status != status:
        yield f"{name} is {account.status}, its transactions say {status}"
    if account.available < 0:
        yield f"{name} is overdrawn: {account.available} available"
