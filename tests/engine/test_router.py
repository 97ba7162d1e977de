"""Router: whose command it is, on which accounts, with how much; order; retirement; drain."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from ledgerd.engine.commands import ABSENT, AccountFacts, AccountRef, Command, Principal
from ledgerd.engine.router import SentLately
from ledgerd_protocol.errors import ErrorCode
from tests.engine.fake_ledger import (
    OPERATOR,
    SERVICE,
    Asked,
    Engine,
    FakeLedger,
    command,
    open_engine,
    principal,
    settle,
    transfer,
)


@pytest.fixture
def ledger() -> FakeLedger:
    ledger = FakeLedger()
    for account in range(1, 9):
        ledger.open(account, balance=10_000)
    ledger.open(21, user_id=1, balance=10_000, currency="EUR")
    return ledger


@pytest.fixture
async def engine(ledger: FakeLedger, autojump_clock: object) -> AsyncIterator[Engine]:
    async with open_engine(ledger, unit_accounts_max=4) as engine:
        engine.start_lane()
        yield engine


async def warm(engine: Engine, *accounts: int) -> None:
    await engine.directory.find([(AccountRef(account_id=account), "") for account in accounts])


async def test_a_command_on_known_accounts_is_routed_at_once(autojump_clock: object, engine: Engine) -> None:
    await warm(engine, 1, 2)
    unit = transfer(1, 2, "3.50")
    assert engine.router.try_route(unit)
    (sent,) = unit.commands
    assert (sent.debit_account, sent.credit_account, sent.amount_minor) == (1, 2, 350)
    assert unit.accounts == {1, 2}
    await unit.outcome()
    assert unit.record.amount == 350


async def test_unknown_accounts_are_asked_for_and_then_the_unit_goes_its_way(
    autojump_clock: object, engine: Engine
) -> None:
    unit = transfer(1, 2)
    assert not engine.router.try_route(unit)
    await unit.outcome()
    assert unit.record.sides[0].account_id == 1


async def test_routing_twice_sends_once(autojump_clock: object, engine: Engine) -> None:
    unit = transfer(1, 2)
    assert not engine.router.try_route(unit)
    await engine.router.route(unit)
    await engine.router.route(unit)
    await unit.outcome()
    await settle()
    known = transfer(1, 2)
    assert engine.router.try_route(known)
    assert engine.router.try_route(known)
    await known.outcome()
    sent = [transaction_ids for _, transaction_ids, _ in engine.ledger.calls]
    assert sent == [[unit.commands[0].transaction_id], [known.commands[0].transaction_id]]


async def test_a_user_names_the_account_in_the_currency_of_the_account_named_by_id(
    autojump_clock: object, engine: Engine
) -> None:
    unit = Asked(command("transfer", 21, AccountRef(user_id=1), "1.00"))
    await engine.router.route(unit)
    await unit.done.wait()
    assert unit.commands[0].credit_account == 21, "EUR, because account 21 is; not the default currency"


async def test_a_user_alone_names_the_account_in_the_default_currency(autojump_clock: object, engine: Engine) -> None:
    unit = Asked(command("credit", None, AccountRef(user_id=1), "1.00"))
    await engine.router.route(unit)
    await unit.done.wait()
    assert unit.commands[0].credit_account == 1
    stated = Asked(command("credit", None, AccountRef(user_id=1), "1.00", currency="EUR"))
    await engine.router.route(stated)
    await stated.done.wait()
    assert stated.commands[0].credit_account == 21


async def test_an_account_that_does_not_exist_travels_on_as_absent_and_is_refused_by_the_kernel(
    autojump_clock: object, engine: Engine
) -> None:
    unit = transfer(99, 2)
    await engine.router.route(unit)
    await unit.done.wait()
    assert unit.commands[0].debit_account == ABSENT
    assert unit.commands[0].amount_minor is None
    assert unit.accounts == {2}
    assert unit.refusal == (ErrorCode.NOT_FOUND, False)


@pytest.mark.parametrize(
    ("kind", "amount", "problem"),
    [
        ("transfer", "1.000", ErrorCode.AMOUNT_PRECISION),
        ("transfer", "-1.00", ErrorCode.AMOUNT_OUT_OF_RANGE),
        ("transfer", "0.00", ErrorCode.AMOUNT_OUT_OF_RANGE),
        ("limit", "0", None),
        ("cancel", None, None),
    ],
)
async def test_the_amount_is_judged_in_the_acting_accounts_currency(
    autojump_clock: object, engine: Engine, kind: str, amount: str | None, problem: ErrorCode | None
) -> None:
    await warm(engine, 1, 2)
    unit = Asked(command(kind, 1, 2 if kind == "transfer" else None, amount))
    engine.router.stop_accepting()  # what is looked at is only what the router wrote
    engine.router._fill(unit, engine.directory.known)
    assert unit.commands[0].amount_problem == problem
    assert unit.commands[0].amount_minor == (0 if kind == "limit" else None)


async def test_a_command_never_passes_one_of_its_token_that_waits_for_its_accounts(
    autojump_clock: object, engine: Engine
) -> None:
    await warm(engine, 1, 2)
    engine.ledger.directory_delay_s = 1.0
    first, second, other = transfer(1, 3), transfer(1, 2), transfer(1, 2, by=principal(2))
    await engine.send(first, second, other)
    await engine.answers(first, second, other)
    assert (first.record.sides[0].version, second.record.sides[0].version) == (2, 3)
    assert other.record.sides[0].version == 1, "another token does not wait"


async def test_all_who_wait_for_accounts_are_asked_for_together(autojump_clock: object, engine: Engine) -> None:
    engine.ledger.directory_delay_s = 1.0
    units = [transfer(account, account % 8 + 1) for account in range(1, 9)]
    for unit in units:
        engine.router.try_route(unit)
    await engine.answers(*units)
    assert len(engine.ledger.directory_calls) == 1


# -- what refers to another transaction -------------------------------------------------------------------------------


def capture(hold_id: str, amount: str | None = None, *, by: Principal = SERVICE) -> Command:
    debit, credit = AccountRef(payer_of=hold_id), AccountRef(receiver_of=hold_id)
    return command("capture", debit, credit, amount, by=by, refers_to=hold_id)


def filled(engine: Engine, *commands: Command) -> Asked:
    """What the router writes into commands whose accounts are in memory; nothing is sent."""
    unit = Asked(*commands)
    engine.router._fill(unit, engine.directory.known)
    return unit


async def test_a_command_finds_the_accounts_of_one_that_was_sent_just_before_it(
    autojump_clock: object, engine: Engine
) -> None:
    await warm(engine, 1, 2)
    hold = Asked(command("hold", 1, 2))
    assert engine.router.try_route(hold)
    (found,) = filled(engine, capture(hold.commands[0].transaction_id, "0.50")).commands
    assert (found.debit_account, found.credit_account, found.amount_minor) == (1, 2, 50)
    assert found.currency == "USD", "the one the amount was read in: the kernel refuses if it is another"
    assert engine.ledger.directory_calls[1:] == [], "without asking"
    await hold.outcome()


async def test_it_waits_behind_the_one_whose_accounts_are_asked_for_and_finds_it_then(
    autojump_clock: object, engine: Engine
) -> None:
    engine.ledger.directory_delay_s = 1.0
    hold = Asked(command("hold", 1, 2))
    late = Asked(capture(hold.commands[0].transaction_id, "0.50"))
    engine.router.try_route(hold)
    assert not engine.router.try_route(late)
    await engine.answers(hold, late)
    assert (late.commands[0].debit_account, late.commands[0].amount_minor) == (1, 50)
    assert [ids for _, ids, _ in engine.ledger.calls] == [
        [hold.commands[0].transaction_id, late.commands[0].transaction_id]
    ]


async def test_members_of_one_unit_find_each_other(autojump_clock: object, engine: Engine) -> None:
    hold = command("hold", 1, None)
    unit = Asked(hold, capture(hold.transaction_id, "0.50"))
    await engine.send(unit)
    await engine.answers(unit)
    assert (unit.commands[1].debit_account, unit.commands[1].credit_account) == (1, 1)
    assert unit.commands[1].amount_minor == 50


async def test_what_was_posted_earlier_is_asked_for(autojump_clock: object, engine: Engine) -> None:
    posted = engine.ledger.move(3, 4)
    unit = Asked(
        command("reversal", AccountRef(receiver_of=posted.transaction_id), AccountRef(payer_of=posted.transaction_id),
                "0.25", refers_to=posted.transaction_id)
    )  # fmt: skip
    await engine.send(unit)
    await engine.answers(unit)
    (sent,) = unit.commands
    assert (sent.debit_account, sent.credit_account, sent.amount_minor) == (4, 3, 25)
    assert unit.accounts == {3, 4}


async def test_what_one_token_sent_is_not_looked_for_by_another(autojump_clock: object, engine: Engine) -> None:
    await warm(engine, 1, 2)
    hold = filled(engine, command("hold", 1, 2))
    (strange,) = filled(engine, capture(hold.commands[0].transaction_id, by=OPERATOR)).commands
    assert strange.debit_account == ABSENT


async def test_an_amount_that_nothing_says_how_to_read_never_becomes_all_there_is(
    autojump_clock: object, engine: Engine
) -> None:
    part, whole = Asked(capture("nobody's", "0.50")), Asked(capture("nobody's"))
    for unit in (part, whole):
        await engine.send(unit)
        await engine.answers(unit)
        assert unit.commands[0].debit_account == ABSENT
        assert unit.accounts == frozenset()
    assert part.commands[0].amount_problem == ErrorCode.REFERENCE_NOT_FOUND
    assert whole.commands[0].amount_problem is None


async def test_a_strangers_command_does_not_stand_in_the_owners_line(autojump_clock: object, engine: Engine) -> None:
    posted = engine.ledger.move(3, 4)
    stranger = principal(5)
    unit = Asked(
        command(
            "release", AccountRef(payer_of=posted.transaction_id), None, None, by=stranger,
            refers_to=posted.transaction_id,
        )
    )  # fmt: skip
    await engine.send(unit)
    await engine.answers(unit)
    assert unit.commands[0].debit_account == ABSENT
    assert set(engine.router._workers) == {-stranger.token_id}


async def test_the_memory_is_bounded_and_keeps_what_came_last() -> None:
    sent = SentLately(100)
    facts = AccountFacts(1, 1, "USD", 2)
    for number in range(1_000):
        sent.keep(7, str(number), facts, facts)
    known = [number for number in range(1_000) if sent.find(7, AccountRef(payer_of=str(number)))]
    assert 50 <= len(known) <= 100
    assert known == list(range(1_000 - len(known), 1_000))


async def test_when_the_directory_is_away_the_unit_is_refused_unavailable(
    autojump_clock: object, engine: Engine
) -> None:
    engine.ledger.away = True
    unit = transfer(1, 2)
    await engine.router.route(unit)
    assert unit.refusal == (ErrorCode.UNAVAILABLE, False)


async def test_a_directory_that_hangs_is_not_waited_for_longer_than_five_seconds(
    autojump_clock: object, engine: Engine
) -> None:
    engine.ledger.directory_delay_s = 60.0
    started = trio.current_time()
    unit = transfer(1, 2)
    await engine.router.route(unit)
    assert unit.refusal == (ErrorCode.UNAVAILABLE, False)
    assert trio.current_time() - started <= 5.0


async def test_a_unit_that_waited_elsewhere_while_the_database_was_away_is_refused_at_once(
    autojump_clock: object, ledger: FakeLedger
) -> None:
    async with open_engine(ledger) as engine:
        early, late = transfer(1, 2), transfer(1, 2)
        late.commands[0].arrived_at -= engine.config.unavailable_after_s
        await engine.router.route(early)
        await engine.router.route(late)
        assert not early.done.is_set()
        assert late.refusal == (ErrorCode.UNAVAILABLE, False)


async def test_an_atomic_unit_on_too_many_accounts_is_refused(autojump_clock: object, engine: Engine) -> None:
    unit = Asked(*[command("transfer", account, account + 1) for account in (1, 3, 5)], atomic=True)
    await engine.router.route(unit)
    assert unit.outcomes is not None
    assert [outcome.code for outcome in unit.outcomes] == [ErrorCode.BATCH_TOO_LARGE] * 3  # type: ignore[union-attr]
    assert engine.ledger.calls == []


async def test_a_large_unit_of_independent_members_goes_in_several_calls_in_order(
    autojump_clock: object, engine: Engine
) -> None:
    unit = Asked(*[command("transfer", account, account + 1) for account in (1, 3, 5, 1, 7)])
    behind = transfer(1, 2)
    await engine.send(unit, behind)
    await engine.answers(unit, behind)
    ids = [sent.transaction_id for sent in unit.commands]
    assert [call[1] for call in engine.ledger.calls] == [
        ids[:2],
        ids[2:4],
        ids[4:],
        [behind.commands[0].transaction_id],
    ]
    assert unit.outcomes is not None
    assert [outcome.record.transaction_id for outcome in unit.outcomes] == ids  # type: ignore[union-attr]


async def test_a_large_unit_behind_a_small_one_does_not_go_with_it(autojump_clock: object, engine: Engine) -> None:
    await warm(engine, *range(1, 9))
    small, large = transfer(1, 2), Asked(*[command("transfer", account, account + 1) for account in (1, 3, 5)])
    for unit in (small, large):
        assert engine.router.try_route(unit)
    await engine.answers(small, large)
    assert [len(transaction_ids) for _, transaction_ids, _ in engine.ledger.calls] == [1, 2, 1]


async def test_idle_workers_retire_and_a_new_one_starts_with_the_next_command(
    autojump_clock: object, engine: Engine
) -> None:
    units = [transfer(account, account + 1) for account in (1, 3, 5)]
    await engine.send(*units)
    await engine.answers(*units)
    assert len(engine.router._workers) == 3
    await trio.sleep(engine.config.user_idle_s * 1.5)
    assert engine.router._workers == {}
    again = transfer(1, 2)
    await engine.send(again)
    await engine.answers(again)
    assert again.record.sides[0].version == 2


async def test_a_busy_worker_does_not_retire(autojump_clock: object, engine: Engine) -> None:
    engine.lanes[0].call_s = engine.config.user_idle_s * 3
    unit = Asked(command("transfer", 1, 2), ttl_s=1000.0)
    await engine.send(unit)
    await unit.done.wait()
    assert unit.record.sides[0].version == 1


async def test_a_full_inbox_refuses_overloaded(ledger: FakeLedger, autojump_clock: object) -> None:
    async with open_engine(ledger, user_inbox_max=2) as engine:
        await warm(engine, 1, 2)
        units = [transfer(1, 2) for _ in range(4)]
        for unit in units:
            engine.router.try_route(unit)
        assert [unit.answered for unit in units] == [False, False, True, True]
        assert units[2].refusal == (ErrorCode.OVERLOADED, False)


async def test_after_stop_accepting_everything_new_is_refused_and_drain_waits_for_what_was_taken(
    autojump_clock: object, engine: Engine
) -> None:
    engine.lanes[0].call_s = 1.0
    engine.ledger.directory_delay_s = 1.0
    taken = [transfer(1, 2), transfer(3, 4), transfer(1, 2)]
    await engine.send(*taken)
    engine.router.stop_accepting()
    late = transfer(1, 2)
    assert engine.router.try_route(late)
    assert late.refusal == (ErrorCode.SHUTTING_DOWN, False)
    await engine.router.drain()
    assert all(unit.answered for unit in taken)
    assert taken[2].record.sides[0].version == 2


async def test_drain_with_nothing_to_do_returns_at_once(autojump_clock: object, engine: Engine) -> None:
    started = trio.current_time()
    await engine.router.drain()
    assert trio.current_time() == started


async def test_who_is_told_may_fail_without_harm_to_others(autojump_clock: object, engine: Engine) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    engine.ledger.away = True
    bad = Asked(command("transfer", 1, 2), then=fail)
    good = transfer(3, 4)
    await engine.send(bad, good)
    await engine.answers(bad, good)
    assert good.refusal == (ErrorCode.UNAVAILABLE, False)
