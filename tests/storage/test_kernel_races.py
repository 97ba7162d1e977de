"""Ends of one thing that arrive at the same time, on real connections: exactly one of them wins."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from ledgerd.storage.failures import FENCE, Failure, classify
from ledgerd_protocol.errors import ErrorCode
from tests.model import Command
from tests.storage.bench import Answer, Bench, again, fresh_id
from tests.storage.racing import lanes, post, until_waiting


async def _as_a_lane(connection: asyncpg.Connection, command: Command) -> Answer:
    """A call that lost a race is run again; the fence must not have been what stopped it."""
    while True:
        try:
            (answer,) = await post(connection, command)
            return answer
        except asyncpg.PostgresError as lost:
            if classify(lost) is not Failure.RERUN or lost.sqlstate == FENCE:
                raise


def _meet(bench: Bench, first: Command, second: Command, *, clock_moves_s: int = 0) -> list[Answer]:
    """The second waits for the lock of the first, which then commits; the clock may move while it waits."""

    async def race() -> list[Answer]:
        async with lanes(bench, 2) as (one, two):
            transaction = one.transaction()
            await transaction.start()
            (winner,) = await post(one, first)
            waiter = asyncio.create_task(post(two, second))
            await until_waiting(bench, two, for_="advisory", unless=waiter)
            if clock_moves_s:
                move = "UPDATE ledgerd.settings SET clock_offset = clock_offset + make_interval(secs => $1)"
                await bench.owner.execute(move, clock_moves_s)
            await transaction.commit()
            try:
                (loser,) = await waiter
            except asyncpg.UniqueViolationError:
                loser = await _as_a_lane(two, second)
            return [winner, loser]

    return bench.run(race())


def _at_once(bench: Bench, *commands: Command) -> list[Answer]:
    """Each in a lane of its own, started together."""

    async def race() -> list[Answer]:
        async with lanes(bench, len(commands)) as connections:
            return list(await asyncio.gather(*map(_as_a_lane, connections, commands)))

    return bench.run(race())


def _codes(answers: list[Answer]) -> list[int | None]:
    return [answer.code for answer in answers]


# -- holds ------------------------------------------------------------------------------------------------------------


def test_a_capture_that_waited_until_the_hold_expired_comes_too_late(bench: Bench) -> None:
    account = bench.account(balance=100)
    hold = bench.posted(bench.hold(account, 30, expires_in_s=60))

    answers = _meet(bench, bench.credit(account, 1), bench.capture(hold), clock_moves_s=60)
    assert _codes(answers) == [0, ErrorCode.HOLD_NOT_ACTIVE]
    assert bench.stored_account(account).held == 30


def test_of_a_capture_and_an_expiry_the_first_ends_the_hold(bench: Bench) -> None:
    account = bench.account(balance=100)
    captured = bench.posted(bench.hold(account, 30, expires_in_s=60))
    answers = _meet(bench, bench.capture(captured), bench.expiry(captured), clock_moves_s=60)
    assert _codes(answers) == [0, ErrorCode.HOLD_NOT_ACTIVE]

    expired = bench.posted(bench.hold(account, 30, expires_in_s=60))
    bench.move_clock(60)
    answers = _meet(bench, bench.expiry(expired), bench.capture(expired))
    assert _codes(answers) == [0, ErrorCode.HOLD_NOT_ACTIVE]
    assert bench.stored_account(account).balance == 70
    assert bench.faults() == []


def test_of_two_captures_one_ends_the_hold(bench: Bench) -> None:
    payer, payee = bench.account(balance=100), bench.account()
    hold = bench.posted(bench.hold(payer, 30, payee))

    answers = _meet(bench, bench.capture(hold, 20), bench.capture(hold, 10))
    assert _codes(answers) == [0, ErrorCode.HOLD_NOT_ACTIVE]
    assert bench.stored_account(payee).balance == 20
    assert bench.faults() == []


def test_two_daemons_that_expire_a_hold_at_once_do_it_once(bench: Bench) -> None:
    account = bench.account(balance=100)
    hold = bench.posted(bench.hold(account, 30, expires_in_s=60))
    bench.move_clock(60)

    answers = _meet(bench, bench.expiry(hold, token_id=0), bench.expiry(hold, token_id=0))
    assert _codes(answers) == [0, 1]
    assert bench.stored_account(account).version == 3


def test_of_a_hold_and_a_debit_that_need_the_same_money_one_gets_it(bench: Bench) -> None:
    account = bench.account(balance=100)
    answers = _meet(bench, bench.hold(account, 80), bench.debit(account, 30))

    assert _codes(answers) == [0, ErrorCode.INSUFFICIENT_FUNDS]
    assert answers[1].data == {"available": 20, "requested": 30, "version": 2}

    other = bench.account(balance=100)
    assert _codes(_meet(bench, bench.debit(other, 80), bench.hold(other, 30))) == [0, ErrorCode.INSUFFICIENT_FUNDS]
    assert bench.faults() == []


def test_a_capture_does_not_wait_for_a_hold_that_is_not_committed_yet(bench: Bench) -> None:
    account = bench.account(balance=100)
    hold = bench.hold(account, 30)

    async def race() -> Answer:
        async with lanes(bench, 2) as (one, two):
            async with one.transaction():
                await post(one, hold)
                (early,) = await post(two, bench.capture(hold))
            return early

    assert bench.run(race()).code == ErrorCode.REFERENCE_NOT_FOUND
    assert bench.post(bench.capture(hold)).posted


@pytest.mark.parametrize("round_", range(5))
def test_of_many_ends_at_once_one_is_posted(bench: Bench, round_: int) -> None:
    payer, payee = bench.account(balance=100), bench.account()
    hold = bench.posted(bench.hold(payer, 30, payee))

    answers = _at_once(bench, *(bench.capture(hold, 10 + i) if i % 2 else bench.release(hold) for i in range(6)))
    assert sorted(answer.code or 0 for answer in answers) == [0, *[ErrorCode.HOLD_NOT_ACTIVE] * 5]
    assert bench.faults() == []


# -- reversals --------------------------------------------------------------------------------------------------------


def test_two_reversals_at_once_do_not_give_back_more_than_there_was(bench: Bench) -> None:
    payer, payee = bench.account(balance=100), bench.account(balance=100)
    transfer = bench.posted(bench.transfer(payer, payee, 30))

    answers = _meet(bench, bench.reversal(transfer, 20), bench.reversal(transfer, 20))
    assert _codes(answers) == [0, ErrorCode.ALREADY_REVERSED]
    assert answers[1].data == {"remaining": 10}
    assert bench.faults() == []


def test_an_omitted_amount_is_what_remains_after_the_wait(bench: Bench) -> None:
    account = bench.account(balance=100)
    debit = bench.posted(bench.debit(account, 30))

    answers = _meet(bench, bench.reversal(debit, 20), bench.reversal(debit))
    assert _codes(answers) == [0, 0]
    assert bench.stored_account(account).balance == 100


def test_parts_from_many_lanes_never_exceed_the_original(bench: Bench) -> None:
    account = bench.account(balance=100)
    debit = bench.posted(bench.debit(account, 30))

    answers = _at_once(bench, *(bench.reversal(debit, 7) for _ in range(8)))
    assert sorted(answer.code or 0 for answer in answers) == [0] * 4 + [ErrorCode.ALREADY_REVERSED] * 4
    assert bench.stored_account(account).balance == 98
    assert bench.faults() == []


# -- bets -------------------------------------------------------------------------------------------------------------


def test_a_rollback_that_waited_for_its_bet_returns_the_stake(bench: Bench) -> None:
    account = bench.account(balance=100)
    bet = bench.bet(account, 30)
    rollback = bench.rollback(account, bet)

    assert _codes(_meet(bench, bet, rollback)) == [0, 0]
    assert bench.stored_transaction(rollback).amount == 30
    assert bench.stored_account(account).balance == 100
    assert bench.faults() == []


def test_a_bet_that_waited_for_its_rollback_is_refused(bench: Bench) -> None:
    account = bench.account(balance=100)
    bet = bench.bet(account, 30)

    answers = _meet(bench, bench.rollback(account, bet), bet)
    assert _codes(answers) == [0, ErrorCode.TRANSACTION_ID_CANCELLED]
    assert bench.stored_account(account).balance == 100


@pytest.mark.parametrize("rollback_first", [False, True])
@pytest.mark.parametrize("named", ["older", "younger"])
def test_a_bet_and_its_rollback_meet_even_when_they_name_different_accounts_of_the_user(
    bench: Bench, rollback_first: bool, named: str
) -> None:
    user = bench.user()
    older, younger = bench.account(user, balance=100), bench.account(user, "EUR", balance=100)
    on, other = (older, younger) if named == "older" else (younger, older)
    bet = bench.bet(on, 30)
    rollback = bench.rollback(other, bet)

    if rollback_first:
        assert _codes(_meet(bench, rollback, bet)) == [0, ErrorCode.TRANSACTION_ID_CANCELLED]
    else:
        assert _codes(_meet(bench, bet, rollback)) == [0, 0]
    assert [bench.stored_account(account).balance for account in (older, younger)] == [100, 100]
    assert bench.faults() == []


@pytest.mark.parametrize("round_", range(5))
def test_a_bet_and_its_rollback_at_once_leave_no_cent_behind(bench: Bench, round_: int) -> None:
    account = bench.account(balance=100)
    bets = [bench.bet(account, 30) for _ in range(3)]
    answers = _at_once(bench, *(each for bet in bets for each in (bet, bench.rollback(account, bet))))

    assert all(code in (0, ErrorCode.TRANSACTION_ID_CANCELLED) for code in _codes(answers))
    assert bench.stored_account(account).balance == 100
    assert bench.faults() == []


def test_of_a_win_and_a_rollback_the_first_decides(bench: Bench) -> None:
    account = bench.account(balance=100)
    won, lost = bench.posted(bench.bet(account, 10)), bench.posted(bench.bet(account, 10))

    assert _codes(_meet(bench, bench.win(account, won, 5), bench.rollback(account, won))) == [
        0,
        ErrorCode.NOT_REVERSIBLE,
    ]
    assert _codes(_meet(bench, bench.rollback(account, lost), bench.win(account, lost, 5))) == [
        0,
        ErrorCode.REFERENCE_NOT_FOUND,
    ]
    assert bench.stored_account(account).balance == 95
    assert bench.faults() == []


def test_two_wins_at_once_are_one(bench: Bench) -> None:
    account = bench.account(balance=100)
    bet = bench.posted(bench.bet(account, 10))

    answers = _meet(bench, bench.win(account, bet, 5), bench.win(account, bet, 5))
    assert _codes(answers) == [0, ErrorCode.ALREADY_REVERSED]


# -- closing ----------------------------------------------------------------------------------------------------------


def test_of_a_close_and_a_credit_the_first_decides(bench: Bench) -> None:
    one, two = bench.account(), bench.account()

    assert _codes(_meet(bench, bench.shut(one), bench.credit(one, 1))) == [0, ErrorCode.ACCOUNT_CLOSED]
    assert _codes(_meet(bench, bench.credit(two, 1), bench.shut(two))) == [0, ErrorCode.ACCOUNT_NOT_EMPTY]
    assert bench.faults() == []


# -- the fence and the locks ------------------------------------------------------------------------------------------


def test_the_fence_stops_the_end_of_a_hold_whose_account_moved_behind_its_lock(bench: Bench) -> None:
    payer, payee = bench.account(balance=100), bench.account()
    hold = bench.posted(bench.hold(payer, 30, payee))

    async def race() -> asyncpg.PostgresError:
        async with lanes(bench, 1) as (lane,):
            thief = bench.owner.transaction()
            await thief.start()
            await bench.owner.execute("UPDATE ledgerd.accounts SET version = version + 1 WHERE account_id = $1", payee)
            caller = asyncio.create_task(post(lane, bench.capture(hold)))
            await until_waiting(bench, lane, for_="transactionid")
            await thief.commit()
            with pytest.raises(asyncpg.PostgresError) as stopped:
                await caller
            return stopped.value

    assert bench.run(race()).sqlstate == FENCE
    assert list(bench.stored_holds()) == [hold.transaction_id]
    assert bench.stored_account(payer).held == 30


def _locked(bench: Bench, *commands: Command) -> set[int]:
    """The accounts whose locks a call holds before it commits."""

    async def work() -> set[int]:
        async with bench.daemon.transaction():
            await post(bench.daemon, *commands)
            rows = await bench.owner.fetch(
                "SELECT ((classid::bigint << 32) | objid::bigint) & ((1::bigint << 48) - 1) AS account FROM pg_locks "
                "WHERE locktype = 'advisory' AND objsubid = 1 AND granted AND pid = $1",
                bench.daemon.get_server_pid(),
            )
            return {row["account"] for row in rows}

    return bench.run(work())


def test_a_command_that_refers_to_another_locks_both_accounts_of_that(bench: Bench) -> None:
    payer, payee = bench.account(balance=100), bench.account()
    hold, transfer = bench.posted(bench.hold(payer, 30, payee)), bench.posted(bench.transfer(payer, payee, 10))

    for command in (bench.capture(hold), bench.release(hold), bench.expiry(hold), bench.reversal(transfer)):
        assert _locked(bench, command) >= {payer, payee}


def test_a_command_that_refers_to_an_earlier_one_of_its_call_locks_the_same_accounts(bench: Bench) -> None:
    payer, payee = bench.account(balance=100), bench.account()
    hold = bench.hold(payer, 30, payee)
    capture = bench.capture(hold)

    assert _locked(bench, hold, capture, bench.reversal(capture)) == {payer, payee}


def test_a_win_locks_the_account_of_its_bet(bench: Bench) -> None:
    user = bench.user()
    dollars, euros = bench.account(user, balance=100), bench.account(user, "EUR", balance=100)
    bet = bench.posted(bench.bet(euros, 30))

    assert euros in _locked(bench, bench.win(dollars, bet, 1))


def test_what_refers_to_nothing_locks_nothing(bench: Bench) -> None:
    account = bench.account(balance=100)
    nothing = bench.hold(account, 1)

    assert _locked(bench, bench.capture(nothing), bench.reversal(nothing, transaction_id=fresh_id())) == set()


def test_lanes_that_hold_capture_and_reverse_between_the_same_accounts_do_not_deadlock(bench: Bench) -> None:
    accounts = [bench.account(balance=1_000) for _ in range(4)]

    async def run_lane(connection: asyncpg.Connection, lane: int) -> None:
        order = accounts[lane:] + accounts[:lane]
        for number in range(25):
            source, destination = order[number % 4], order[(number + 1 + lane) % 4]
            if source == destination:
                continue
            hold = bench.hold(source, 5, destination)
            capture = bench.capture(hold, 3)
            reversal = bench.reversal(capture, 1)
            together = await post(connection, hold, capture, reversal)
            assert _codes(together) == [0, 0, 0]
            assert _codes(await post(connection, bench.reversal(capture), again(capture))) == [0, 1]

    async def race() -> None:
        async with lanes(bench, 3) as connections:
            await asyncio.gather(*(run_lane(connection, lane) for lane, connection in enumerate(connections)))

    bench.run(race())
    assert sum(account.balance for account in bench.stored_accounts().values()) == 4_000
    assert bench.faults() == []
