"""What the ledger may not be, whatever was broken: in itself, and beside what was said of it. Pure.

Every check answers sentences; none is the only good answer. They look at the ledger's own lists as they are in the end,
and at what the callers were told; none knows what faults there were.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from ledgerd_loadtest.audit import minor
from ledgerd_loadtest.chaos.history import LedgerAccount, LedgerAdvance, LedgerTransaction
from ledgerd_loadtest.chaos.sendings import DAEMONS_OWN, Books, Meaning, Posting, Sending
from ledgerd_protocol.call import PASSING

SETTLE = "settle"
"""The workload that asks again about everything unknown, when nothing of it can be under way any more."""

PASSING_ERRORS = frozenset(code.text for code in PASSING)
_ENDS = frozenset({"capture", "release", "expiry"})


# -- the ledger in itself ----------------------------------------------------------------------------------------------


def accounts_add_up(accounts: Mapping[int, LedgerAccount], books: Books) -> Iterator[str]:
    """Each account's versions are 1, 2, 3, ..., each follows from the one before, and nothing was ever overdrawn."""
    for number, account in accounts.items():
        sides = [side for posting in books.by_account.get(number, []) if (side := posting.side(number)) is not None]
        versions = [side.version for side in sides]
        if versions != list(range(1, account.version + 1)):
            yield f"account {number} is at version {account.version}, and its list is not each version once"
            continue
        balance = held = 0
        for side in sides:
            balance, held = balance + side.balance_change, held + side.held_change
            if (side.balance, side.held) != (balance, held):
                yield f"account {number} does not add up at version {side.version}"
                balance, held = side.balance, side.held
            if side.available < 0 or side.available != side.balance - side.held + account.overdraft_limit:
                yield f"account {number} has {side.available} available at version {side.version}"
        if (account.balance, account.held) != (balance, held):
            yield f"account {number} has {account.balance}, its transactions give {balance}"


def transactions_balance(books: Books, shown: Mapping[str, LedgerTransaction]) -> Iterator[str]:
    """Money goes from somewhere to somewhere, and each transaction is in the list of each of its accounts, once."""
    for name, posting in books.postings.items():
        if shown[name].in_lists != len(posting.sides):
            yield f"{name} has {len(posting.sides)} sides, and is in lists {shown[name].in_lists} times"
        if len(posting.sides) == 2 and sum(side.balance_change for side in posting.sides) != 0:
            yield f"{name} makes or loses money"


def holds_end_once(books: Books) -> Iterator[str]:
    """A hold is taken, freed or expired, by one of the three."""
    ends = Counter(posting.about for posting in books.postings.values() if posting.kind in _ENDS)
    for name, posting in books.postings.items():
        if posting.kind == "hold" and ends[name] != 1:
            yield f"hold {name} has ended {ends[name]} times, and its time is over"


def advances_are_paid(advances: list[LedgerAdvance], books: Books) -> Iterator[str]:
    """What was collected of an advance is what its payments say, and no payment was collected twice."""
    paid: defaultdict[str | None, int] = defaultdict(int)
    for posting in books.postings.values():
        if posting.kind == "advance_payment":
            paid[posting.about] += posting.amount
    for shown in advances:
        advance = shown.advance
        name, principal = advance["advance_id"], minor(advance["principal"])
        told = sum(minor(payment["paid"]) for payment in advance["payments"])
        if not paid[name] == told == principal - minor(advance["outstanding"]):
            yield f"advance {name}: {paid[name]} was taken, its payments say {told}, {advance['outstanding']} is left"


# -- what was said of it -----------------------------------------------------------------------------------------------


def matches(meaning: Meaning, posting: Posting) -> bool:
    """Whether a transaction is what a command asked for."""
    asked = (meaning.debit, meaning.credit)
    accounts = asked == (posting.debit, posting.credit) or meaning.kind in {*_ENDS, "advance_payment"}
    amount = meaning.amount is None or meaning.amount == posting.amount
    return meaning.kind == posting.kind and accounts and amount and meaning.about == posting.about


def acknowledged_is_there(sent: list[Sending], books: Books) -> Iterator[str]:
    """What was acknowledged is in the ledger, as it was acknowledged, and was new to one caller at most."""
    fresh: Counter[str] = Counter()
    for sending in sent:
        name, posting = sending.transaction_id, sending.posting
        if posting is None:
            continue
        if posting.transaction_id != name:
            yield f"{name} was answered with {posting.transaction_id}"
            continue
        fresh[name] += not sending.replayed
        if posting.kind == "cancel":
            if name in books.postings:
                yield f"{name} was cancelled for good and is there"
        elif name not in books.postings:
            yield f"{name} was acknowledged and is not there"
        elif books.postings[name] != posting:
            yield f"{name} was acknowledged, and is there otherwise: {posting} {books.postings[name]}"
        elif not matches(sending.meaning, posting):
            yield f"{name} was answered with another command's outcome"
    yield from (f"{name} was new to {count} callers" for name, count in fresh.items() if count > 1)


def refused_is_not_there(sent: list[Sending], books: Books) -> Iterator[str]:
    """A command that was refused by every answer changed nothing; nothing is there that nobody sent."""
    by_id: defaultdict[str, list[Sending]] = defaultdict(list)
    for sending in sent:
        by_id[sending.transaction_id].append(sending)
    for name, posting in books.postings.items():
        asked = [sending for sending in by_id[name] if matches(sending.meaning, posting)]
        if not asked:
            if posting.kind not in DAEMONS_OWN or by_id[name]:
                yield f"{posting.kind} {name} is there, and nobody sent it"
        elif all(sending.outcome == "refused" for sending in asked):
            yield f"{name} was refused ({asked[0].error}) and is there"


def refusals_are_true(sent: list[Sending], books: Books) -> Iterator[str]:
    """What a refusal says of the ledger was so: too little money at that version, an id that another command has."""
    cancelled = {each.transaction_id for each in sent if each.posting is not None and each.posting.kind == "cancel"}
    ended = {posting.about for posting in books.postings.values() if posting.kind in _ENDS}
    for sending in sent:
        name, posting = sending.transaction_id, books.postings.get(sending.transaction_id)
        match sending.error:
            case "insufficient_funds":
                yield from _too_little(sending, books)
            case "transaction_id_reused":
                if posting is None or matches(sending.meaning, posting):
                    yield f"{name} was refused as another command's id, and no other has it"
            case "transaction_id_cancelled":
                if posting is not None or name not in cancelled:
                    yield f"{name} was refused as cancelled, and is not"
            case "already_posted":
                if posting is None:
                    yield f"{name} was said to be posted already, and is not there"
            case "hold_not_active":
                if sending.meaning.about not in ended:
                    yield f"{name} was refused because its hold had ended, and it had not"


def _too_little(sending: Sending, books: Books) -> Iterator[str]:
    data, account = sending.data or {}, sending.meaning.debit
    if account is None or "version" not in data:
        return  # who pays follows from what the command is about
    available, requested, version = minor(data["available"]), minor(data["requested"]), data["version"]
    posting = books.at(account, version)
    side = None if posting is None else posting.side(account)
    then = 0 if side is None else side.available
    if requested <= available or available != then or (side is None and version != 0):
        yield (
            f"{sending.transaction_id} of {requested} was refused for {available} on account {account} at version "
            f"{version}, where {then} was available"
        )


def done_once(sent: list[Sending]) -> Iterator[str]:
    """Whoever asks again after an acknowledgement gets the stored outcome, marked as that, and no refusal."""
    known_at: dict[str, tuple[float, Meaning]] = {}
    for sending in sent:
        at = sending.operation.answered_s
        if sending.posting is not None and at is not None:
            first = known_at.get(sending.transaction_id)
            if first is None or at < first[0]:
                known_at[sending.transaction_id] = (at, sending.meaning)
    for sending in sent:
        first_at, meaning = known_at.get(sending.transaction_id, (None, None))
        if first_at is None or sending.operation.invoked_s <= first_at or sending.meaning != meaning:
            continue
        if sending.outcome == "ok" and not sending.replayed:
            yield f"{sending.transaction_id} was acknowledged, and then done again"
        elif sending.outcome == "refused" and sending.error not in PASSING_ERRORS:
            yield f"{sending.transaction_id} was acknowledged, and then refused ({sending.error})"


def unknown_is_resolved(sent: list[Sending]) -> Iterator[str]:
    """Of every command it is known in the end whether it was done."""
    resolved = {
        sending.transaction_id
        for sending in sent
        if sending.outcome == "ok"
        or (
            sending.outcome == "refused"
            and sending.operation.workload == SETTLE
            and sending.error not in PASSING_ERRORS
        )
    }
    doubtful = {sending.transaction_id for sending in sent if sending.outcome == "unknown"}
    yield from (f"nobody knows what became of {name}" for name in sorted(doubtful - resolved))
