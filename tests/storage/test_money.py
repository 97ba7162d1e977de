"""Versions, balances, limits and the outside world."""

from __future__ import annotations

import asyncpg
import pytest

from ledgerd.storage.queries import QUERIES
from ledgerd_protocol.errors import ErrorCode
from ledgerd_protocol.money import MINOR_MAX
from tests.model import ABSENT, After, Refusal, Unit, audit
from tests.storage.bench import Bench, arguments, fresh_id


def test_versions_count_every_change_without_a_hole_within_a_call_and_across_calls(bench: Bench) -> None:
    one, two = bench.account(), bench.account()
    versions: list[int] = []
    for _ in range(3):
        answers = bench.post_all(
            bench.credit(one, 10), bench.debit(one, 100), bench.transfer(one, two, 3), bench.limit(one, 5)
        )
        versions += [after.version for answer in answers for after in (answer.debit or answer.credit,) if after]

    assert versions == list(range(1, 10))
    assert (bench.stored_account(one).version, bench.stored_account(two).version) == (9, 3)
    assert audit(bench.stored_accounts(), bench.stored_transactions().values()) == []


def test_both_sides_of_a_transfer_take_a_version_and_show_their_balance_after_it(bench: Bench) -> None:
    one, two = bench.account(balance=100), bench.account(limit=7)
    answer = bench.post(bench.transfer(one, two, 30))

    assert answer.debit == After(version=2, balance=70, held=0, available=70)
    assert answer.credit == After(version=2, balance=30, held=0, available=37)


def test_commands_of_one_call_see_those_before_them(bench: Bench) -> None:
    one, two = bench.account(), bench.account()
    refused, credited, moved, spent = bench.post_all(
        bench.transfer(one, two, 10), bench.credit(one, 10), bench.transfer(one, two, 10), bench.debit(two, 10)
    )

    assert refused.code == ErrorCode.INSUFFICIENT_FUNDS
    assert (credited.posted, moved.posted, spent.posted) == (True, True, True)


def test_a_hot_account_is_written_once_however_many_commands_touch_it(bench: Bench) -> None:
    account = bench.account()
    units = [Unit((bench.credit(account, 1),)) for _ in range(100)]

    async def updates_of_one_call() -> int:
        async with bench.owner.transaction():
            await bench.owner.fetchrow(QUERIES["post"], *arguments(units))
            count = "SELECT n_tup_upd FROM pg_stat_xact_user_tables WHERE relid = 'ledgerd.accounts'::regclass"
            return int(await bench.owner.fetchval(count))

    assert bench.run(updates_of_one_call()) == 1
    assert bench.stored_account(account).version == 100


def test_funds_are_what_is_available_the_limit_included(bench: Bench) -> None:
    account = bench.account(balance=10, limit=5)

    refused = bench.post(bench.debit(account, 16))
    assert refused.refusal == Refusal(ErrorCode.INSUFFICIENT_FUNDS, {"available": 15, "requested": 16, "version": 2})
    assert bench.post(bench.debit(account, 15)).debit == After(version=3, balance=-5, held=0, available=0)


def test_what_is_held_cannot_be_spent(bench: Bench) -> None:
    account = bench.account(balance=10)
    bench.execute("UPDATE ledgerd.accounts SET held = 4 WHERE account_id = $1", account)

    assert bench.post(bench.debit(account, 7)).data == {"available": 6, "requested": 7, "version": 1}
    assert bench.post(bench.debit(account, 6)).debit == After(version=2, balance=4, held=4, available=0)


def test_setting_a_limit_takes_a_version_and_moves_no_money(bench: Bench) -> None:
    account = bench.account(balance=10)
    limit = bench.limit(account, 90)

    assert bench.post(limit).debit == After(version=2, balance=10, held=0, available=100)
    (entry,) = bench.fetch("SELECT * FROM ledgerd.entries WHERE transaction_id = $1", limit.transaction_id)
    assert (entry["balance_change"], entry["held_change"], entry["version"]) == (0, 0, 2)


def test_a_limit_that_would_make_available_negative_is_refused(bench: Bench) -> None:
    account = bench.account(limit=5)
    bench.post(bench.debit(account, 5))

    assert bench.post(bench.limit(account, 4)).refusal == Refusal(ErrorCode.LIMIT_EXCEEDED)
    assert bench.post(bench.limit(account, 5)).posted
    bench.post(bench.credit(account, 5))
    assert bench.post(bench.limit(account, 0)).posted


def test_amounts_at_the_edge_of_the_range(bench: Bench) -> None:
    account = bench.account()
    assert bench.post(bench.credit(account, MINOR_MAX + 1)).code == ErrorCode.AMOUNT_OUT_OF_RANGE
    assert bench.post(bench.credit(account, 0)).code == ErrorCode.AMOUNT_OUT_OF_RANGE
    assert bench.post(bench.credit(account, -1)).code == ErrorCode.AMOUNT_OUT_OF_RANGE
    assert bench.post(bench.credit(account, MINOR_MAX)).posted
    assert bench.post(bench.credit(account, 1)).refusal == Refusal(ErrorCode.LIMIT_EXCEEDED)
    assert bench.stored_account(account).balance == MINOR_MAX


def test_the_deepest_overdraft_is_as_deep_as_the_highest_balance_is_high(bench: Bench) -> None:
    account = bench.account(limit=MINOR_MAX)
    answer = bench.post(bench.debit(account, MINOR_MAX))

    assert answer.debit == After(version=2, balance=-MINOR_MAX, held=0, available=0)
    assert bench.post(bench.debit(account, 1)).code == ErrorCode.INSUFFICIENT_FUNDS


def test_a_full_account_with_a_full_limit_has_twice_the_most_available(bench: Bench) -> None:
    account = bench.account(balance=MINOR_MAX)
    assert bench.post(bench.limit(account, MINOR_MAX)).debit == After(2, MINOR_MAX, 0, 2 * MINOR_MAX)


def test_the_world_is_what_the_accounts_are_not(bench: Bench) -> None:
    one, two, euros = bench.account(limit=50), bench.account(), bench.account(currency="EUR")
    bench.post_all(
        bench.credit(one, 100),
        bench.transfer(one, two, 130),
        bench.debit(two, 25),
        bench.credit(euros, 7),
        bench.limit(one, 60),
        bench.cancel(one, fresh_id()),
    )
    rows = bench.fetch(
        "SELECT c.currency, -sum(e.balance_change) AS outside, "
        "(SELECT sum(a.balance) FROM ledgerd.accounts AS a WHERE a.currency = c.currency) AS inside "
        "FROM ledgerd.currencies AS c "
        "INNER JOIN ledgerd.entries AS e ON e.account_id = c.world_account GROUP BY c.currency"
    )
    assert {row["currency"]: (row["outside"], row["inside"]) for row in rows} == {"USD": (75, 75), "EUR": (7, 7)}


def test_credit_and_debit_have_the_world_of_their_currency_on_the_other_side(bench: Bench) -> None:
    dollars, euros = bench.account(), bench.account(currency="EUR")
    worlds = {row["currency"]: row["world_account"] for row in bench.fetch("SELECT * FROM ledgerd.currencies")}
    incoming, outgoing = bench.credit(euros, 5), bench.debit(dollars, 5)
    bench.post_all(incoming, bench.credit(dollars, 5), outgoing)

    sides = {
        str(row["transaction_id"]): (row["debit_account"], row["credit_account"])
        for row in bench.fetch("SELECT * FROM ledgerd.transactions")
    }
    assert sides[incoming.transaction_id] == (worlds["EUR"], euros)
    assert sides[outgoing.transaction_id] == (dollars, worlds["USD"])


def test_an_empty_call_is_answered_with_nothing(bench: Bench) -> None:
    assert bench.call([]) == []


def test_a_call_that_only_names_absent_accounts_refuses_each(bench: Bench) -> None:
    answers = bench.post_all(bench.credit(ABSENT, 1), bench.debit(ABSENT, 1), bench.transfer(ABSENT, ABSENT, 1))
    assert [answer.code for answer in answers] == [ErrorCode.NOT_FOUND] * 3


def test_a_thousand_commands_over_many_accounts_are_one_call(bench: Bench) -> None:
    accounts = [bench.account() for _ in range(40)]
    commands = [bench.credit(account, 10_000) for account in accounts]
    commands += [bench.transfer(accounts[i % 40], accounts[(i * 7 + 1) % 40], i + 1) for i in range(960)]
    answers = bench.post_all(*commands)

    assert all(answer.posted or answer.code == ErrorCode.SAME_ACCOUNT for answer in answers)
    assert bench.value("SELECT count(DISTINCT xact) FROM ledgerd.transactions") == 1
    assert audit(bench.stored_accounts(), bench.stored_transactions().values()) == []


# -- what the tables themselves refuse, should the kernel ever be wrong -----------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "balance = -1",
        f"balance = {MINOR_MAX + 1}",
        "held = 11",
        "held = -1",
        "overdraft_limit = -1",
        "status = 'sleeping'",
        "version = -1",
    ],
)
def test_the_accounts_table_refuses_an_impossible_account(bench: Bench, change: str) -> None:
    account = bench.account(balance=10)
    with pytest.raises(asyncpg.CheckViolationError):
        bench.execute(f"UPDATE ledgerd.accounts SET {change} WHERE account_id = $1", account)


@pytest.mark.parametrize(
    "change",
    [
        "credit_account = debit_account",
        "debit_account = -1, credit_account = -2",
        "amount = -1",
        f"amount = {MINOR_MAX + 1}",
    ],
)
def test_the_transactions_table_refuses_an_impossible_transaction(bench: Bench, change: str) -> None:
    bench.account(balance=10)
    with pytest.raises(asyncpg.CheckViolationError):
        bench.execute(f"UPDATE ledgerd.transactions SET {change}")


def test_an_account_has_one_transaction_per_version_and_side(bench: Bench) -> None:
    account = bench.account(balance=10)
    bench.post(bench.credit(account, 1))
    with pytest.raises(asyncpg.UniqueViolationError):
        bench.execute("UPDATE ledgerd.transactions SET credit_version = 1 WHERE credit_account = $1", account)


def test_a_currencys_scale_never_changes(bench: Bench) -> None:
    bench.account()
    with pytest.raises(asyncpg.PostgresError) as refused:
        bench.value("SELECT ledgerd.open_account($1, 'USD', 3)", bench.user())
    assert refused.value.sqlstate == "LD002"
    assert bench.value("SELECT scale FROM ledgerd.currencies WHERE currency = 'USD'") == 2


@pytest.mark.parametrize("kind", ["bonus", "entry"])
def test_a_kind_that_the_kernel_does_not_post_leaves_nothing_of_its_call(bench: Bench, kind: str) -> None:
    account = bench.account()
    before = bench.state()
    with pytest.raises(asyncpg.FeatureNotSupportedError):
        bench.call([Unit((bench.credit(account, 1),)), Unit((bench.command(kind, debit=account, amount=0),))])
    assert bench.state() == before
