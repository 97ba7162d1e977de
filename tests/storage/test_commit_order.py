"""Every transaction in the order of commits: nothing skipped, nothing twice, and nobody waits for anybody."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import asyncpg
import pytest
import trio

from ledgerd.engine.commands import ActorInfo, Record, Side
from ledgerd.engine.states import AccountState, Place
from ledgerd.storage.commit_order import Snapshot, in_order, low_water, page_end, parse
from ledgerd.storage.queries import QUERIES
from tests.conftest import Database
from tests.storage.desk import Desk, open_desk, register, unit

ALL = 1_000


# -- places -----------------------------------------------------------------------------------------------------------


def test_a_snapshot_is_read_and_written_as_postgres_does() -> None:
    for text in ("10:20:10,14,15", "10:10:"):
        assert parse(text).text == text
    assert parse("10:20:10,14,15").place == Place("10:20:10,14,15", "10")


@pytest.mark.parametrize("text", ["", "x", "-1", "0", "01", "1:1:", "1.0", "\u0663", "9" * 19, " 1", "1\n"])
def test_what_is_no_position_is_none(text: str) -> None:
    assert low_water(text) is None


def finished(snapshot: Snapshot) -> set[int]:
    return {
        number
        for number in range(1, 60)
        if number < snapshot.lowest or (number < snapshot.next and number not in snapshot.unfinished)
    }


@pytest.mark.parametrize("seed", range(50))
def test_the_end_of_a_page_is_what_was_read_and_nothing_else(seed: int) -> None:
    random = Random(seed)
    before = set(random.sample(range(1, 25), 12)) | set(range(1, 8))
    after = before | set(random.sample(range(1, 50), 25))

    def snapshot(done: set[int]) -> Snapshot:
        following = max(done) + 1
        unfinished = tuple(number for number in range(1, following) if number not in done)
        return Snapshot(unfinished[0] if unfinished else following, following, unfinished)

    last = random.choice(sorted(after - before))
    end = page_end(snapshot(before), snapshot(after), last)
    assert finished(end) == before | {number for number in after if number <= last}
    assert list(end.unfinished) == sorted(end.unfinished)
    assert end.lowest == min([*end.unfinished, end.next])


def record(name: str, *sides: tuple[int, int]) -> Record:
    made = tuple(Side(account, 1, "debit", version, 0, 0, 0, 0, 0) for account, version in sides)
    actor = ActorInfo(1, None, ())
    return Record(name, "transfer", "posted", 1, "USD", 2, 1, 2, made, None, None, None, "then", actor)


@pytest.mark.parametrize("seed", range(30))
def test_records_in_any_order_are_put_into_one_that_respects_every_account(seed: int) -> None:
    random = Random(seed)
    versions = dict.fromkeys(range(1, 6), 7)
    committed = []
    for number in range(60):
        sides = []
        for account in random.sample(sorted(versions), random.choice([1, 2])):
            versions[account] += 1
            sides.append((account, versions[account]))
        committed.append(record(str(number), *sides))
    ordered = in_order(random.sample(committed, len(committed)))
    assert len(ordered) == len(committed)
    for account in versions:
        seen = [side.version for each in ordered for side in each.sides if side.account_id == account]
        assert seen == sorted(seen)


def test_records_in_a_good_order_are_left_as_they_are() -> None:
    records = [record("a", (1, 1), (2, 1)), record("b", (3, 9)), record("c", (2, 2), (3, 10))]
    assert in_order(records) == records


# -- reading ----------------------------------------------------------------------------------------------------------


async def read_on(desk: Desk, place: Place, limit: int = ALL) -> tuple[list[Record], Place]:
    """All that was committed since, page by page."""
    records: list[Record] = []
    while True:
        stretch = await desk.books.committed_since(place, limit)
        records += stretch.records
        place = stretch.end
        if not stretch.more:
            return records, place


def ids(records: list[Record]) -> list[str]:
    return [each.transaction_id for each in records]


class Open:
    """A transaction on a connection of its own, that commits when it is told to."""

    def __init__(self, desk: Desk, connection: asyncpg.Connection) -> None:
        self._desk = desk
        self._connection = connection

    async def run(self, sql: str, *values: Any) -> None:
        await self._desk.generation.crossing.run_unwatched(lambda: self._connection.execute(sql, *values))

    async def credit(self, account: AccountState) -> str:
        """Post a credit in this transaction; its id."""
        assert self._desk.service is not None
        number = str(uuid.uuid4())
        none = [None]
        await self.run(
            QUERIES["post"], False, [str(uuid.uuid4())], [self._desk.service.token_id], ["credit"], [number],
            none, [account.account_id], [5], *[None] * 11,
        )  # fmt: skip
        return number

    async def commit(self) -> None:
        await self.run("COMMIT")


@asynccontextmanager
async def transaction(desk: Desk, *, with_id: bool = True) -> AsyncIterator[Open]:
    opened: list[asyncpg.Connection] = []

    async def begin() -> None:
        opened.append(await asyncpg.connect(desk.database.dsn))
        await opened[0].execute("BEGIN")
        if with_id:
            await opened[0].execute("SELECT pg_current_xact_id()")

    await desk.generation.crossing.run_unwatched(begin)
    try:
        yield Open(desk, opened[0])
    finally:
        await desk.generation.crossing.run_unwatched(lambda: opened[0].close())


async def test_what_is_committed_after_a_place_is_read_once(database: Database) -> None:
    async with open_desk(database) as desk:
        account = await desk.account(balance=10)
        place = await desk.books.here()
        commands = [desk.credit(account, 1), desk.debit(account, 2), desk.credit(account, 3)]
        for command in commands:
            await desk.post(command)
        records, place = await read_on(desk, place)
        assert ids(records) == [command.transaction_id for command in commands]
        assert records[0] == await desk.as_posted(commands[0].transaction_id)
        assert (await read_on(desk, place))[0] == []


async def test_a_transaction_that_others_leave_open_delays_nothing_and_holds_only_the_position(
    database: Database,
) -> None:
    async with open_desk(database) as desk, transaction(desk) as foreign:
        account = await desk.account()
        place = await desk.books.here()
        positions = {place.position}
        for _ in range(3):
            command = desk.credit(account, 1)
            await desk.post(command)
            records, place = await read_on(desk, place)
            assert ids(records) == [command.transaction_id]
            positions.add(place.position)
        assert len(positions) == 1
        resumed = await desk.books.place(positions.pop())
        assert resumed is not None
        assert len((await read_on(desk, resumed))[0]) == 3, "resuming repeats them"
        await foreign.commit()
        records, moved = await read_on(desk, place)
        assert records == []
        assert int(moved.position) > int(resumed.position)
        again = await desk.books.place(moved.position)
        assert again is not None
        assert (await read_on(desk, again))[0] == []


async def test_a_row_whose_id_is_older_than_what_was_read_already_is_not_missed(database: Database) -> None:
    async with open_desk(database) as desk:
        account, other = await desk.account(), await desk.account()
        start = await desk.books.here()
        async with transaction(desk) as late:
            await desk.post(desk.credit(account, 1))
            records, place = await read_on(desk, start)
            assert len(records) == 1
            number = await late.credit(other)
            assert (await read_on(desk, place))[0] == []
            position = place.position
            await late.commit()
        assert ids((await read_on(desk, place))[0]) == [number]
        resumed = await desk.books.place(position)
        assert resumed is not None
        assert number in ids((await read_on(desk, resumed))[0])


@pytest.mark.parametrize("limit", [1, 2, 3, ALL])
async def test_versions_stay_in_order_when_ids_are_not(database: Database, limit: int) -> None:
    """A transaction that has its id before it waits for the account's lock commits after one with a higher id."""
    async with open_desk(database) as desk:
        account, other = await desk.account(), await desk.account()
        place = await desk.books.here()
        async with transaction(desk) as early:
            for _ in range(3):
                await desk.post(desk.credit(account, 1))
                await desk.post(desk.credit(other, 1))
            number = await early.credit(account)
            await early.commit()
        await desk.post(desk.credit(account, 1))
        records, _ = await read_on(desk, place, limit)
        seen: dict[int, int] = {account.account_id: 0, other.account_id: 0}
        for each in records:
            (side,) = each.sides
            if side.version > seen[side.account_id]:  # as a client drops what comes again
                assert side.version == seen[side.account_id] + 1
                seen[side.account_id] = side.version
        assert seen == {account.account_id: 5, other.account_id: 3}
        assert number in ids(records)
        if limit == ALL:
            assert len(records) == 8


async def test_pages_are_whole_calls_and_skip_and_repeat_nothing(database: Database) -> None:
    async with open_desk(database) as desk:
        account = await desk.account()
        place = await desk.books.here()
        sent = []
        for size in (1, 4, 2, 3):
            commands = [desk.credit(account, 1) for _ in range(size)]
            await desk.generation.lanes[0].post([unit(*commands)], resent=False)
            sent += [command.transaction_id for command in commands]
        first = await desk.books.committed_since(place, 3)
        assert (ids(first.records), first.more) == (sent[:5], True)
        assert ids((await read_on(desk, place, 3))[0]) == sent


async def test_a_place_in_the_middle_survives_who_was_open_at_the_start_and_who_is_open_now(
    database: Database,
) -> None:
    async with open_desk(database) as desk:
        accounts = [await desk.account() for _ in range(4)]
        async with transaction(desk) as one, transaction(desk) as two:
            place = await desk.books.here()
            sent = [await one.credit(accounts[0]), await two.credit(accounts[1])]
            async with transaction(desk) as three:
                for _ in range(4):
                    command = desk.credit(accounts[2], 1)
                    await desk.post(command)
                    sent.append(command.transaction_id)
                await one.commit()
                sent.append(await three.credit(accounts[3]))
                got = []
                for _ in range(2):
                    stretch = await desk.books.committed_since(place, 2)
                    assert stretch.more
                    got += ids(stretch.records)
                    place = stretch.end
                await two.commit()
                await three.commit()
        records, _ = await read_on(desk, place, 2)
        assert sorted(got + ids(records)) == sorted(sent)


@pytest.mark.parametrize("limit", [7, ALL])
async def test_concurrent_writers_are_read_completely_and_resuming_anywhere_misses_nothing(
    database: Database, limit: int
) -> None:
    async with open_desk(database, lanes=2) as desk:
        accounts = [await desk.account(balance=1_000) for _ in range(4)]
        start = await desk.books.here()
        sent: list[str] = []
        done = 0

        async def write(lane: int) -> None:
            nonlocal done
            random = Random(lane)
            for _ in range(60):
                source, destination = random.sample(accounts, 2)
                command = desk.command("transfer", debit=source, credit=destination, amount=1)
                await desk.generation.lanes[lane].post([unit(command)], resent=False)
                sent.append(command.transaction_id)
            done += 1

        async def write_late() -> None:
            """Transactions that have their ids long before they commit."""
            nonlocal done
            for _ in range(10):
                async with transaction(desk) as late:
                    await desk.books.ping()
                    number = await late.credit(accounts[0])
                    await late.commit()
                    sent.append(number)
            done += 1

        positions: list[tuple[int, str]] = []
        records: list[Record] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, 0)
            nursery.start_soon(write, 1)
            nursery.start_soon(write_late)
            place = start
            while done < 3:
                stretch = await desk.books.committed_since(place, limit)
                positions.append((len(records), place.position))
                records += stretch.records
                place = stretch.end
        records += (await read_on(desk, place, limit))[0]
        assert set(ids(records)) == set(sent)
        if limit == ALL:
            assert len(records) == len(sent), "nothing twice"
            for account in accounts:
                sides = [side for each in records for side in each.sides if side.account_id == account.account_id]
                seen = [side.version for side in sides]
                assert seen == list(range(seen[0], seen[0] + len(seen)))
        for delivered, position in positions[:: max(1, len(positions) // 10)]:
            resumed = await desk.books.place(position)
            assert resumed is not None
            rest = ids((await read_on(desk, resumed, limit))[0])
            assert set(ids(records[delivered:])) <= set(rest)


async def test_a_position_that_was_never_reached_is_unknown(database: Database) -> None:
    async with open_desk(database) as desk:
        here = await desk.books.here()
        assert await desk.books.place(here.position) is not None
        assert await desk.books.place(str(int(here.position) + 1_000_000)) is None
        assert await desk.books.place("nonsense") is None


async def test_rows_of_a_dump_whose_ids_are_still_to_come_are_no_news(database: Database) -> None:
    async with open_desk(database) as desk:
        account = await desk.account(balance=10)
        await desk.owner("UPDATE ledgerd.transactions SET xact = '999999999'")
        place = await desk.books.here()
        assert (await read_on(desk, place))[0] == []
        command = desk.credit(account, 1)
        await desk.post(command)
        assert ids((await read_on(desk, place, 1))[0]) == [command.transaction_id]


async def test_a_page_costs_as_much_as_what_is_new(database: Database) -> None:
    """However long somebody leaves a transaction open, what was read is not looked at again."""
    async with open_desk(database) as desk, transaction(desk):
        account = await desk.account()
        for _ in range(20):
            await desk.generation.lanes[0].post([unit(*(desk.credit(account, 1) for _ in range(50)))], resent=False)
        await desk.owner("ANALYZE ledgerd.transactions")
        place = await desk.books.here()
        await desk.post(desk.credit(account, 1))
        query = QUERIES["committed_since"].replace("$1", f"'{place.exact}'").replace("$2", "200")
        plan = "\n".join(row[0] for row in await desk.owner(f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) {query}"))
        assert "Seq Scan on transactions" not in plan
        assert "Index Scan using transactions_xact" in plan
        assert "Rows Removed by Filter" not in plan


# -- accounts that other daemons opened -------------------------------------------------------------------------------


async def test_accounts_of_some_users_besides_those_known(database: Database) -> None:
    async with open_desk(database) as desk:
        (ann, first, _), (ben, second, _), _ = [await register(desk.books) for _ in range(3)]
        third = await desk.books.open_account(user_id=ann.user_id, currency="EUR", scale=2)
        users = [ann.user_id, ben.user_id]
        assert await desk.books.unknown_accounts(users, [], 10) == [first, second, third]
        assert await desk.books.unknown_accounts(users, [first.account_id, second.account_id], 10) == [third]
        assert await desk.books.unknown_accounts([ben.user_id], [second.account_id], 10) == []
        assert await desk.books.unknown_accounts([], [], 10) == []
