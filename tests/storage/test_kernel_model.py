"""The kernel and the plain model of its rules give the same answer to the same commands, whatever the commands are.

LEDGERD_MODEL_EXAMPLES sets how many histories are tried.
"""

from __future__ import annotations

import itertools
import os

import msgspec
from hypothesis import HealthCheck, event, given, settings

from tests.model import REFERRING, REVERSIBLE, Attempt, Outcome, Posted, Refusal, audit
from tests.storage.bench import Answer, Bench
from tests.storage.histories import (
    Call,
    MoveClock,
    OwnerActs,
    SendAgain,
    Step,
    World,
    histories,
    owner_acts,
    units_again,
    units_of,
)

EXAMPLES = int(os.environ.get("LEDGERD_MODEL_EXAMPLES", "400"))


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


def _play(step: Step, world: World) -> None:
    if isinstance(step, OwnerActs):
        owner_acts(step, world)
        return
    if isinstance(step, MoveClock):
        world.bench.move_clock(step.seconds)
        return
    resent = isinstance(step, SendAgain) and step.resent
    units = units_of(step, world) if isinstance(step, Call) else units_again(step, world)
    if not units:
        return
    if not resent:
        world.calls.append(units)
    if isinstance(step, Call) and step.lost:
        world.bench.lose(units)
        return
    now, answers = world.bench.timed_call(units, resent=resent)
    outcomes = world.model.post(units, now=now, resent=resent)
    assert answers == [[_expected(outcome) for outcome in each] for each in outcomes]
    assert world.bench.stored_holds() == world.model.pending_holds
    commands = [command for unit in units for command in unit.commands]
    for command, answer in zip(commands, itertools.chain.from_iterable(answers), strict=True):
        event(f"{command.kind} {answer.code}")


def _assert_same_books(world: World) -> None:
    bench, model = world.bench, world.model
    accounts = {number: account for number, account in bench.stored_accounts().items() if number in model.accounts}
    assert accounts == model.accounts
    transactions = bench.stored_transactions()
    assert transactions == model.transactions
    assert bench.stored_fates() == {
        number: (
            model.present_status(number),
            model.reversed_amount(number) if transaction.kind in REVERSIBLE else None,
        )
        for number, transaction in model.transactions.items()
    }
    assert {number: _kept(attempt, world) for number, attempt in bench.stored_attempts().items()} == {
        number: _kept(attempt, world) for number, attempt in model.attempts.items()
    }
    assert audit(accounts, transactions.values(), bench.stored_holds()) == []


def _kept(attempt: Attempt, world: World) -> Attempt:
    """What the table of attempts keeps of a command: the account's currency, and nothing that only the rules need."""
    command = attempt.command
    if command.kind in REFERRING:
        command = msgspec.structs.replace(command, debit=None, credit=None, currency=None)
    else:
        acting = world.model.accounts.get(command.acting)
        command = msgspec.structs.replace(command, currency=acting.currency if acting else command.currency)
    for member in ("problem", "metadata", "refers_to", "expires_in_s", "late_problem"):
        command = msgspec.structs.replace(command, **{member: None})
    return msgspec.structs.replace(attempt, command=command)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(history=histories)
def test_the_kernel_and_the_model_agree_about_every_history(bench: Bench, history: list[Step]) -> None:
    bench.execute("TRUNCATE ledgerd.attempts, ledgerd.transactions, ledgerd.holds")
    bench.execute("UPDATE ledgerd.settings SET clock_offset = '0'")
    world = World(bench)
    for step in history:
        _play(step, world)
    _assert_same_books(world)
