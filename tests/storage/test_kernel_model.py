"""The kernel and the plain model of its rules give the same answer to the same commands, whatever the commands are.

LEDGERD_MODEL_EXAMPLES sets how many histories are tried.
"""

from __future__ import annotations

import itertools
import os
import uuid
from typing import Any

import msgspec
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from msgspec import Struct

from ledgerd_protocol.errors import ErrorCode
from ledgerd_protocol.money import MINOR_MAX
from tests.model import Account, Command, Ledger, Outcome, Posted, Refusal, Token, Unit, audit
from tests.storage.bench import Answer, Bench

EXAMPLES = int(os.environ.get("LEDGERD_MODEL_EXAMPLES", "400"))

ABSENT_TOKEN = 10**9

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
]
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
        self.tokens = [
            bench.token(
                *scopes,
                user=None if user is None else users[user],
                account=None if account is None else self.accounts[account],
            )
            for scopes, user, account in TOKENS
        ]
        self.model = Ledger(
            [
                Account(number, users[user], currency)
                for number, (user, currency) in zip(self.accounts, ACCOUNTS, strict=True)
            ],
            [
                Token(
                    number,
                    frozenset(scopes),
                    None if user is None else users[user],
                    None if account is None else self.accounts[account],
                )
                for number, (scopes, user, account) in zip(self.tokens, TOKENS, strict=True)
            ],
        )
        for position, how in ENDED_AT_FIRST.items():
            self.end(position, how)
        self.calls: list[list[Unit]] = []

    def id(self, space: int, number: int) -> str:
        return str(uuid.UUID(int=(self.number << 80) | (space << 64) | (number + 1)))

    def account(self, position: int | None) -> int | None:
        """The position one past the end is an account that does not exist."""
        return None if position is None else [*self.accounts, 0][position]

    def end(self, token: int, how: str) -> None:
        self.bench.end(self.tokens[token], by=how)
        self.model.tokens[self.tokens[token]].ended = True

    def command(self, draft: Draft) -> Command:
        return Command(
            kind=draft.kind,
            token_id=[*self.tokens, ABSENT_TOKEN][draft.token],
            transaction_id=self.id(1, draft.transaction),
            attempt_id=str(uuid.uuid4()),
            debit=self.account(draft.debit),
            credit=self.account(draft.credit),
            amount=draft.amount if isinstance(draft.amount, int) and not isinstance(draft.amount, ErrorCode) else None,
            problem=draft.amount if isinstance(draft.amount, ErrorCode) else None,
            currency=draft.currency,
            reference=draft.reference,
            reason=draft.reason,
            metadata=draft.metadata,
        )


# -- histories --------------------------------------------------------------------------------------------------------


class Draft(Struct, frozen=True):
    """A command whose accounts, token and id are positions in a world."""

    kind: str
    token: int
    transaction: int
    debit: int | None
    credit: int | None
    amount: int | ErrorCode | None
    currency: str | None
    reference: str | None
    reason: str | None
    metadata: str | None


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


_amounts = st.one_of(
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from(
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
    ),
)
_tokens = st.integers(0, len(TOKENS))
_existing = st.integers(0, len(ACCOUNTS) - 1)
_an_account = st.one_of(_existing, _existing, _existing, st.integers(0, len(ACCOUNTS)))
_rarely = st.sampled_from([None, None, None, None, None, None, "x"])
_token_of_owner = {0: 2, 1: 2, 2: 3, 3: 3, 4: 8}
"""Position of a token with scope `user` by the position of its account."""


def _fitting_tokens(kind: str, acting: int | None) -> st.SearchStrategy[int]:
    """Mostly tokens that may do it, sometimes any."""
    if kind == "limit":
        return st.sampled_from([1, 1, 1, 0])
    own = _token_of_owner.get(0 if acting is None else acting, 0)
    return st.one_of(st.sampled_from([0, 1]), st.just(0), st.just(own), _tokens)


@st.composite
def _drafts(draw: st.DrawFn) -> Draft:
    kind = draw(st.sampled_from(["credit", "credit", "credit", "debit", "transfer", "transfer", "limit", "cancel"]))
    debit = None if kind == "credit" else draw(_an_account)
    credit = draw(_an_account) if kind in ("credit", "transfer") else None
    return Draft(
        kind=kind,
        token=draw(_fitting_tokens(kind, credit if debit is None else debit)),
        transaction=draw(st.integers(0, 9)),
        debit=debit,
        credit=credit,
        amount=None if kind == "cancel" else draw(_amounts),
        currency=draw(st.sampled_from([None, None, None, None, None, "USD", "EUR"])),
        reference=draw(_rarely),
        reason=draw(_rarely),
        metadata=draw(st.sampled_from([None, None, None, '{"a":1}'])),
    )


_alterations = st.one_of(
    st.none(),
    st.none(),
    st.builds(Alteration, st.just("token"), _tokens),
    st.builds(Alteration, st.just("amount"), st.integers(1, 3)),
    st.builds(Alteration, st.just("debit"), _an_account),
    st.builds(Alteration, st.just("credit"), _an_account),
    st.builds(Alteration, st.sampled_from(["reference", "reason", "metadata"]), st.sampled_from([None, "z"])),
    st.builds(Alteration, st.just("kind"), st.just("cancel")),
)
_members = st.one_of(_drafts(), _drafts(), st.tuples(st.integers(1, 8), _alterations))
_units = st.one_of(
    st.tuples(st.none(), st.lists(_members, min_size=1, max_size=4)),
    st.tuples(st.integers(0, 3), st.lists(_members, min_size=1, max_size=3)),
)
_steps = st.one_of(
    st.builds(Call, st.lists(_units, min_size=1, max_size=4), st.just(False)),
    st.builds(Call, st.lists(_units, min_size=1, max_size=4), st.sampled_from([False, False, True])),
    st.builds(SendAgain, st.integers(0, 2), st.booleans(), st.booleans(), st.one_of(st.none(), st.none(), _drafts())),
    st.builds(OwnerActs, st.sampled_from(["freeze", "close", "reopen", "disable", "enable", "revoke"]), _existing),
)


def _altered(command: Command, alteration: Alteration | None, world: World) -> Command:
    changes: dict[str, Any] = {"attempt_id": str(uuid.uuid4())}
    if alteration is not None:
        member, value = alteration.member, alteration.value
        if member == "token":
            changes["token_id"] = [*world.tokens, ABSENT_TOKEN][value]
        elif member == "kind":
            changes |= {"kind": "cancel", "debit": command.acting, "credit": None, "amount": None, "problem": None}
        elif member in ("debit", "credit"):
            # A side that is the world stays the world: another kind of command would be no alteration of this one.
            changes |= {member: world.account(value)} if getattr(command, member) is not None else {}
        elif member == "amount":
            changes |= {} if command.kind == "cancel" else {"amount": value, "problem": None}
        else:
            changes[member] = value
    return msgspec.structs.replace(command, **changes)


def _units_of(call: Call, world: World) -> list[Unit]:
    sent = [command for units in world.calls for unit in units for command in unit.commands]
    made: list[Unit] = []
    for batch, members in call.units:
        commands: list[Command] = []
        for member in members:
            if isinstance(member, Draft):
                commands.append(world.command(member))
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
    return made


def _again(step: SendAgain, world: World) -> list[Unit]:
    if not world.calls:
        return []
    units = world.calls[-1 - step.back % len(world.calls)]
    if step.resent:
        return units
    again = []
    for unit in units:
        commands = [_altered(command, None, world) for command in unit.commands]
        if step.drop and len(commands) > 1:
            commands.pop()
        if step.extra is not None:
            commands.append(world.command(step.extra))
        # A command that stands alone is a unit of its own.
        again += [Unit(tuple(commands), unit.batch_id)] if unit.batch_id else [Unit((each,)) for each in commands]
    return again


def _owner_acts(step: OwnerActs, world: World) -> None:
    if step.act == "revoke":
        world.end(step.position, "revocation")
        return
    number = world.accounts[step.position]
    account = world.model.accounts[number]
    if step.act in ("disable", "enable"):
        account.owner_disabled = step.act == "disable"
    else:
        account.status = {"freeze": "frozen", "close": "closed", "reopen": "active"}[step.act]
    world.bench.execute(
        "UPDATE ledgerd.accounts SET owner_disabled = $2, status = $3 WHERE account_id = $1",
        number,
        account.owner_disabled,
        account.status,
    )


# -- the comparison ---------------------------------------------------------------------------------------------------


def _expected(outcome: Outcome | None) -> Answer:
    match outcome:
        case None:
            return Answer(None, None, None, None)
        case Posted(replayed=True):
            return Answer(1, None, None, None)
        case Posted(transaction):
            return Answer(0, None, transaction.debit, transaction.credit)
        case Refusal(code, data):
            return Answer(int(code), data, None, None)


def _play(step: Call | SendAgain | OwnerActs, world: World) -> None:
    if isinstance(step, OwnerActs):
        _owner_acts(step, world)
        return
    resent = isinstance(step, SendAgain) and step.resent
    units = _units_of(step, world) if isinstance(step, Call) else _again(step, world)
    if not units:
        return
    if not resent:
        world.calls.append(units)
    if isinstance(step, Call) and step.lost:
        world.bench.lose(units)
        return
    answers = world.bench.call(units, resent=resent)
    expected = [[_expected(outcome) for outcome in outcomes] for outcomes in world.model.post(units, resent=resent)]
    assert answers == expected
    for answer in itertools.chain.from_iterable(answers):
        event(f"code {answer.code}")


def _assert_same_books(world: World) -> None:
    bench, model = world.bench, world.model
    accounts = {number: account for number, account in bench.stored_accounts().items() if number in model.accounts}
    assert accounts == model.accounts
    transactions = {
        number: transaction
        for number, transaction in bench.stored_transactions().items()
        if not transaction.accounts.isdisjoint(model.accounts)
    }
    assert transactions == model.transactions
    expected = {}
    for number, attempt in model.attempts.items():
        command = attempt.command
        acting = model.accounts.get(command.acting)
        expected[number] = msgspec.structs.replace(
            attempt,
            command=msgspec.structs.replace(
                command, problem=None, metadata=None, currency=acting.currency if acting else command.currency
            ),
        )
    assert bench.stored_attempts() == expected
    assert audit(accounts, transactions.values()) == []


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(history=st.lists(_steps, min_size=3, max_size=14))
def test_the_kernel_and_the_model_agree_about_every_history(
    bench: Bench, history: list[Call | SendAgain | OwnerActs]
) -> None:
    bench.execute("TRUNCATE ledgerd.attempts, ledgerd.transactions")
    world = World(bench)
    for step in history:
        _play(step, world)
    _assert_same_books(world)
