"""UserWorker: order within a user, one turn at a time, bugs contained."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
import trio

from ledgerd.engine import user_worker
from ledgerd.engine.commands import Unit
from ledgerd_protocol.errors import ErrorCode
from tests.engine.fake_ledger import Asked, Engine, FakeLedger, command, open_engine, principal, transfer


@pytest.fixture
def ledger() -> FakeLedger:
    ledger = FakeLedger()
    for account in range(1, 9):
        ledger.open(account, balance=10_000)
    ledger.open(21, user_id=1, balance=10_000, currency="EUR")
    return ledger


@pytest.fixture
async def engine(ledger: FakeLedger, autojump_clock: object) -> AsyncIterator[Engine]:
    async with open_engine(ledger) as engine:
        yield engine


async def test_one_users_commands_are_applied_in_the_order_of_arrival(autojump_clock: object, engine: Engine) -> None:
    for number in range(3):
        engine.start_lane(f"lane{number}", 0.1)
    units = []
    for number in range(30):
        units.append(transfer(1, 2 + number % 5))
        await engine.send(units[-1])
        await trio.sleep(0.03)
    await engine.answers(*units)
    assert [unit.record.sides[0].version for unit in units] == list(range(1, 31))


async def test_one_users_commands_on_two_accounts_are_applied_in_order_even_if_one_account_is_busy(
    autojump_clock: object,
    engine: Engine,
) -> None:
    engine.start_lane("slow", 2.0)
    engine.start_lane("quick", 0.1)
    busy = transfer(2, 1, by=principal(2))  # another user's money reaches account 1: it is in flight for long
    await engine.send(busy)
    await trio.sleep(0.01)
    engine.lanes[0].call_s = engine.lanes[1].call_s = 0.1
    dollars, euros = transfer(1, 3), Asked(command("credit", None, 21))
    await engine.send(dollars, euros)
    await engine.answers(dollars, euros, busy)
    judged = [transaction_id for _, transaction_id in engine.ledger.judged]
    mine = [dollars.record.transaction_id, euros.record.transaction_id]
    assert [transaction_id for transaction_id in judged if transaction_id in mine] == mine


async def test_what_arrives_while_a_call_is_under_way_goes_together_in_the_next(
    autojump_clock: object, engine: Engine
) -> None:
    engine.start_lane("lane", 1.0)
    first = transfer(1, 2)
    await engine.send(first)
    await trio.sleep(0.5)
    later = [transfer(1, 2) for _ in range(5)]
    await engine.send(*later)
    await engine.answers(first, *later)
    assert [len(ids) for _, ids, _ in engine.ledger.calls] == [1, 5]


async def test_a_bug_fails_the_unit_in_hand_and_the_worker_goes_on(
    autojump_clock: object, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.start_lane()
    real: Callable[[Unit, int, int], list[Unit]] = user_worker.split

    def broken(unit: Unit, accounts_max: int, commands_max: int) -> list[Unit]:
        if unit is bad:
            raise ZeroDivisionError
        return real(unit, accounts_max, commands_max)

    monkeypatch.setattr(user_worker, "split", broken)
    before, after = transfer(1, 2), transfer(1, 2)
    bad = Asked(*[command("transfer", 1, 2) for _ in range(1_001)])
    large = Asked(*[command("transfer", 1, 2, "0.01") for _ in range(1_001)])
    await engine.send(before, bad, after, large)
    await engine.answers(before, bad, after, large)
    assert bad.outcomes is not None
    assert {outcome.code for outcome in bad.outcomes} == {ErrorCode.INTERNAL_ERROR}  # type: ignore[union-attr]
    assert (before.record.sides[0].version, after.record.sides[0].version) == (1, 2)
    assert large.outcomes is not None
    assert len(large.outcomes) == 1_001
    assert engine.ledger.version(1) == 2 + 1_001


async def test_other_users_do_not_notice_a_crash(
    autojump_clock: object, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.start_lane("lane", 1.0)
    real = engine.committer.commit

    async def broken(units: list[Unit]) -> None:
        if bad in units:
            raise ZeroDivisionError
        await real(units)

    monkeypatch.setattr(engine.committer, "commit", broken)
    bad, others = transfer(1, 2), [transfer(3, 4), transfer(5, 6)]
    await engine.send(bad, *others)
    await engine.answers(bad, *others)
    assert bad.refusal == (ErrorCode.INTERNAL_ERROR, None)
    assert [unit.record.sides[0].version for unit in others] == [1, 1]


async def test_when_the_daemon_ends_without_draining_everybody_is_answered(
    ledger: FakeLedger, autojump_clock: object
) -> None:
    async with open_engine(ledger) as engine:
        engine.start_lane("slow", 5.0)
        in_flight, waiting = transfer(1, 2), transfer(1, 2)
        await engine.send(in_flight)
        await trio.sleep(1)
        await engine.send(waiting)
    assert in_flight.refusal == (ErrorCode.SHUTTING_DOWN, None), "it may be committed"
    assert waiting.refusal == (ErrorCode.SHUTTING_DOWN, False)
