"""Advances: what the database makes of them when time passes, compared with the rules in plain Python.

Time here is in days. The clock stands half a day after a whole number of them, so that what a test takes is no matter.
"""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct

from ledgerd.storage.failures import Failure, classify
from ledgerd.storage.queries import QUERIES
from ledgerd_protocol.advances import EVENTS, PAYMENT_STATES
from ledgerd_protocol.errors import ErrorCode
from tests.advance_model import Advance, Event, Payment
from tests.model import ABSENT, Command, Unit
from tests.storage.bench import Answer, Bench, again, answers, arguments, fresh_id

DAY_S = 86_400
LIMIT = 50
TWELVE_WEEKS = [834] * 4 + [833] * 8


class Stored(Struct, frozen=True):
    """An advance as it is stored; times of payments in days since the principal was paid."""

    outstanding: int
    payments: list[Payment]
    events: list[Event]


async def post(connection: asyncpg.Connection, command: Command, installments: int = 12, interval: int = 7) -> Answer:
    given = arguments([Unit((command,))])
    if command.kind == "advance":
        given[-2:] = [[installments], [interval]]
    row = await connection.fetchrow(QUERIES["post"], *given)
    ((answer,),) = answers(row, [Unit((command,))])
    return answer


class Desk:
    """A bench with words for advances."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def to_day(self, day: int) -> None:
        """Half past the day, counted from the first one."""
        offset = "make_interval(secs => $1) + interval '12 hours'"
        self.bench.execute(f"UPDATE ledgerd.settings SET clock_offset = {offset}", float(day * DAY_S))

    def request(self, account: int, amount: int, installments: int = 12, interval: int = 7, **members: Any) -> str:
        """The id of an advance, posted at midnight of the first day."""
        self.bench.execute("UPDATE ledgerd.settings SET clock_offset = '0'")
        command = self.bench.command("advance", credit=account, amount=amount, **members)
        answer = self.post(command, installments, interval)
        assert answer.posted, answer
        return command.transaction_id

    def post(self, command: Command, installments: int = 12, interval: int = 7) -> Answer:
        return self.bench.run(post(self.bench.daemon, command, installments, interval))

    def repayment(self, advance: str, amount: int | None, **members: Any) -> Command:
        return self.bench.command("advance_payment", debit=ABSENT, refers_to=advance, amount=amount, **members)

    def repay(self, advance: str, amount: int | None, **members: Any) -> Answer:
        return self.post(self.repayment(advance, amount, **members))

    def collect(self, limit: int = LIMIT) -> list[int]:
        """Collect all that is due; the amounts in the order in which they were collected."""
        collected: list[Any] = []
        while True:
            row = self.bench.run(self.bench.daemon.fetchrow(QUERIES["collect_due"], limit))
            assert len(row["collected"]) + row["failed"] <= limit
            collected += row["collected"]
            if not row["more"]:
                break
        amounts = {
            row["transaction_id"]: row["amount"]
            for row in self.bench.fetch(
                "SELECT transaction_id, amount FROM ledgerd.transactions WHERE transaction_id = ANY($1)", collected
            )
        }
        return [amounts[transaction_id] for transaction_id in collected]

    def stored(self, advance: str) -> Stored:
        (state,) = self.bench.fetch("SELECT * FROM ledgerd.advances WHERE advance_id = $1", advance)
        of_advance = "WHERE advance_id = $1 ORDER BY"
        payments = self.bench.fetch(f"SELECT * FROM ledgerd.advance_payments {of_advance} number", advance)
        events = self.bench.fetch(f"SELECT * FROM ledgerd.advance_events {of_advance} event", advance)
        assert [row["event"] for row in events] == list(range(1, len(events) + 1))
        times = [row["created_at"] for row in events]
        assert times == sorted(times)
        return Stored(
            state["outstanding"],
            [
                Payment(
                    row["number"],
                    (row["due_at"] - state["created_at"]).total_seconds() / DAY_S,
                    row["amount"],
                    row["rolled_over"],
                    row["paid"],
                    row["status"],
                    row["reason"],
                )
                for row in payments
            ],
            [Event(row["type"], row["number"], row["amount"], row["outstanding"], row["reason"]) for row in events],
        )

    def balance(self, account: int) -> int:
        return self.bench.stored_account(account).balance

    def assert_agrees(self, advance: str, model: Advance) -> None:
        assert model.faults() == []
        assert self.stored(advance) == Stored(model.outstanding, model.payments, model.events)
        queued = self.bench.value("SELECT count(*) FROM ledgerd.advance_queue WHERE advance_id = $1", advance)
        assert queued or not model.outstanding


@pytest.fixture
def desk(bench: Bench) -> Desk:
    return Desk(bench)


# -- the schedule -----------------------------------------------------------------------------------------------------


def test_a_hundred_is_four_payments_of_8_34_and_eight_of_8_33_the_first_a_week_later(desk: Desk) -> None:
    account = desk.bench.account()
    stored = desk.stored(desk.request(account, 10_000))

    assert [payment.amount for payment in stored.payments] == TWELVE_WEEKS
    assert [payment.due_at for payment in stored.payments] == [7 * week for week in range(1, 13)]
    assert {payment.status for payment in stored.payments} == {"not_due"}
    assert desk.balance(account) == 10_000
    assert stored.events == [Event("requested", None, 10_000, 10_000)]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(principal=st.integers(1, 10**15), installments=st.integers(1, 60), interval=st.integers(1, 366))
def test_payments_add_up_differ_by_at_most_one_and_the_larger_come_first(
    bench: Bench, principal: int, installments: int, interval: int
) -> None:
    desk = Desk(bench)
    principal = max(principal, installments)
    advance = desk.request(bench.account(), principal, installments, interval)
    amounts = [payment.amount for payment in desk.stored(advance).payments]

    assert sum(amounts) == principal
    assert max(amounts) - min(amounts) <= 1
    assert amounts == sorted(amounts, reverse=True)
    desk.assert_agrees(advance, Advance(principal, installments=installments, interval=interval))


def test_a_principal_that_not_every_payment_could_ask_a_part_of_is_refused(desk: Desk) -> None:
    account = desk.bench.account()
    answer = desk.post(desk.bench.command("advance", credit=account, amount=11))

    assert answer.code == ErrorCode.AMOUNT_OUT_OF_RANGE
    assert desk.bench.value("SELECT count(*) FROM ledgerd.advances") == 0
    assert desk.balance(account) == 0


def test_the_same_request_again_is_replayed_and_schedules_nothing(desk: Desk) -> None:
    account = desk.bench.account()
    advance = desk.request(account, 10_000)
    command = desk.bench.command("advance", credit=account, amount=10_000, transaction_id=advance)

    assert desk.post(again(command)).replayed
    assert desk.balance(account) == 10_000
    assert desk.bench.value("SELECT count(*) FROM ledgerd.advance_payments") == 12
    for installments, interval, mismatch in ((6, 7, ["installments"]), (12, 14, ["interval_days"])):
        answer = desk.post(again(command), installments, interval)
        assert (answer.code, answer.data) == (ErrorCode.TRANSACTION_ID_REUSED, {"mismatch": mismatch})


def test_the_states_and_events_of_the_database_are_those_of_the_table(bench: Bench) -> None:
    def checked(table: str, column: str) -> set[str]:
        text = bench.value(
            "SELECT pg_get_constraintdef(c.oid) FROM pg_constraint AS c INNER JOIN pg_attribute AS a "
            "ON a.attrelid = c.conrelid AND c.conkey = ARRAY[a.attnum] "
            "WHERE c.conrelid = $1::text::regclass AND c.contype = 'c' AND a.attname = $2",
            f"ledgerd.{table}",
            column,
        )
        return set(text.split("'")[1::2])

    assert checked("advance_payments", "status") == {state.status for state in PAYMENT_STATES}
    assert checked("advance_events", "type") == set(EVENTS)


# -- twelve weeks -----------------------------------------------------------------------------------------------------


def test_twelve_weeks_with_a_failure_in_the_third_and_one_in_the_twelfth(desk: Desk) -> None:
    bench = desk.bench
    account = bench.account()
    advance = desk.request(account, 10_000)
    bench.posted(bench.debit(account, 10_000 - 834 - 834))
    collected = []
    for week in range(1, 14):
        if week == 4:
            bench.posted(bench.credit(account, sum(TWELVE_WEEKS[2:11])))
        if week == 13:
            bench.posted(bench.credit(account, 833))
        desk.to_day(7 * week)
        collected.append(desk.collect())
        assert desk.collect() == []

    assert collected == [[834], [834], [], [834 + 834], *[[833]] * 7, [], [833]]
    stored = desk.stored(advance)
    assert stored.outstanding == desk.balance(account) == 0
    third, fourth, twelfth, thirteenth = (stored.payments[number - 1] for number in (3, 4, 12, 13))
    assert third == Payment(3, 21, 834, status="failed", reason="insufficient_funds")
    assert fourth == Payment(4, 28, 1_668, rolled_over=834, paid=1_668, status="paid")
    assert twelfth == Payment(12, 84, 833, status="failed", reason="insufficient_funds")
    assert thirteenth == Payment(13, 91, 833, rolled_over=833, paid=833, status="paid")
    assert [event.type for event in stored.events[:3]] == ["requested", "due", "paid"]
    assert [(event.type, event.number) for event in stored.events if event.number in (3, 4)] == [
        ("due", 3),
        ("failed", 3),
        ("rolled_over", 4),
        ("due", 4),
        ("paid", 4),
    ]
    assert stored.events[-1] == Event("completed", None, 833, 0)
    assert bench.value("SELECT count(*) FROM ledgerd.advance_queue") == 0
    desk.to_day(10_000)
    assert desk.collect() == []


def test_weeks_of_downtime_are_caught_up_in_order(desk: Desk) -> None:
    account = desk.bench.account()
    advance = desk.request(account, 10_000)
    desk.bench.posted(desk.bench.debit(account, 10_000 - 834 * 2 - 800))
    desk.to_day(7 * 5)
    # Nothing is there for the third, so all of what follows piles up on the sixth.
    assert desk.collect(limit=2) == [834, 834]

    payments = desk.stored(advance).payments
    assert [payment.status for payment in payments[:6]] == ["paid", "paid", "failed", "failed", "failed", "not_due"]
    assert payments[5].rolled_over == 834 + 834 + 833
    desk.bench.posted(desk.bench.credit(account, 10_000))
    desk.to_day(7 * 100)
    assert desk.collect(limit=1) == [834 + 834 + 833 + 833, *[833] * 6]
    assert desk.stored(advance).events[-1].type == "completed"


def test_an_account_that_stays_empty_for_years_is_asked_once_an_interval(desk: Desk) -> None:
    account = desk.bench.account()
    advance = desk.request(account, 100, 2, 1)
    desk.bench.posted(desk.bench.debit(account, 100))
    desk.to_day(400)
    assert desk.collect() == []

    payments = desk.stored(advance).payments
    assert [payment.number for payment in payments] == list(range(1, 402))
    assert (payments[-1].status, payments[-1].due_at, payments[-1].amount) == ("not_due", 401, 100)


# -- early repayment --------------------------------------------------------------------------------------------------


def test_early_repayment_pays_what_is_due_first_and_then_the_latest(desk: Desk) -> None:
    account = desk.bench.account()
    advance = desk.request(account, 1_200)
    model = Advance(1_200)
    # The second payment is due, but nobody has collected.
    desk.to_day(14)
    assert desk.repay(advance, 250).posted
    model.repay(250, 14.5)
    desk.assert_agrees(advance, model)

    paid = {payment.number: payment.paid for payment in desk.stored(advance).payments if payment.paid}
    assert paid == {1: 100, 2: 100, 12: 50}
    assert desk.collect() == []
    assert desk.repay(advance, 120).posted
    paid = {payment.number: payment.paid for payment in desk.stored(advance).payments if payment.paid}
    assert paid == {1: 100, 2: 100, 12: 100, 11: 70}
    assert desk.balance(account) == 1_200 - 370


def test_a_payment_that_was_partly_repaid_is_collected_for_its_rest_and_rolls_over_its_rest(desk: Desk) -> None:
    account = desk.bench.account()
    advance = desk.request(account, 300, 3)
    desk.bench.posted(desk.bench.debit(account, 300 - 40 - 100))
    desk.to_day(7)
    assert desk.repay(advance, 40).posted
    desk.bench.posted(desk.bench.debit(account, 100 - 59))
    assert desk.collect() == []

    first, second, _ = desk.stored(advance).payments
    assert (first.status, first.paid, second.amount, second.rolled_over) == ("failed", 40, 160, 60)
    desk.bench.posted(desk.bench.credit(account, 300))
    desk.to_day(21)
    assert desk.collect() == [160, 100]
    assert desk.stored(advance).outstanding == 0


def test_repayment_of_all_that_is_left_completes_the_advance_and_nothing_is_collected_any_more(desk: Desk) -> None:
    account = desk.bench.account()
    advance = desk.request(account, 10_000)
    command = desk.repayment(advance, None)
    assert desk.post(command).posted

    assert desk.stored(advance).outstanding == desk.balance(account) == 0
    assert desk.post(again(command)).replayed
    assert desk.repay(advance, None).code == ErrorCode.ADVANCE_NOT_ACTIVE
    assert desk.repay(advance, 1).code == ErrorCode.ADVANCE_NOT_ACTIVE
    desk.bench.posted(desk.bench.credit(account, 10_000))
    desk.to_day(1_000)
    assert desk.collect() == []
    assert desk.bench.value("SELECT count(*) FROM ledgerd.advance_queue") == 0


def test_more_than_is_outstanding_is_refused_and_says_how_much_that_is(desk: Desk) -> None:
    account = desk.bench.account(balance=5_000)
    advance = desk.request(account, 1_000)
    answer = desk.repay(advance, 1_001)

    assert (answer.code, answer.data) == (ErrorCode.AMOUNT_OUT_OF_RANGE, {"remaining": 1_000})
    assert desk.repay(advance, 1_000).posted


def test_an_account_with_a_running_advance_cannot_be_closed(desk: Desk) -> None:
    bench = desk.bench
    account = bench.account()
    advance = desk.request(account, 1_200)
    bench.posted(bench.debit(account, 1_200))
    assert bench.post(bench.shut(account)).code == ErrorCode.ACCOUNT_NOT_EMPTY

    bench.posted(bench.credit(account, 1_200))
    assert desk.repay(advance, None).posted
    assert bench.post(bench.shut(account)).posted


def test_a_stranger_cannot_repay_and_the_owner_can(desk: Desk) -> None:
    bench = desk.bench
    account, other = bench.account(), bench.account()
    advance = desk.request(account, 1_200)

    assert desk.repay(advance, 100, token_id=bench.token_of(other)).code == ErrorCode.REFERENCE_NOT_FOUND
    assert desk.repay(fresh_id(), 100).code == ErrorCode.REFERENCE_NOT_FOUND
    assert desk.repay(advance, 100, token_id=bench.token_of(account)).posted


# -- what is there to take --------------------------------------------------------------------------------------------


def test_the_overdraft_limit_is_not_collected_from(desk: Desk) -> None:
    account = desk.bench.account(limit=10_000)
    advance = desk.request(account, 1_200)
    desk.bench.posted(desk.bench.debit(account, 1_200 - 99))
    desk.to_day(7)

    assert desk.collect() == []
    assert desk.stored(advance).payments[0].status == "failed"
    assert desk.balance(account) == 99


def test_what_is_held_back_is_not_collected(desk: Desk) -> None:
    account = desk.bench.account()
    advance = desk.request(account, 1_200)
    desk.bench.posted(desk.bench.hold(account, 1_101, expires_in_s=30 * DAY_S))
    desk.to_day(7)

    assert desk.collect() == []
    assert desk.stored(advance).payments[0].status == "failed"
    assert desk.bench.stored_account(account).held == 1_101


@pytest.mark.parametrize("how", ["frozen", "disabled"])
def test_who_may_spend_nothing_still_pays_back_and_gets_no_new_advance(desk: Desk, how: str) -> None:
    account = desk.bench.account()
    desk.request(account, 1_200)
    if how == "frozen":
        desk.bench.posted(desk.bench.freeze(account))
    else:
        desk.bench.disable_owner(account)
    refused = desk.post(desk.bench.command("advance", credit=account, amount=1_200))
    assert refused.code == (ErrorCode.ACCOUNT_FROZEN if how == "frozen" else ErrorCode.USER_DISABLED)

    desk.to_day(7)
    assert desk.collect() == [100]
    assert desk.balance(account) == 1_100


def test_several_advances_of_an_account_share_what_is_there_in_the_order_of_their_requests(desk: Desk) -> None:
    bench = desk.bench
    account = bench.account()
    first, second = desk.request(account, 1_200), desk.request(account, 2_400)
    bench.posted(bench.debit(account, 3_600 - 250))
    desk.to_day(7)

    assert desk.collect() == [100]
    assert desk.stored(first).payments[0].status == "paid"
    assert desk.stored(second).payments[0].status == "failed"
    assert desk.balance(account) == 150


# -- collectors at the same time --------------------------------------------------------------------------------------


def test_collectors_at_the_same_time_take_each_payment_once(desk: Desk) -> None:
    bench = desk.bench
    advances = {desk.request(account, 1_200): account for account in [bench.account() for _ in range(20)]}
    desk.to_day(7 * 3)

    async def run(connection: asyncpg.Connection) -> int:
        taken = 0
        idle = 0
        while idle < 3:
            row = await connection.fetchrow(QUERIES["collect_due"], 4)
            taken += len(row["collected"])
            idle = 0 if row["collected"] else idle + 1
        return taken

    async def race() -> list[int]:
        connections = [await asyncpg.connect(bench.database.daemon_dsn) for _ in range(3)]
        try:
            return await asyncio.gather(*map(run, connections))
        finally:
            for connection in connections:
                await connection.close()

    assert sum(bench.run(race())) == 60
    for advance, account in advances.items():
        assert [payment.paid for payment in desk.stored(advance).payments[:4]] == [100, 100, 100, 0]
        assert desk.balance(account) == 900


def test_what_one_collector_is_at_another_passes_over_without_waiting(desk: Desk) -> None:
    bench = desk.bench
    one, other = bench.account(), bench.account()
    first, second = desk.request(one, 1_200), desk.request(other, 1_200)
    desk.to_day(7)

    async def race() -> None:
        connection = await asyncpg.connect(bench.database.daemon_dsn)
        try:
            async with bench.daemon.transaction():
                begun = await bench.daemon.fetchrow(QUERIES["collect_due"], 1)
                assert len(begun["collected"]) == 1
                row = await connection.fetchrow(QUERIES["collect_due"], 10)
                assert len(row["collected"]) == 1
                assert set(row["advances"]).isdisjoint(begun["advances"])
        finally:
            await connection.close()

    bench.run(race())
    assert {desk.stored(advance).payments[0].status for advance in (first, second)} == {"paid"}


def test_a_collector_that_dies_before_its_commit_has_done_nothing_and_the_next_does_it(desk: Desk) -> None:
    account = desk.bench.account()
    advance = desk.request(account, 1_200)
    desk.to_day(7)

    async def die() -> None:
        connection = await asyncpg.connect(desk.bench.database.daemon_dsn)
        transaction = connection.transaction()
        await transaction.start()
        await connection.fetchrow(QUERIES["collect_due"], LIMIT)
        connection.terminate()

    before = desk.stored(advance)
    desk.bench.run(die())
    assert desk.stored(advance) == before
    assert desk.balance(account) == 1_200
    desk.bench.run(_gone(desk.bench))
    assert desk.collect() == [100]


async def _gone(bench: Bench) -> None:
    """Until no other connection has a transaction open."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
        "AND xact_start IS NOT NULL AND backend_type = 'client backend'"
    )
    while await bench.owner.fetchval(query):
        pass


def test_a_collection_and_a_debit_of_the_same_money_do_not_both_get_it(desk: Desk) -> None:
    bench = desk.bench
    account = bench.account()
    advance = desk.request(account, 1_200)
    bench.posted(bench.debit(account, 1_100))
    desk.to_day(7)

    async def race() -> Any:
        connection = await asyncpg.connect(bench.database.daemon_dsn)
        try:
            async with bench.daemon.transaction():
                assert (await post(bench.daemon, bench.debit(account, 60))).posted
                waiter = asyncio.create_task(connection.fetchrow(QUERIES["collect_due"], LIMIT))
                await _waiting(bench, connection)
            return await waiter
        finally:
            await connection.close()

    row = bench.run(race())
    assert (list(row["collected"]), row["failed"]) == ([], 1)
    assert desk.stored(advance).payments[0].reason == "insufficient_funds"
    assert desk.balance(account) == 40


async def _waiting(bench: Bench, connection: asyncpg.Connection) -> None:
    query = "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND locktype = 'advisory' AND NOT granted)"
    while not await bench.owner.fetchval(query, connection.get_server_pid()):
        pass


def test_a_collection_that_waits_too_long_for_an_account_is_a_lost_race_and_nothing_more(desk: Desk) -> None:
    bench = desk.bench
    account = bench.account()
    advance = desk.request(account, 1_200)
    desk.to_day(7)

    async def race() -> BaseException:
        connection = await asyncpg.connect(bench.database.daemon_dsn)
        await connection.execute("SET lock_timeout = '50ms'")
        try:
            async with bench.daemon.transaction():
                assert (await post(bench.daemon, bench.debit(account, 60))).posted
                with pytest.raises(asyncpg.PostgresError) as lost:
                    await connection.fetchrow(QUERIES["collect_due"], LIMIT)
                return lost.value
        finally:
            await connection.close()

    assert classify(bench.run(race())) is Failure.RERUN
    assert desk.collect() == [100]
    assert desk.stored(advance).payments[0].status == "paid"


# -- every history ----------------------------------------------------------------------------------------------------


class Step(Struct, frozen=True):
    """What happens on one day: money comes or goes, a part is repaid, and perhaps somebody collects."""

    days: int
    change: int
    repay: int
    collect: bool


steps = st.lists(
    st.builds(
        Step,
        days=st.integers(0, 30),
        change=st.integers(-400, 400),
        repay=st.one_of(st.just(0), st.integers(1, 500)),
        collect=st.booleans(),
    ),
    max_size=12,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    principal=st.integers(1, 2_000),
    installments=st.integers(1, 14),
    interval=st.integers(1, 10),
    history=steps,
    limit=st.integers(1, 5),
)
def test_the_database_and_the_rules_agree_about_every_history(
    bench: Bench, principal: int, installments: int, interval: int, history: list[Step], limit: int
) -> None:
    desk = Desk(bench)
    principal = max(principal, installments)
    bench.execute("UPDATE ledgerd.settings SET clock_offset = '0'")
    bench.execute("TRUNCATE ledgerd.advance_queue, ledgerd.advance_events, ledgerd.advance_payments, ledgerd.advances")
    account = bench.account()
    advance = desk.request(account, principal, installments, interval)
    model = Advance(principal, installments=installments, interval=interval)
    day, balance = 0, principal

    def take(amount: int) -> bool:
        nonlocal balance
        if balance < amount:
            return False
        balance -= amount
        return True

    for step in history:
        day += step.days
        desk.to_day(day)
        change = max(step.change, -balance)
        if change:
            bench.posted(bench.credit(account, change) if change > 0 else bench.debit(account, -change))
            balance += change
        repaid = min(step.repay, model.outstanding, balance)
        if repaid:
            assert desk.repay(advance, repaid).posted
            assert take(repaid)
            model.repay(repaid, day + 0.5)
        if step.collect:
            assert desk.collect(limit) == model.collect(day + 0.5, take)
        desk.assert_agrees(advance, model)
        assert desk.balance(account) == balance
