"""Monitors in the database: set once, counted in the order of commits, kept when they are removed."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from ledgerd.engine.states import MonitorState
from ledgerd.storage.queries import QUERIES
from ledgerd_protocol.errors import ErrorCode, LedgerError
from tests.conftest import Database
from tests.storage.bench import Bench
from tests.storage.desk import Desk, open_desk, posted


async def set_one(desk: Desk, account_id: int, *, by: int = 0, **members: Any) -> MonitorState:
    asked = {"direction": "below", "amount": 500, "label": None, "per_account_max": 32} | members
    return await desk.books.set_monitor(account_id=account_id, token_id=by, **asked)


async def since(desk: Desk, revision: int, limit: int = 100, *, removed: bool = True) -> list[MonitorState]:
    return await desk.books.monitors_since(revision, limit, removed=removed)


async def test_a_monitor_has_what_is_needed_to_show_it_and_the_version_it_looks_after(database: Database) -> None:
    async with open_desk(database) as desk:
        account = await desk.account(balance=1_000, currency="JPY")
        user = await desk.principal("user", user_id=account.user_id)
        made = await set_one(desk, account.account_id, by=user.token_id, direction="above", label="rich")
        assert made == MonitorState(
            monitor_id=1,
            account_id=account.account_id,
            user_id=account.user_id,
            currency="JPY",
            scale=2,
            direction="above",
            amount=500,
            after_version=1,
            label="rich",
            set_by=account.user_id,
            created_at=made.created_at,
            removed=False,
            revision=1,
        )
        assert await desk.books.monitor(1) == made
        assert await desk.books.monitor(2) is None
        posted(await desk.post(desk.debit(account, 1)))
        assert (await set_one(desk, account.account_id, amount=0)).after_version == 2


async def test_the_same_monitor_is_set_once_and_again_after_it_was_removed(database: Database) -> None:
    async with open_desk(database) as desk:
        account = (await desk.account()).account_id
        made = await set_one(desk, account)
        with pytest.raises(LedgerError) as refused:
            await set_one(desk, account)
        assert refused.value.code is ErrorCode.ALREADY_EXISTS
        assert refused.value.data["monitor_id"] == made.monitor_id
        removed = await desk.books.remove_monitor(made.monitor_id)
        assert removed is not None
        assert removed.removed
        assert await desk.books.remove_monitor(made.monitor_id) is None
        assert await desk.books.remove_monitor(999) is None
        assert (await set_one(desk, account)).monitor_id > made.monitor_id


async def test_an_account_has_so_many_and_one_that_is_not_there_has_none(database: Database) -> None:
    async with open_desk(database) as desk:
        account = (await desk.account()).account_id
        for amount in (1, 2):
            await set_one(desk, account, amount=amount, per_account_max=2)
        with pytest.raises(LedgerError) as refused:
            await set_one(desk, account, amount=3, per_account_max=2)
        assert refused.value.code is ErrorCode.LIMIT_EXCEEDED
        with pytest.raises(LedgerError) as refused:
            await set_one(desk, 999)
        assert refused.value.code is ErrorCode.NOT_FOUND


async def test_monitors_are_listed_by_user_by_account_and_all_without_those_removed(database: Database) -> None:
    async with open_desk(database) as desk:
        one, other = await desk.account(), await desk.account()
        first, second, third = [
            (await set_one(desk, account.account_id, amount=amount)).monitor_id
            for amount, account in enumerate((one, other, one))
        ]
        books = desk.books

        async def listed(*asked: Any) -> list[int]:
            return [state.monitor_id for state in await books.monitors(*asked)]

        assert await listed(None, None, 0, 100) == [first, second, third]
        assert await listed(None, None, first, 1) == [second]
        assert await listed(one.user_id, None, 0, 100) == [first, third]
        assert await listed(None, other.account_id, 0, 100) == [second]
        assert await listed(one.user_id, other.account_id, 0, 100) == []
        await books.remove_monitor(first)
        assert await listed(None, None, 0, 100) == [second, third]


async def test_what_changed_since_a_revision_is_told_page_by_page_and_what_is_removed_when_asked(
    database: Database,
) -> None:
    async with open_desk(database) as desk:
        account = (await desk.account()).account_id
        made = [await set_one(desk, account, amount=amount) for amount in range(5)]
        await desk.books.remove_monitor(made[1].monitor_id)
        page = await since(desk, 0, 3)
        assert [state.monitor_id for state in page] == [made[0].monitor_id, made[2].monitor_id, made[3].monitor_id]
        (kept, gone) = await since(desk, page[-1].revision, 3)
        assert (kept.monitor_id, kept.removed) == (made[4].monitor_id, False)
        assert (gone.monitor_id, gone.removed) == (made[1].monitor_id, True)
        assert await since(desk, gone.revision) == []
        assert [state.removed for state in await since(desk, 0, removed=False)] == [False] * 4


def test_nobody_sees_a_revision_before_a_lower_one(bench: Bench) -> None:
    """Whoever asks for what is new since the last one it saw would otherwise miss one that commits late."""
    accounts = [bench.account(), bench.account()]

    async def race() -> None:
        first, second = [await asyncpg.connect(bench.database.daemon_dsn) for _ in range(2)]
        try:
            slow = first.transaction()
            await slow.start()
            await first.fetchrow(QUERIES["set_monitor"], accounts[0], "below", 1, None, 0, 32)
            quick = asyncio.create_task(second.fetchrow(QUERIES["set_monitor"], accounts[1], "below", 1, None, 0, 32))
            pid = second.get_server_pid()
            waiting = "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND NOT granted)"
            while not await bench.owner.fetchval(waiting, pid):
                pass
            assert await bench.daemon.fetch(QUERIES["monitors_since"], 0, 10, True) == []
            await slow.commit()
            await quick
        finally:
            for connection in (first, second):
                await connection.close()

    bench.run(race())
    rows = bench.fetch("SELECT account_id, revision FROM ledgerd.monitors ORDER BY revision")
    assert [tuple(row) for row in rows] == [(accounts[0], 1), (accounts[1], 2)]


@pytest.mark.parametrize(("direction", "amount"), [("below", -1), ("below", 10**18), ("sideways", 1)])
def test_what_the_gateway_would_refuse_does_not_get_into_the_table(bench: Bench, direction: str, amount: int) -> None:
    account = bench.account()
    with pytest.raises(asyncpg.CheckViolationError):
        bench.run(bench.daemon.fetchrow(QUERIES["set_monitor"], account, direction, amount, None, 0, 32))


def test_a_change_of_an_account_waits_for_nobody_who_sets_a_monitor_on_it(bench: Bench) -> None:
    account = bench.account(balance=5)

    async def race() -> None:
        setter = await asyncpg.connect(bench.database.daemon_dsn)
        try:
            async with setter.transaction():
                await setter.fetchrow(QUERIES["set_monitor"], account, "below", 1, None, 0, 32)
                await bench.owner.execute("SET lock_timeout = '2s'")
                await bench.owner.execute("UPDATE ledgerd.accounts SET balance = 4 WHERE account_id = $1", account)
        finally:
            await setter.close()

    bench.run(race())
