"""Committer: what waits, what is in flight, what is recovering."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from ledgerd.engine.commands import AccountRef, Posted, Record
from ledgerd.engine.committer import PASSED_OVER_MAX
from ledgerd_protocol.errors import ErrorCode
from tests.engine.fake_ledger import (
    POISON,
    Asked,
    Engine,
    FakeLane,
    FakeLedger,
    FakeSink,
    Fault,
    command,
    open_engine,
    settle,
    transfer,
)

ACCOUNTS = 60


@pytest.fixture
def ledger() -> FakeLedger:
    ledger = FakeLedger()
    for account in range(1, ACCOUNTS + 1):
        ledger.open(account, balance=1_000_000)
    return ledger


@pytest.fixture
async def engine(ledger: FakeLedger, autojump_clock: object) -> AsyncIterator[Engine]:
    async with open_engine(ledger) as engine:
        yield engine


def ids(*units: Asked) -> list[str]:
    return [sent.transaction_id for unit in units for sent in unit.commands]


def sent(engine: Engine) -> list[list[str]]:
    return [transaction_ids for _, transaction_ids, _ in engine.ledger.calls]


# -- batching and order ---------------------------------------------------------------------------------------------


async def test_an_idle_lane_takes_the_first_unit_at_once(autojump_clock: object, engine: Engine) -> None:
    engine.start_lane("lane", 0.25)
    await settle()
    started = trio.current_time()
    unit = transfer(1, 2)
    await engine.send(unit)
    await unit.outcome()
    assert trio.current_time() - started == pytest.approx(0.25)


async def test_what_waits_while_the_lane_is_busy_goes_in_one_call(autojump_clock: object, engine: Engine) -> None:
    engine.start_lane("lane", 1.0)
    first = transfer(1, 2)
    await engine.send(first)
    await settle()
    rest = [transfer(account, account + 1) for account in range(3, 23, 2)]
    await engine.send(*rest)
    await engine.answers(first, *rest)
    assert sent(engine) == [ids(first), ids(*rest)]


async def test_two_idle_lanes_do_not_share_out_what_one_can_carry(autojump_clock: object, engine: Engine) -> None:
    engine.start_lane("a")
    engine.start_lane("b")
    await settle()
    units = [transfer(1, 2), transfer(3, 4), transfer(5, 6)]
    for unit in units:
        engine.router.try_route(unit)
    await engine.answers(*units)
    assert len(engine.ledger.calls) == 1


async def test_no_two_lanes_have_an_account_in_flight_and_each_users_order_is_kept(
    autojump_clock: object, engine: Engine
) -> None:
    for number in range(3):
        engine.start_lane(f"lane{number}", 0.1 + number / 30)
    units = []
    for number in range(120):
        units.append(transfer(1 + number % 7, 1 + (number * 5 + 3) % 11 if number % 7 != (number * 5 + 3) % 11 else 12))
        await engine.send(units[-1])
        if number % 3 == 0:
            await trio.sleep(0.02)
    await engine.answers(*units)  # the fake lane itself fails when an account is in flight twice
    for user in range(1, 8):
        versions = [unit.record.sides[0].version for unit in units if unit.commands[0].debit_account == user]
        assert versions == sorted(versions)
    assert len({name for name, _, _ in engine.ledger.calls}) == 3


async def test_a_call_is_bounded_in_commands(ledger: FakeLedger, autojump_clock: object) -> None:
    async with open_engine(ledger, call_commands_max=4) as engine:
        units = [Asked(command("transfer", a, a + 1), command("transfer", a, a + 1)) for a in range(1, 13, 2)]
        await engine.send(*units)
        await settle()
        engine.start_lane("lane", 1.0)
        await engine.answers(*units)
    assert sent(engine) == [ids(*units[:2]), ids(*units[2:4]), ids(*units[4:])]


async def test_a_call_is_bounded_in_accounts_and_shared_accounts_count_once(
    ledger: FakeLedger, autojump_clock: object
) -> None:
    async with open_engine(ledger, call_accounts_max=5) as engine:
        units = [transfer(a, 50) for a in range(1, 9)]
        await engine.send(*units)
        await settle()
        engine.start_lane("lane", 1.0)
        await engine.answers(*units)
    assert sent(engine) == [ids(*units[:4]), ids(*units[4:])]


async def test_the_lane_that_could_not_carry_all_calls_the_next_one(ledger: FakeLedger, autojump_clock: object) -> None:
    async with open_engine(ledger, call_commands_max=1) as engine:
        units = [transfer(1, 2), transfer(3, 4), transfer(5, 6)]
        await engine.send(*units)
        await settle()
        for name in "abc":
            engine.start_lane(name, 1.0)
        started = trio.current_time()
        await engine.answers(*units)
        assert trio.current_time() - started == pytest.approx(1.0), "all three went at the same time"


async def test_a_unit_passed_over_twice_goes_next_and_alone_while_others_wait(
    autojump_clock: object, engine: Engine
) -> None:
    engine.start_lane("slow", 10.0)
    first = transfer(2, 1)
    await engine.send(first)
    await settle()
    engine.start_lane("quick", 1.0)
    wide = Asked(command("transfer", 1, 3), command("transfer", 4, 5), command("transfer", 6, 7), ttl_s=60)
    await engine.send(wide)
    overtaking = []
    for number in range(PASSED_OVER_MAX):
        overtaking.append(transfer(20 + number, 30))
        await engine.send(overtaking[-1])
        await trio.sleep(1.5)
    assert all(unit.answered for unit in overtaking)
    waiting = [Asked(command("transfer", 20, 30), ttl_s=60), Asked(command("transfer", 1, 2), ttl_s=60)]
    await engine.send(*waiting)
    await trio.sleep(3)
    assert not waiting[0].answered, "a lane is free and it touches nothing in flight, but another one was promised"
    await engine.answers(first, wide, *waiting)
    assert next(call for call in sent(engine)[3:]) == ids(wide), "alone, and before those that came later"


async def test_units_that_are_barred_together_grow_impatient_one_at_a_time_and_stay_one_batch(
    autojump_clock: object, engine: Engine
) -> None:
    engine.start_lane("slow", 10.0)
    first = transfer(2, 1)
    await engine.send(first)
    await settle()
    engine.lanes[0].call_s = 1.0
    engine.start_lane("quick", 1.0)
    hot = [Asked(command("transfer", account, 1), ttl_s=60) for account in range(10, 20)]
    await engine.send(*hot)
    for number in range(PASSED_OVER_MAX + 1):
        await engine.send(Asked(command("transfer", 20 + number, 30), ttl_s=60))
        await trio.sleep(1.5)
    await engine.answers(*hot)
    assert hot[0].passed_over == PASSED_OVER_MAX
    calls_of_hot = [call for call in sent(engine) if set(call) & set(ids(*hot))]
    assert [len(call) for call in calls_of_hot] == [1, 9]


async def test_a_unit_waits_for_an_earlier_one_on_its_account_that_cannot_go_yet(
    autojump_clock: object, engine: Engine
) -> None:
    engine.start_lane("slow", 2.0)
    first, barred, behind = transfer(2, 1), transfer(3, 1), transfer(4, 3)
    await engine.send(first)
    await settle()
    engine.start_lane("quick", 0.1)
    await engine.send(barred, behind)
    await engine.answers(first, barred, behind)
    assert sent(engine) == [ids(first), ids(barred, behind)]


async def test_units_of_one_turn_wait_for_each_other_even_on_different_accounts(
    ledger: FakeLedger, autojump_clock: object
) -> None:
    ledger.open(70, user_id=1, balance=10_000, currency="EUR")
    async with open_engine(ledger) as engine:
        await engine.directory.find([(AccountRef(account_id=number), "") for number in (1, 2, 3, 70)])
        engine.start_lane("slow", 2.0)
        first = transfer(2, 1)
        await engine.send(first)
        await settle()
        engine.start_lane("quick", 0.1)
        dollars, euros = transfer(1, 3), Asked(command("debit", 70, None))
        for unit in (dollars, euros):
            engine.router.try_route(unit)
        await settle()
        other = transfer(5, 6)  # makes the quick lane look at all that waits
        await engine.send(other)
        await engine.answers(first, dollars, euros, other)
    assert sent(engine) == [ids(first), ids(other), ids(dollars, euros)]


async def test_one_turn_is_never_in_two_lanes(ledger: FakeLedger, autojump_clock: object) -> None:
    ledger.open(70, user_id=1, balance=10_000, currency="EUR")
    async with open_engine(ledger, call_commands_max=1) as engine:
        turn = [transfer(1, 3), Asked(command("debit", 70, None))]
        for unit in turn:
            engine.router._fill(unit, lambda ref, _: engine.ledger._find(ref, ""))
        engine.start_lane("a", 1.0)
        engine.start_lane("b", 1.0)
        await settle()
        started = trio.current_time()
        await engine.committer.commit(list(turn))
        assert trio.current_time() - started == pytest.approx(2.0)


async def test_what_waits_behind_a_unit_that_was_dropped_goes_at_once(autojump_clock: object, engine: Engine) -> None:
    engine.start_lane("slow", 9.0)
    first, dropped, behind = transfer(2, 1), Asked(command("transfer", 3, 1), ttl_s=8.0), transfer(4, 3)
    await engine.send(first)
    await settle()
    engine.start_lane("quick", 0.1)
    await engine.send(dropped, behind)
    await behind.done.wait()
    assert dropped.refusal == (ErrorCode.TIMEOUT, False)
    assert not first.answered
    assert behind.record.sides[0].version == 1


# -- deadlines ------------------------------------------------------------------------------------------------------


async def test_a_unit_past_its_deadline_is_refused_and_never_sent(autojump_clock: object, engine: Engine) -> None:
    engine.start_lane("lane", 3.0)
    first, late = transfer(1, 2), Asked(command("transfer", 3, 4), ttl_s=8.0)
    await engine.send(first)
    await settle()
    await engine.send(late)
    started = trio.current_time()
    await engine.answers(first, late)
    assert late.refusal == (ErrorCode.TIMEOUT, False)
    assert late.answered_at is not None
    assert late.answered_at - started < 2.5, "it is told when it can no longer be done in time, not when a lane is free"
    assert ids(late) not in sent(engine)


async def test_the_database_being_away_is_said_within_five_seconds(autojump_clock: object, engine: Engine) -> None:
    started = trio.current_time()
    units = [transfer(1, 2), transfer(1, 2), transfer(3, 4)]
    await engine.send(*units)
    await engine.answers(*units)
    assert {unit.refusal for unit in units} == {(ErrorCode.UNAVAILABLE, False)}
    assert 4.0 <= trio.current_time() - started <= 5.0
    engine.start_lane()
    await settle()
    assert engine.ledger.calls == [], "what was refused is dropped"


async def test_who_is_told_that_the_database_is_away_may_send_the_next_command_at_once(
    autojump_clock: object, engine: Engine
) -> None:
    following: list[Asked] = []

    def send_another() -> None:
        following.append(transfer(20 + len(following), 30))
        assert engine.router.try_route(following[-1]) in (True, False)

    await engine.directory.find([(AccountRef(account_id=number), "") for number in range(1, 41)])
    units = [Asked(command("transfer", 1, number), then=send_another) for number in range(2, 8)]
    await engine.send(*units)
    await engine.answers(*units)
    await engine.answers(*following)
    assert {unit.refusal for unit in [*units, *following]} == {(ErrorCode.UNAVAILABLE, False)}
    assert len(following) == len(units)


async def test_a_short_absence_is_not_noticed(autojump_clock: object, engine: Engine) -> None:
    unit = transfer(1, 2)
    await engine.send(unit)
    await trio.sleep(3.0)
    engine.start_lane()
    await unit.outcome()
    assert unit.record.sides[0].version == 1


async def test_a_database_that_hangs_counts_as_away_for_those_that_wait(autojump_clock: object, engine: Engine) -> None:
    engine.start_lane("hung", 9.0)
    in_flight = transfer(1, 2)
    await engine.send(in_flight)
    await trio.sleep(0.1)
    behind, elsewhere = transfer(1, 2), transfer(3, 4)
    await engine.send(behind, elsewhere)
    started = trio.current_time()
    await engine.answers(behind, elsewhere)
    assert {behind.refusal, elsewhere.refusal} == {(ErrorCode.UNAVAILABLE, False)}
    assert trio.current_time() - started <= 5.0
    await in_flight.outcome()
    assert in_flight.record.sides[0].version == 1


# -- losing the connection ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Fault.AWAY, Fault.LOST_BEFORE_COMMIT, Fault.LOST_AFTER_COMMIT])
async def test_a_lost_call_goes_again_unchanged_and_first_and_its_true_outcome_is_answered(
    autojump_clock: object, engine: Engine, fault: Fault
) -> None:
    units = [transfer(1, 2), transfer(3, 4), transfer(5, 6, "99999999.00")]
    await engine.send(*units)
    await settle()
    engine.start_lane("first", 0.1, fault)
    await settle()
    assert not any(unit.answered for unit in units)
    behind = [transfer(2, 1), transfer(7, 8)]
    await engine.send(*behind)
    await settle()
    engine.start_lane("second", 0.1)
    await engine.answers(*units, *behind)
    first, second, third = engine.ledger.calls
    assert (first[2], second[2], third[2]) == (False, True, False)
    assert second[1] == first[1] == ids(*units)
    assert sorted(third[1]) == sorted(ids(*behind))
    assert [unit.record.sides[0].version for unit in (units[0], units[1], behind[0])] == [1, 1, 2]
    assert units[2].refusal == (ErrorCode.INSUFFICIENT_FUNDS, False)
    assert engine.ledger.version(1) == 2, "once each"


async def test_a_refusal_that_was_lost_is_answered_and_not_judged_again(autojump_clock: object, engine: Engine) -> None:
    poor = transfer(1, 2, "20000.00")
    await engine.send(poor)
    await settle()
    engine.start_lane("first", 0.1, Fault.LOST_AFTER_COMMIT)
    await settle()
    engine.ledger.credit(1, 10_000_000)
    engine.start_lane("second")
    await poor.outcome()
    assert poor.refusal == (ErrorCode.INSUFFICIENT_FUNDS, False)


async def test_an_unknown_outcome_is_said_to_be_unknown_at_the_deadline(autojump_clock: object, engine: Engine) -> None:
    engine.start_lane("lane", 0.1, Fault.LOST_AFTER_COMMIT)
    unit, behind = transfer(1, 2), transfer(1, 2)
    started = trio.current_time()
    await engine.send(unit)
    await settle()
    await engine.send(behind)
    await engine.answers(unit, behind)
    assert unit.refusal == (ErrorCode.UNAVAILABLE, None)
    assert unit.answered_at is not None
    assert 10.0 <= unit.answered_at - started <= 11.0
    assert behind.refusal == (ErrorCode.UNAVAILABLE, False)
    assert behind.answered_at is not None
    assert behind.answered_at - started <= 5.5, "it still waits in the worker's inbox, and is told all the same"


async def test_what_was_unknown_once_stays_unknown_when_the_next_try_surely_did_nothing(
    autojump_clock: object, engine: Engine
) -> None:
    engine.start_lane("first", 0.1, Fault.LOST_AFTER_COMMIT)
    unit = transfer(1, 2)
    await engine.send(unit)
    await settle()
    engine.start_lane("second", 0.1, Fault.AWAY)
    await unit.outcome()
    assert unit.refusal == (ErrorCode.UNAVAILABLE, None)


async def test_a_call_that_surely_did_nothing_is_refused_within_five_seconds_as_not_applied(
    autojump_clock: object, engine: Engine
) -> None:
    engine.start_lane("lane", 0.1, Fault.AWAY)
    unit = transfer(1, 2)
    started = trio.current_time()
    await engine.send(unit)
    await unit.outcome()
    assert unit.refusal == (ErrorCode.UNAVAILABLE, False)
    assert trio.current_time() - started <= 5.0


async def test_nothing_is_sent_again_after_it_was_answered(autojump_clock: object, engine: Engine) -> None:
    units = [Asked(command("transfer", 1, 2), ttl_s=8.0), transfer(3, 4)]
    await engine.send(*units)
    await settle()
    engine.start_lane("first", 0.1, Fault.LOST_BEFORE_COMMIT)
    await units[0].done.wait()
    engine.start_lane("second")
    await units[1].outcome()
    assert units[0].refusal == (ErrorCode.UNAVAILABLE, None)
    assert sent(engine)[1] == ids(units[1])
    assert engine.ledger.version(1) == 0


async def test_a_lane_cancelled_with_its_generation_leaves_its_call_to_the_next(
    autojump_clock: object, engine: Engine
) -> None:
    unit = transfer(1, 2)
    async with trio.open_nursery() as generation:
        generation.start_soon(engine.committer.run_lane, FakeLane(engine.ledger, "doomed", 5.0))
        await engine.send(unit)
        await settle()
        generation.cancel_scope.cancel()
    assert not unit.answered
    engine.start_lane("next")
    await unit.outcome()
    assert [resent for _, _, resent in engine.ledger.calls][-1] is True
    assert unit.record.sides[0].version == 1


async def test_a_call_that_one_lane_lost_is_taken_up_by_an_idle_one(autojump_clock: object, engine: Engine) -> None:
    engine.start_lane("doomed", 0.1, Fault.LOST_AFTER_COMMIT)
    await settle()
    engine.start_lane("idle", 0.1)
    await settle()
    unit = transfer(1, 2)
    await engine.send(unit)
    await unit.outcome()
    assert [name for name, _, _ in engine.ledger.calls] == ["doomed", "idle"]
    assert unit.record.sides[0].version == 1


async def test_while_one_lost_call_recovers_its_accounts_are_barred_to_other_lanes(
    autojump_clock: object, engine: Engine
) -> None:
    first = transfer(1, 2)
    await engine.send(first)
    await settle()
    engine.start_lane("first", 0.1, Fault.LOST_AFTER_COMMIT)
    await settle()
    behind = transfer(2, 3)
    await engine.send(behind)
    await settle()
    engine.start_lane("a", 1.0)
    engine.start_lane("b", 1.0)
    await engine.answers(first, behind)
    assert sent(engine)[1:] == [ids(first), ids(behind)]
    assert behind.record.sides[0].version == 2


# -- refused calls and bugs -----------------------------------------------------------------------------------------


async def test_a_unit_that_the_database_chokes_on_fails_alone(autojump_clock: object, engine: Engine) -> None:
    poison = Asked(command("transfer", 5, 6, reason=POISON))
    good = [transfer(1, 2), transfer(3, 4), transfer(2, 1)]
    await engine.send(good[0], poison, good[1], good[2])
    await settle()
    engine.start_lane("a")
    engine.start_lane("b")
    await engine.answers(poison, *good)
    assert poison.refusal == (ErrorCode.INTERNAL_ERROR, False)
    assert [unit.record.sides[0].version for unit in good] == [1, 1, 2]


async def test_units_that_go_alone_go_in_all_lanes(autojump_clock: object, engine: Engine) -> None:
    units = [Asked(command("transfer", 9, 10, reason=POISON)), transfer(1, 2), transfer(3, 4), transfer(5, 6)]
    await engine.send(*units)
    await settle()
    started = trio.current_time()
    engine.start_lane("a", 1.0)
    engine.start_lane("b", 1.0)
    await engine.answers(*units)
    assert trio.current_time() - started == pytest.approx(3.0), "one call for all, then four calls in two lanes"


async def test_a_connection_lost_while_units_go_alone_does_not_change_their_order(
    autojump_clock: object, engine: Engine
) -> None:
    units = [Asked(command("transfer", 9, 10, reason=POISON)), transfer(1, 2), transfer(3, 1), transfer(4, 3)]
    await engine.send(*units)
    await settle()
    lane = engine.start_lane("first", 0.1)
    lane.faults.extend([Fault.NONE, Fault.NONE, Fault.AWAY])
    await settle()
    engine.start_lane("second")
    await engine.answers(*units)
    assert sent(engine)[-3:] == [ids(unit) for unit in units[1:]]


async def test_poison_in_a_call_whose_outcome_was_unknown_is_not_said_to_be_unapplied(
    autojump_clock: object, engine: Engine
) -> None:
    engine.start_lane("first", 0.1, Fault.LOST_BEFORE_COMMIT)
    poison = Asked(command("transfer", 5, 6, reason=POISON))
    await engine.send(poison)
    await settle()
    engine.start_lane("second")
    await poison.outcome()
    assert poison.refusal == (ErrorCode.INTERNAL_ERROR, None)


async def test_a_bug_behind_the_lane_is_raised_and_nobody_is_left_waiting(
    ledger: FakeLedger, autojump_clock: object
) -> None:
    unit = transfer(1, 2)
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with open_engine(ledger) as engine:
            engine.start_lane("lane", 0.1, Fault.BUG)
            await engine.send(unit)
            await trio.sleep_forever()
    assert unit.refusal == (ErrorCode.INTERNAL_ERROR, None)


async def test_who_is_told_may_fail_without_harm_to_the_lane(autojump_clock: object, engine: Engine) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    engine.start_lane()
    bad, good = Asked(command("transfer", 1, 2), then=fail), transfer(3, 4)
    await engine.send(bad, good)
    await engine.answers(bad, good)
    again = transfer(1, 2)
    await engine.send(again)
    await again.outcome()
    assert again.record.sides[0].version == 2


# -- publishing -----------------------------------------------------------------------------------------------------


async def test_every_answer_of_a_call_comes_before_the_first_event(autojump_clock: object, engine: Engine) -> None:
    happened: list[str] = []
    publish = engine.hub.publish

    def note(record: Record) -> None:
        happened.append("event")
        publish(record)

    engine.committer._publish = note
    units = [
        Asked(command("transfer", account, account + 1), then=lambda: happened.append("answer")) for account in (1, 3)
    ]
    await engine.send(*units)
    await settle()
    engine.start_lane()
    await engine.answers(*units)
    assert happened == ["answer", "answer", "event", "event"]


async def test_a_replayed_transaction_is_not_published_again(autojump_clock: object, engine: Engine) -> None:
    engine.start_lane()
    published: list[Record] = []
    engine.committer._publish = published.append
    first = transfer(1, 2, transaction_id="tx")
    await engine.send(first)
    await first.outcome()
    second = transfer(1, 2, transaction_id="tx")
    await engine.send(second)
    outcome = await second.outcome()
    assert outcome == Posted(first.record, replayed=True)
    assert published == [first.record]


@pytest.mark.parametrize("replays", [False, True])
async def test_what_a_lost_call_committed_is_published_once_it_is_known(
    autojump_clock: object, engine: Engine, replays: bool
) -> None:
    engine.ledger.own_are_replays = replays
    sink = FakeSink()
    engine.follow(sink, 1)
    engine.start_lane("first", 0.1, Fault.LOST_AFTER_COMMIT)
    unit = transfer(1, 2)
    await engine.send(unit)
    await settle()
    assert [event["type"] for event in sink.take()] == ["start", "live"]
    engine.start_lane("second")
    await unit.outcome()
    await settle()
    assert [event["version"] for event in sink.take()] == [1]


async def test_a_bug_in_publishing_does_not_harm_the_lane(autojump_clock: object, engine: Engine) -> None:
    def broken(record: Record) -> None:
        raise ZeroDivisionError

    engine.committer._publish = broken
    engine.start_lane()
    for version in (1, 2):
        unit = transfer(1, 2)
        await engine.send(unit)
        await unit.outcome()
        assert unit.record.sides[0].version == version
