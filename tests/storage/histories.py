"""Random histories of a little world: what is sent to the kernel and to the model, and what else happens meanwhile."""

from __future__ import annotations

import itertools
import uuid
from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import Struct

from ledgerd_protocol.errors import ErrorCode
from ledgerd_protocol.money import MINOR_MAX
from tests.model import (
    ABSENT,
    AMOUNTLESS,
    HOLD_ENDS,
    PROFILE,
    REVERSIBLE,
    Account,
    Command,
    Ledger,
    Token,
    Unit,
)
from tests.storage.bench import OPERATES, Bench

ABSENT_TOKEN = 10**9
DAEMON_TOKEN = 0

# -- a little world ---------------------------------------------------------------------------------------------------

CURRENCIES_OF_USERS = (("USD", "EUR"), ("USD", "EUR"), ("USD",))
ACCOUNTS = [(user, currency) for user, currencies in enumerate(CURRENCIES_OF_USERS) for currency in currencies]

TOKENS: list[tuple[tuple[str, ...], int | None, int | None]] = [
    (("service",), None, None),
    (("operator",), None, None),
    (("user",), 0, None),
    (("user", "topup"), 1, None),
    (("user",), 0, 0),
    (("service",), 1, 2),
    (("read",), 0, None),
    (("topup",), 0, None),
    (("user",), 2, None),
    (("user",), 0, None),
    (("service",), None, None),
    (("service",), 0, None),
    (("service", "operator"), 0, 0),
]
"""Scopes, the position of the user, the position of the account."""
SERVICE, OPERATOR = 0, 1
DAEMON = len(TOKENS)
ENDED_AT_FIRST = {9: "revocation", 10: "expiry"}
"""Positions of tokens that are over before anything happens."""


class World:
    """Fresh users, accounts and tokens in the kernel and in the model; numbers in a history are positions here."""

    _numbers = itertools.count(1)

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.number = next(self._numbers)
        users = [bench.user() for _ in CURRENCIES_OF_USERS]
        self.accounts = [bench.account(users[user], currency) for user, currency in ACCOUNTS]
        owners = [None if user is None else users[user] for _, user, _ in TOKENS]
        limits = [None if account is None else self.accounts[account] for _, _, account in TOKENS]
        scopes = [scopes for scopes, _, _ in TOKENS]
        self.tokens = [
            bench.token(*each, user=owner, account=limit)
            for each, owner, limit in zip(scopes, owners, limits, strict=True)
        ]
        tokens = [
            Token(number, frozenset(each), owner, limit)
            for number, each, owner, limit in zip(self.tokens, scopes, owners, limits, strict=True)
        ]
        self.model = Ledger(
            [
                Account(number, users[user], currency)
                for number, (user, currency) in zip(self.accounts, ACCOUNTS, strict=True)
            ],
            [*tokens, Token(DAEMON_TOKEN, frozenset({"operator"}))],
        )
        for position, how in ENDED_AT_FIRST.items():
            self.end(position, how)
        self.calls: list[list[Unit]] = []

    def id(self, space: int, number: int) -> str:
        return str(uuid.UUID(int=(self.number << 80) | (space << 64) | (number + 1)))

    def account(self, position: int | None) -> int | None:
        """The position one past the end is an account that does not exist."""
        return None if position is None else [*self.accounts, ABSENT][position]

    def token(self, position: int) -> int:
        """Past the end are the daemon's own token and one that does not exist."""
        return [*self.tokens, DAEMON_TOKEN, ABSENT_TOKEN][position]

    def end(self, token: int, how: str) -> None:
        self.bench.end(self.tokens[token], by=how)
        self.model.tokens[self.tokens[token]].ended = True

    def referred(self, draft: Draft, sent: list[Command]) -> Command | str:
        """The command that a draft means, or just an id."""
        assert draft.refers is not None
        how, number = draft.refers
        kinds = _FITTING.get(draft.kind) if how == "fitting" else None
        found = [command for command in sent if kinds is None or command.kind in kinds]
        return found[-1 - number % len(found)] if found and how != "number" else self.id(1, number)

    def command(self, draft: Draft, sent: list[Command]) -> Command:
        credit = self.account(draft.credit)
        refers_to = None
        if draft.refers is not None:
            referred = self.referred(draft, sent)
            refers_to = referred if isinstance(referred, str) else referred.transaction_id
            if draft.follows and isinstance(referred, Command) and draft.kind in ("win", "rollback"):
                credit = referred.acting
        problem = draft.amount if isinstance(draft.amount, ErrorCode) else None
        return Command(
            kind=draft.kind,
            token_id=self.token(draft.token),
            transaction_id=str(uuid.uuid4()) if draft.transaction is None else self.id(1, draft.transaction),
            attempt_id=str(uuid.uuid4()),
            debit=self.account(draft.debit),
            credit=credit,
            amount=None if problem else draft.amount,
            problem=problem,
            currency=draft.currency,
            reference=draft.reference,
            reason=draft.reason,
            metadata=draft.metadata,
            refers_to=refers_to,
            expires_in_s=draft.expires_in_s,
            late_problem=draft.late_problem,
        )


_FITTING = {
    **dict.fromkeys(HOLD_ENDS, frozenset({"hold"})),
    "reversal": REVERSIBLE,
    "win": frozenset({"bet"}),
    "rollback": frozenset({"bet"}),
}
"""What a kind is meant to refer to."""


# -- what can happen --------------------------------------------------------------------------------------------------


class Draft(Struct, frozen=True):
    """A command whose accounts, token and id are positions in a world.

    Without a number for its ``transaction`` it has an id of its own. ``refers`` is how to find what it refers to: by
    fitting kind or any, counted back, or by an id's number. ``follows``: a win or rollback names the account of its
    bet, whatever ``credit`` says.
    """

    kind: str
    token: int
    transaction: int | None
    debit: int | None
    credit: int | None
    amount: int | ErrorCode | None
    currency: str | None
    reference: str | None
    reason: str | None
    metadata: str | None
    refers: tuple[str, int] | None
    follows: bool
    expires_in_s: int | None
    late_problem: ErrorCode | None


class Alteration(Struct, frozen=True):
    """One member of a command that is sent again, changed."""

    member: str
    value: Any


class Call(Struct, frozen=True):
    """Units of drafts; a number in place of a draft repeats an earlier command, perhaps altered."""

    units: list[tuple[int | None, list[Draft | tuple[int, Alteration | None]]]]
    lost: bool


class SendAgain(Struct, frozen=True):
    """An earlier call, byte for byte as after a lost connection, or as new attempts, perhaps shrunk or extended."""

    back: int
    resent: bool
    drop: bool
    extra: Draft | None


class OwnerActs(Struct, frozen=True):
    """What other parts of the ledger do to an account or a token."""

    act: str
    position: int


class MoveClock(Struct, frozen=True):
    """The clock of transactions jumps, perhaps back."""

    seconds: int


Step = Call | SendAgain | OwnerActs | MoveClock

_small = st.integers(1, 20)
_odd_amounts = st.sampled_from(
    [
        100,
        MINOR_MAX,
        MINOR_MAX - 1,
        MINOR_MAX // 2,
        MINOR_MAX + 1,
        0,
        -1,
        ErrorCode.AMOUNT_PRECISION,
        ErrorCode.AMOUNT_OUT_OF_RANGE,
    ]
)
_amounts = st.one_of(_small, _small, _small, _odd_amounts)
_small_parts = st.one_of(st.none(), st.integers(1, 8))
_parts = st.one_of(_small_parts, _amounts)
_tokens = st.integers(0, len(TOKENS) + 1)
_existing = st.integers(0, len(ACCOUNTS) - 1)
_an_account = st.one_of(_existing, _existing, _existing, st.integers(0, len(ACCOUNTS)))
_rarely = st.sampled_from([None] * 6 + ["x"])
_token_of_owner = {0: 2, 1: 2, 2: 3, 3: 3, 4: 8}
"""Position of a token with scope `user` by the position of its account."""
_good_references = st.tuples(st.just("fitting"), st.integers(0, 2))
_references = st.one_of(
    _good_references,
    st.tuples(st.just("any"), st.integers(0, 5)),
    st.tuples(st.just("number"), st.integers(0, 9)),
)
_kinds = st.sampled_from(
    ["credit", "debit", "transfer", "transfer", "limit", "cancel", "freeze", "unfreeze", "close"]
    + ["hold"] * 6
    + ["capture", "capture", "capture", "release", "release", "expiry", "expiry"]
    + ["reversal"] * 4
    + ["bet"] * 5
    + ["win", "win", "win", "rollback", "rollback", "rollback"]
)


def _tokens_for(kind: str, acting: int | None) -> st.SearchStrategy[int]:
    """Tokens that may do it, if the account is theirs."""
    if kind in OPERATES:
        return st.just(DAEMON if kind == "expiry" else OPERATOR)
    own = _token_of_owner.get(0 if acting is None else acting, SERVICE)
    may_own = kind in ("debit", "transfer", "hold", "release", "cancel", "close")
    return st.sampled_from([SERVICE, SERVICE, OPERATOR, own if may_own else SERVICE])


@st.composite
def drafts(draw: st.DrawFn) -> Draft:
    """Three of four are such as nothing but the state of the ledger refuses; the others are anything."""
    wild = draw(st.integers(0, 3)) == 3
    kind = draw(_kinds)
    account = _an_account if wild else _existing
    debit = credit = None
    if kind in ("credit", "win", "rollback"):
        credit = draw(account)
    else:
        debit = draw(account)
    if kind == "transfer" or (kind == "hold" and draw(st.booleans())):
        credit = draw(account) if wild else draw(_others_of_currency(debit or 0))
    amount: int | ErrorCode | None = None
    if kind in ("capture", "reversal"):
        amount = draw(_parts if wild else _small_parts)
    elif kind not in AMOUNTLESS:
        amount = draw(_amounts if wild else _small)
    late = wild and (kind in PROFILE or (kind in ("credit", "debit", "transfer") and isinstance(amount, int)))
    return Draft(
        kind=kind,
        token=draw(_tokens if wild and draw(st.booleans()) else _tokens_for(kind, credit if debit is None else debit)),
        transaction=draw(st.integers(0, 9)) if wild else draw(st.none() | st.none() | st.integers(0, 9)),
        debit=debit,
        credit=credit,
        amount=amount,
        currency=draw(st.sampled_from([None, None, "USD", "EUR"])) if wild and kind != "rollback" else None,
        reference=draw(_rarely),
        reason=draw(_rarely),
        metadata=draw(st.sampled_from([None, None, None, '{"a":1}'])),
        refers=draw(_references if wild else _good_references) if kind in _FITTING else None,
        follows=not wild or draw(st.booleans()),
        expires_in_s=draw(st.sampled_from([60, 120, 3600])) if kind == "hold" else None,
        late_problem=draw(st.sampled_from([None, ErrorCode.INVALID_PARAMS, ErrorCode.AMOUNT_PRECISION]))
        if late
        else None,
    )


def _others_of_currency(position: int) -> st.SearchStrategy[int]:
    currency = ACCOUNTS[position][1]
    return st.sampled_from([i for i, (_, other) in enumerate(ACCOUNTS) if other == currency and i != position])


_alterations = st.one_of(
    st.none(),
    st.none(),
    st.none(),
    st.builds(Alteration, st.just("token"), _tokens),
    st.builds(Alteration, st.just("amount"), st.one_of(st.none(), st.integers(1, 3))),
    st.builds(Alteration, st.just("debit"), _an_account),
    st.builds(Alteration, st.just("credit"), _an_account),
    st.builds(Alteration, st.just("refers"), st.integers(0, 9)),
    st.builds(Alteration, st.just("expires_in_s"), st.sampled_from([60, 120])),
    st.builds(Alteration, st.just("currency"), st.sampled_from([None, "USD", "EUR"])),
    st.builds(Alteration, st.sampled_from(["reference", "reason", "metadata"]), st.sampled_from([None, "z"])),
    st.builds(Alteration, st.just("kind"), st.just("cancel")),
)
_members = st.one_of(drafts(), drafts(), drafts(), drafts(), st.tuples(st.integers(1, 8), _alterations))
_units = st.one_of(
    st.tuples(st.none(), st.lists(_members, min_size=1, max_size=4)),
    st.tuples(st.integers(0, 3), st.lists(_members, min_size=1, max_size=3)),
)
_calls = st.builds(Call, st.lists(_units, min_size=1, max_size=4), st.sampled_from([False] * 7 + [True]))
_steps = st.one_of(
    *[_calls] * 6,
    st.builds(SendAgain, st.integers(0, 2), st.booleans(), st.booleans(), st.one_of(st.none(), st.none(), drafts())),
    st.builds(OwnerActs, st.sampled_from(["disable", "enable", "revoke"]), _existing),
    st.builds(MoveClock, st.sampled_from([30, 59, 60, 61, 120, 3600, -100])),
    st.builds(MoveClock, st.sampled_from([60, 61])),
    st.builds(MoveClock, st.sampled_from([60, 120])),
)


def _plain(kind: str, position: int, amount: int) -> Draft:
    debit, credit = (None, position) if kind == "credit" else (position, None)
    expires = 60 if kind == "hold" else None
    return Draft(kind, SERVICE, None, debit, credit, amount, None, None, None, None, None, False, expires, None)


def _beginning(balance: int, *, busy: bool) -> list[Step]:
    """Money in every account, and perhaps something to refer to."""
    everywhere = range(len(ACCOUNTS))
    funds = Call([(None, [_plain("credit", position, balance) for position in everywhere])], False)
    more = [_plain(kind, position, 5) for position in everywhere for kind in ("hold", "bet")]
    return [funds, Call([(None, more)], False)] if busy else [funds]


histories = st.builds(
    lambda beginning, steps: [*beginning, *steps],
    st.one_of(
        st.just([]),
        st.builds(_beginning, st.sampled_from([20, 100, MINOR_MAX - 10]), busy=st.just(False)),
        st.builds(_beginning, st.sampled_from([20, 100]), busy=st.just(True)),
        st.builds(_beginning, st.sampled_from([20, 100]), busy=st.just(True)),
    ),
    st.lists(_steps, min_size=4, max_size=14),
)
"""Mostly with some money in every account to begin with."""


# -- what is sent -----------------------------------------------------------------------------------------------------


def _altered(command: Command, alteration: Alteration | None, world: World) -> Command:
    changes: dict[str, Any] = {"attempt_id": str(uuid.uuid4())}
    if alteration is not None:
        member, value = alteration.member, alteration.value
        if member == "token":
            changes["token_id"] = world.token(value)
        elif member == "kind":
            changes |= {"kind": "cancel", "debit": command.acting, "credit": None, "amount": None, "problem": None}
            changes |= {"refers_to": None, "expires_in_s": None, "late_problem": None}
        elif member in ("debit", "credit"):
            # A side that is the world stays the world: another kind of command would be no alteration of this one.
            changes |= {member: world.account(value)} if getattr(command, member) is not None else {}
        elif member == "amount":
            may = command.kind not in AMOUNTLESS and (value or command.kind in ("capture", "reversal"))
            changes |= {"amount": value, "problem": None} if may else {}
        elif member == "refers":
            changes |= {"refers_to": world.id(1, value)} if command.kind in _FITTING else {}
        elif member == "expires_in_s":
            changes |= {member: value} if command.kind == "hold" else {}
        elif member == "currency":
            changes |= {member: value} if command.kind != "rollback" else {}
        else:
            changes[member] = value
    return msgspec.structs.replace(command, **changes)


def units_of(call: Call, world: World) -> list[Unit]:
    sent = [command for units in world.calls for unit in units for command in unit.commands]
    made: list[Unit] = []
    for batch, members in call.units:
        commands: list[Command] = []
        for member in members:
            if isinstance(member, Draft):
                commands.append(world.command(member, sent))
            elif sent:
                back, alteration = member
                commands.append(_altered(sent[-1 - back % len(sent)], alteration, world))
            else:
                continue
            sent.append(commands[-1])
        if batch is None:
            made += [Unit((command,)) for command in commands]
        elif commands:
            made.append(Unit(tuple(commands), world.id(2, batch)))
    return _clear(made, world)


def _clear(units: list[Unit], world: World) -> list[Unit]:
    """The units without what the kernel does not promise: which accounts a reference within a call may lead to, it has
    to know before it locks. So it takes the first command of that id for the one that is meant, posted or not.
    """
    before: dict[str, list[Command]] = {}
    cleared = []
    for unit in units:
        commands = []
        for command in unit.commands:
            meant = before.get(command.refers_to or "", [])
            if command.refers_to in world.model.transactions:
                meant = []
            if len({(each.kind, each.debit, each.credit, each.refers_to) for each in meant}) > 1:
                continue
            if meant and meant[0].kind == "bet" and command.kind in ("win", "rollback"):
                command = msgspec.structs.replace(command, credit=meant[0].debit)
            before.setdefault(command.transaction_id, []).append(command)
            commands.append(command)
        if commands:
            cleared.append(Unit(tuple(commands), unit.batch_id))
    return cleared


def units_again(step: SendAgain, world: World) -> list[Unit]:
    if not world.calls:
        return []
    units = world.calls[-1 - step.back % len(world.calls)]
    if step.resent:
        return units
    sent = [command for unit in units for command in unit.commands]
    more = []
    for unit in units:
        commands = [_altered(command, None, world) for command in unit.commands]
        if step.drop and len(commands) > 1:
            commands.pop()
        if step.extra is not None:
            commands.append(world.command(step.extra, sent))
        # A command that stands alone is a unit of its own.
        more += [Unit(tuple(commands), unit.batch_id)] if unit.batch_id else [Unit((each,)) for each in commands]
    return _clear(more, world)


def owner_acts(step: OwnerActs, world: World) -> None:
    if step.act == "revoke":
        world.end(step.position, "revocation")
        return
    number = world.accounts[step.position]
    account = world.model.accounts[number]
    account.owner_disabled = step.act == "disable"
    world.bench.execute(
        "UPDATE ledgerd.accounts SET owner_disabled = $2 WHERE account_id = $1", number, account.owner_disabled
    )
