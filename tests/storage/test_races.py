"""Calls that run at the same time, on real connections."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from ledgerd.storage.failures import FENCE, Failure, classify
from ledgerd.storage.queries import QUERIES
from ledgerd_protocol.errors import ErrorCode
from tests.model import Command, audit
from tests.storage.bench import Answer, Bench, fresh_id
from tests.storage.racing import lanes, post, until_waiting


def test_a_call_that_waited_for_the_lock_sees_the_balance_from_after_the_wait(bench: Bench) -> None:
    account = bench.account(balance=100)

    async def race() -> Answer:
        async with lanes(bench, 2) as (first, second):
            transaction = first.transaction()
            await transaction.start()
            (spent,) = await post(first, bench.debit(account, 80))
            assert spent.posted
            waiter = asyncio.create_task(post(second, bench.debit(account, 50)))
            await until_waiting(bench, second, for_="advisory")
            await transaction.commit()
            (answer,) = await waiter
            return answer

    answer = bench.run(race())
    assert answer.code == ErrorCode.INSUFFICIENT_FUNDS
    assert answer.data == {"available": 20, "requested": 50, "version": 2}


def test_a_call_that_waited_for_one_that_failed_sees_the_balance_from_before_it(bench: Bench) -> None:
    account = bench.account(balance=100)

    async def race() -> Answer:
        async with lanes(bench, 2) as (first, second):
            transaction = first.transaction()
            await transaction.start()
            await post(first, bench.debit(account, 80))
            waiter = asyncio.create_task(post(second, bench.debit(account, 50)))
            await until_waiting(bench, second, for_="advisory")
            await transaction.rollback()
            (answer,) = await waiter
            return answer

    answer = bench.run(race())
    assert answer.debit is not None
    assert (answer.debit.version, answer.debit.balance) == (2, 50)


def test_calls_on_different_accounts_do_not_wait_for_each_other(bench: Bench) -> None:
    one, two = bench.account(balance=100), bench.account(balance=100)

    async def race() -> Answer:
        async with lanes(bench, 2) as (first, second):
            transaction = first.transaction()
            await transaction.start()
            await post(first, bench.debit(one, 80))
            (answer,) = await post(second, bench.debit(two, 50))
            await transaction.rollback()
            return answer

    assert bench.run(race()).posted


def test_one_id_on_two_accounts_in_two_lanes_is_posted_once_and_the_other_sees_it(bench: Bench) -> None:
    one, two = bench.account(), bench.account()
    transaction_id = fresh_id()

    async def race() -> tuple[BaseException, Answer]:
        async with lanes(bench, 2) as (first, second):
            transaction = first.transaction()
            await transaction.start()
            await post(first, bench.credit(one, 5, transaction_id=transaction_id))
            other = bench.credit(two, 5, transaction_id=transaction_id)
            waiter = asyncio.create_task(post(second, other))
            await until_waiting(bench, second, for_="transactionid")
            await transaction.commit()
            with pytest.raises(asyncpg.UniqueViolationError) as lost:
                await waiter
            (answer,) = await post(second, other)
            return lost.value, answer

    lost, answer = bench.run(race())
    assert classify(lost) is Failure.RERUN
    assert answer.code == ErrorCode.TRANSACTION_ID_REUSED
    assert answer.data == {"mismatch": ["credit_account_id"]}
    assert (bench.stored_account(one).balance, bench.stored_account(two).balance) == (5, 0)


def test_the_same_command_in_two_lanes_is_posted_once_and_replayed_once(bench: Bench) -> None:
    account = bench.account()
    command = bench.credit(account, 5)

    async def race() -> list[Answer]:
        async with lanes(bench, 2) as (first, second):
            both = await asyncio.gather(post(first, command), post(second, command))
            return [answer for (answer,) in both]

    assert sorted(answer.code for answer in bench.run(race()) if answer.code is not None) == [0, 1]
    assert bench.stored_account(account).balance == 5


def test_lanes_that_transfer_both_ways_between_the_same_accounts_do_not_deadlock(bench: Bench) -> None:
    accounts = [bench.account(balance=1_000) for _ in range(6)]
    rounds, width = 40, len(accounts)

    def commands(lane: int, number: int) -> list[Command]:
        # Each lane names the accounts in another order.
        order = accounts[lane:] + accounts[:lane]
        if (lane + number) % 2:
            order.reverse()
        return [bench.transfer(order[i], order[(i + 1) % width], 1 + lane) for i in range(width)]

    async def run_lane(connection: asyncpg.Connection, lane: int) -> None:
        for number in range(rounds):
            for answer in await post(connection, *commands(lane, number)):
                assert answer.posted

    async def race() -> None:
        async with lanes(bench, 3) as connections:
            await asyncio.gather(*(run_lane(connection, lane) for lane, connection in enumerate(connections)))

    bench.run(race())
    stored = bench.stored_accounts()
    assert sum(account.balance for account in stored.values()) == 6_000
    assert sum(account.version for account in stored.values()) == 6 + 3 * rounds * width * 2
    assert audit(stored, bench.stored_transactions().values()) == []


def test_the_fence_stops_a_call_whose_account_moved_behind_its_lock(bench: Bench) -> None:
    account = bench.account(balance=100)

    async def race() -> asyncpg.PostgresError:
        async with lanes(bench, 1) as (lane,):
            thief = bench.owner.transaction()
            await thief.start()
            await bench.owner.execute(
                "UPDATE ledgerd.accounts SET version = version + 1 WHERE account_id = $1", account
            )
            caller = asyncio.create_task(post(lane, bench.debit(account, 80)))
            await until_waiting(bench, lane, for_="transactionid")
            await thief.commit()
            with pytest.raises(asyncpg.PostgresError) as stopped:
                await caller
            return stopped.value

    stopped = bench.run(race())
    assert stopped.sqlstate == FENCE == "LD001"
    assert classify(stopped) is Failure.RERUN
    assert bench.value("SELECT count(*) FROM ledgerd.transactions WHERE debit_account = $1", account) == 0
    assert bench.stored_account(account).balance == 100


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
def test_a_call_in_any_isolation_but_read_committed_is_refused(bench: Bench, isolation: str) -> None:
    account = bench.account(balance=100)

    async def call() -> None:
        async with bench.daemon.transaction(isolation=isolation):
            await post(bench.daemon, bench.debit(account, 1))

    with pytest.raises(asyncpg.RaiseError, match="READ COMMITTED"):
        bench.run(call())
    assert bench.stored_account(account).version == 1


# -- what is locked ---------------------------------------------------------------------------------------------------


def _advisory_keys(bench: Bench, *commands: Command) -> set[int]:
    """Keys that a call holds before it commits."""

    async def work() -> set[int]:
        async with bench.daemon.transaction():
            await post(bench.daemon, *commands)
            rows = await bench.owner.fetch(
                "SELECT (classid::bigint << 32) | objid::bigint AS key FROM pg_locks "
                "WHERE locktype = 'advisory' AND objsubid = 1 AND granted AND pid = $1",
                bench.daemon.get_server_pid(),
            )
            return {row["key"] for row in rows}

    return bench.run(work())


def test_a_call_locks_each_account_once_in_the_deployments_own_space_and_never_the_world(bench: Bench) -> None:
    one, two, three = bench.account(balance=5), bench.account(), bench.account()
    deployment = bench.value("SELECT deployment FROM ledgerd.settings")
    keys = _advisory_keys(
        bench, bench.credit(one, 1), bench.transfer(one, two, 1), bench.debit(one, 1), bench.debit(three, 1)
    )

    assert keys == {(deployment << 48) | account for account in (one, two, three)}


def test_no_lock_outlives_its_call(bench: Bench) -> None:
    account = bench.account(balance=5)
    bench.post_all(bench.debit(account, 1), bench.debit(account, 100))

    assert bench.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


NOW = datetime.now(UTC)
ACCOUNT = USER = 1
"""The first of a fresh database."""

READS: dict[str, tuple[Any, ...]] = {
    "currencies": (),
    "applied_migrations": (),
    "find_accounts": ([ACCOUNT, None], [None, USER], ["USD", "USD"], [None, None], [None, None], [None, None]),
    "expired_holds": (100,),
    "account_states": ([ACCOUNT],),
    "heads": ([ACCOUNT],),
    "accounts": (None, 0, 100),
    "history": (ACCOUNT, 0, 100),
    "transactions_oldest_first": (ACCOUNT, None, 100, None, None, None, None, None, 100),
    "transactions_newest_first": (ACCOUNT, None, 100, None, None, None, None, None, 100),
    "report": ([ACCOUNT], False, 1, USER, None, NOW, NOW, fresh_id(), True, "1:1:", None, 100, 100),
    "report_total": ([ACCOUNT], False, 1, USER, None, NOW, NOW, None),
    "records": ([fresh_id()],),
    "present_record": (fresh_id(),),
    "attempts": (fresh_id(), True, None),
    "user": (1,),
    "users": (0, 100),
    "token": (1,),
    "tokens": (None, 0, 100),
    "token_id_by_hash": (b"x" * 32,),
    "login_material": ("a@example.com",),
    "unknown_accounts": ([USER], [], 100),
    "snapshot": (),
    "committed_since": ("1:1:", 100),
    "committed_before": ([fresh_id()], "1", "100"),
    "version_at": (ACCOUNT, NOW),
    "revoked_tokens": ([1],),
    "monitor": (1,),
    "monitors": (USER, ACCOUNT, 0, 100),
    "monitors_since": (0, 100, True),
    "wallet_unit": (),
    "alive": (),
    "processes": ([1],),
    "end_processes": ([1], [NOW]),
    "advance_states": ([fresh_id()], 100, 100),
    "advances": (ACCOUNT, None, None, None, 100),
    "advance_heads": ([ACCOUNT], [fresh_id()], False),
    "advance_events": (fresh_id(), 0, 100),
    "advance_events_since": ("1:1:", 100),
}
WRITES: dict[str, tuple[Any, ...]] = {
    "begin_serving": (False, None, None, None, None),
    "register_user": ("n", "a@example.com", None, "USD", 2, b"y" * 32, ["user"], None),
    "open_account": (1, "EUR", 2),
    "create_token": (b"z" * 32, 1, ACCOUNT, ["user"], None, None),
    "revoke_tokens": (None, 1),
    "take_password_try": ("a@example.com", "127.0.0.1", 30),
    "return_password_try": ("a@example.com", "127.0.0.1", 30),
    "open_session": (b"y" * 32, 1, "h", ["user"], None),
    "change_password": (1, "h", "g", 1),
    "update_user": (1, "m", "b@example.com"),
    "set_monitor": (ACCOUNT, "below", 100, None, 0, 32),
    "remove_monitor": (1,),
}


LIKE_THE_KERNEL = {"post", "set_user_status", "collect_due", "create_wallet_users"}
"""These take the accounts' locks themselves."""


def test_every_query_but_the_kernels_is_looked_at_here() -> None:
    assert LIKE_THE_KERNEL | READS.keys() | WRITES.keys() == QUERIES.keys()


@pytest.mark.parametrize("query", [*READS, *WRITES])
def test_nothing_but_the_kernel_keeps_the_kernel_waiting(bench: Bench, query: str) -> None:
    assert bench.account(balance=5) == ACCOUNT
    values = (READS | WRITES)[query]
    # A read leaves the row free for everybody; a foreign key's check for everybody who leaves the key alone.
    free = "FOR UPDATE" if query in READS else "FOR NO KEY UPDATE"

    async def work() -> tuple[int, int]:
        async with bench.daemon.transaction():
            await bench.daemon.fetch(QUERIES[query], *values)
            async with bench.owner.transaction():
                rows = await bench.owner.fetch(f"SELECT 1 FROM ledgerd.accounts {free} SKIP LOCKED")
            locks = await bench.owner.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
            return len(rows), locks

    accounts = bench.value("SELECT count(*) FROM ledgerd.accounts")
    assert bench.run(work()) == (accounts, 0)
