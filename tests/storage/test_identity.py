"""Which data is this? A ledger that comes back as another is noticed, and its old rows are neither news nor missing.

The dumps are real: made by pg_dump of a ledger whose transaction ids are far ahead, restored into a cluster of its own
where they begin anew, so that new ids pass through the numbers that restored rows carry.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import trio

from ledgerd.engine.commands import Command
from ledgerd.engine.ports import StorageUnavailable
from ledgerd.engine.states import AccountState, FailedCommand, ReportItem, ReportPlace, ReportScope
from ledgerd.storage import migrations
from ledgerd.storage.books import PostgresBooks
from ledgerd.storage.embedded import DAEMON_ROLE, DATABASE, Cluster
from ledgerd.storage.verify import Report, audit
from tests.conftest import Database
from tests.servers import Machines, Server, machines, run
from tests.storage.desk import Desk, open_desk, posted

OLD_CALLS = 150
"""Calls before the dump: each takes an id, and the new cluster's begin below all of them."""

EVERYTHING = ReportScope(accounts=None, all_attempts=True, token_id=0, user_id=None, attempts_of=None)
LONG_AGO = "2000-01-01T00:00:00.000000Z"


def database_of(server: Server, name: str = DATABASE) -> Database:
    cluster = Cluster(data_dir=server.data, socket_dir=server.sockets, pid=0)
    return Database(name, server.dsn(name), server.dsn(name, DAEMON_ROLE), cluster)


def make_roles(server: Server) -> None:
    server.execute(f"CREATE ROLE ledgerd_daemon NOLOGIN; CREATE ROLE {DAEMON_ROLE} LOGIN IN ROLE ledgerd_daemon")


@pytest.fixture(scope="module")
def place() -> Iterator[Machines]:
    with machines() as found:
        yield found


@pytest.fixture(scope="module")
def server(place: Machines) -> Server:
    """Where ledgers are made, dumped, and restored beside themselves."""
    made = place.cluster("old", fsync="off")
    make_roles(made)
    return made


@pytest.fixture(scope="module")
def dump(place: Machines, server: Server) -> Path:
    """A dump of a ledger that was served, with ids of OLD_CALLS transactions."""
    server.execute(f"CREATE DATABASE {DATABASE}")
    migrations.migrate(server.dsn())
    trio.run(fill, database_of(server))
    file = place.folder("dumps") / "ledger.dump"
    run("pg_dump", "-Fc", "-f", str(file), "-d", server.dsn())
    return file


async def fill(database: Database) -> None:
    """Ids first, which somebody else takes: then what is stored here is ahead of what a new cluster gives."""
    async with open_desk(database) as desk:
        account = await desk.account(balance=100_000)
        for number in range(OLD_CALLS):
            await desk.post(a_command(desk, account, number))


def a_command(desk: Desk, account: AccountState, number: int) -> Command:
    """Credits, and now and then a refused debit or an advance."""
    if number % 10 == 3:
        return desk.debit(account, 10**12)
    if number % 10 == 7:
        return desk.command("advance", credit=account, amount=100, installments=4, interval_days=7)
    return desk.credit(account, 1)


@pytest.fixture
def restored(place: Machines, dump: Path, request: pytest.FixtureRequest) -> Iterator[Database]:
    """The ledger in a fresh cluster, whose ids are low; nobody has served it yet."""
    fresh = place.cluster(f"new-{abs(hash(request.node.name)) % 10**8}", fsync="off")
    make_roles(fresh)
    restore(fresh, dump)
    yield database_of(fresh)
    fresh.kill()


def restore(server: Server, dump: Path, *options: str, name: str = DATABASE) -> None:
    server.execute(f"CREATE DATABASE {name}")
    # In one transaction, so that it takes one id, and the restored rows' ids are still ahead.
    run("pg_restore", "--single-transaction", *options, "-d", server.dsn(name), str(dump))


def audited(database: Database) -> Report:
    """What `ledgerd verify` finds."""
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        return runner.run(audit(database.daemon_dsn))


async def epoch_of(database: Database, books: PostgresBooks | None = None, *, keep: bool = False) -> str:
    async with open_desk(database, books, keep_epoch=keep) as desk:
        return desk.books.facts().epoch


def id_of(item: ReportItem) -> str:
    return item.attempt_id if isinstance(item, FailedCommand) else item.transaction_id


@asynccontextmanager
async def open_transactions(desk: Desk) -> AsyncIterator[Any]:
    """Begins foreign transactions that have an id and stay open, as often as it is called."""
    async with AsyncExitStack() as stack:

        async def begin() -> None:
            connection = await on_loop(desk, asyncpg.connect(desk.database.dsn))
            stack.push_async_callback(on_loop, desk, connection.close)
            await on_loop(desk, lambda: connection.execute("BEGIN"))
            await on_loop(desk, lambda: connection.execute("SELECT pg_current_xact_id()"))

        yield begin


async def on_loop(desk: Desk, work: Any) -> Any:
    async def wait() -> Any:
        return await (work() if callable(work) else work)

    return await desk.generation.crossing.run_unwatched(wait)


async def old_account(desk: Desk) -> AccountState:
    (account,) = await desk.books.account_states([1])
    desk.service = await desk.principal("service")
    return account


# -- restored rows and new ids ----------------------------------------------------------------------------------------


async def test_new_ids_are_below_those_of_restored_rows_and_pass_through_them(restored: Database) -> None:
    """What the other tests stand on."""
    async with open_desk(restored) as desk:
        (before,) = await desk.owner(
            "SELECT pg_snapshot_xmax(pg_current_snapshot()) < min(xact) AS below FROM ledgerd.transactions"
        )
        account = await old_account(desk)
        for number in range(OLD_CALLS):
            await desk.post(a_command(desk, account, number))
        (after,) = await desk.owner(
            "SELECT count(*) AS both FROM ledgerd.transactions AS a INNER JOIN ledgerd.transactions AS b USING (xact) "
            "WHERE a.transaction_id < b.transaction_id"
        )
        assert (before["below"], after["both"] > OLD_CALLS / 4) == (True, True)


async def test_the_order_of_commits_has_what_is_new_once_and_nothing_that_was_restored(restored: Database) -> None:
    async with open_desk(restored) as desk, open_transactions(desk) as begin:
        account = await old_account(desk)
        here = there = start = await desk.books.here()
        sent, seen, events = [], [], 0
        for number in range(2 * OLD_CALLS):
            command = a_command(desk, account, number)
            await desk.post(command)
            if number % 10 != 3:
                sent.append(command.transaction_id)
            if number % 20 == 0:
                # Its number is that of restored rows for as long as it is open.
                await begin()
            if number % 7 == 0:
                stretch = await desk.books.committed_since(here, 1_000)
                seen += [record.transaction_id for record in stretch.records]
                here = stretch.end
                told = await desk.books.advance_events_since(there, 1_000)
                events += len(told.events)
                there = told.end
        seen += [record.transaction_id for record in (await desk.books.committed_since(here, 1_000)).records]
        events += len((await desk.books.advance_events_since(there, 1_000)).events)
        assert seen == sent
        assert events == 2 * OLD_CALLS / 10

        # A client that resumes: everything again, in small pages, and still nothing old.
        resumed = await desk.books.place(start.position)
        assert resumed is not None
        again: list[str] = []
        while True:
            stretch = await desk.books.committed_since(resumed, 10)
            again += [record.transaction_id for record in stretch.records]
            resumed = stretch.end
            if not stretch.more:
                break
        assert sorted(set(again)) == sorted(sent)


async def test_every_page_of_a_report_has_what_was_there_at_the_first_and_nothing_else(restored: Database) -> None:
    async with open_desk(restored) as desk, open_transactions(desk) as begin:
        account = await old_account(desk)
        for number in range(OLD_CALLS // 2):
            await desk.post(a_command(desk, account, number))
        stored = await desk.owner(
            "SELECT transaction_id::text AS id FROM ledgerd.transactions UNION ALL "
            "SELECT attempt_id::text FROM ledgerd.attempts"
        )
        seen: list[str] = []
        after, snapshot, total = None, None, None
        while True:
            found = await desk.books.report(
                EVERYTHING,
                created_from=LONG_AGO,
                created_before=None,
                after=after,
                snapshot=snapshot,
                status=None,
                limit=10,
                count=after is None,
            )
            snapshot, total = snapshot or found.snapshot, found.total if total is None else total
            seen += map(id_of, found.items)
            if len(found.items) < 10:
                break
            last = found.items[-1]
            failed = isinstance(last, FailedCommand)
            after = ReportPlace(last.created_at, seen[-1], failed)
            # Ids go on, through those of restored rows, and some stay open.
            await begin()
            for number in range(5):
                await desk.post(a_command(desk, account, number))
        assert sorted(seen) == sorted(row["id"] for row in stored)
        assert total == len(stored)


async def test_a_restored_ledger_adds_up_and_goes_on_where_it_was(restored: Database) -> None:
    async with open_desk(restored) as desk:
        account = await old_account(desk)
        before = await desk.books.heads([1])
        record = posted(await desk.post(desk.credit(account, 1))).record
        assert record.sides[0].version == before[1] + 1
        other = await desk.account(balance=3)
        assert other.account_id > 1
    report = await trio.to_thread.run_sync(audited, restored)
    assert report.broken == []


# -- the epoch --------------------------------------------------------------------------------------------------------


async def test_a_dump_in_another_cluster_gets_a_new_epoch_even_if_told_to_keep_it(
    restored: Database, server: Server
) -> None:
    """A place in the order of commits would be one of other ids."""
    old = server.execute("SELECT epoch FROM ledgerd.settings", DATABASE)
    minted = await epoch_of(restored, keep=True)
    assert minted != old
    assert await epoch_of(restored) == minted


async def test_a_dump_beside_its_original_gets_a_new_epoch_and_locks_of_its_own(
    server: Server, dump: Path, nursery: trio.Nursery
) -> None:
    restore(server, dump, name="beside")
    copy = database_of(server, "beside")
    original = await epoch_of(database_of(server))
    minted = await epoch_of(copy)
    assert original != minted == await epoch_of(copy)
    assert await epoch_of(database_of(server)) == original

    # The same account with the same key of its lock, in two databases: they do not keep each other waiting.
    async with open_desk(database_of(server)) as one, open_desk(copy, lock_timeout_s=1) as other:
        (same,) = await one.owner("SELECT deployment FROM ledgerd.settings")
        assert (await other.owner("SELECT deployment FROM ledgerd.settings"))[0] == same
        holder = await on_loop(one, asyncpg.connect(one.database.dsn))
        key = "(SELECT deployment::bigint << 48 FROM ledgerd.settings) | 1"
        await on_loop(one, lambda: holder.execute(f"SELECT pg_advisory_lock({key})"))
        account = await old_account(other)
        posted(await other.post(other.credit(account, 1)))
        await on_loop(one, holder.close)


async def test_a_database_copied_as_a_template_gets_a_new_epoch(server: Server, dump: Path) -> None:
    original = await epoch_of(database_of(server))
    server.execute(f"CREATE DATABASE copied TEMPLATE {DATABASE}")
    copy = database_of(server, "copied")
    kept = await epoch_of(copy, keep=True)
    assert kept == original, "its ids are those of the cluster: places are right, if it is wanted"
    server.execute("CREATE DATABASE copied_again TEMPLATE copied")
    assert await epoch_of(database_of(server, "copied_again")) != original


async def test_a_dump_restored_over_itself_gets_a_new_epoch(server: Server, dump: Path) -> None:
    restore(server, dump, name="over")
    database = database_of(server, "over")
    first = await epoch_of(database)
    async with open_desk(database) as desk:
        account = await old_account(desk)
        posted(await desk.post(desk.credit(account, 1)))
    run("pg_restore", "--single-transaction", "--clean", "-d", database.dsn, str(dump))
    second = await epoch_of(database)
    assert first != second == await epoch_of(database)


async def test_files_put_back_as_they_were_are_noticed_by_a_daemon_that_saw_more(place: Machines, dump: Path) -> None:
    """A snapshot of the disk has the same identity. Who was there remembers that there was more."""
    machine = place.cluster("disk")
    make_roles(machine)
    restore(machine, dump)
    database, books = database_of(machine), PostgresBooks()
    first = await epoch_of(database, books)
    machine.stop()
    snapshot = machine.data.with_name("snapshot")
    put_back(machine.data, snapshot)
    machine.start()
    async with open_desk(database, books) as desk:
        account = await old_account(desk)
        for _ in range(20):
            posted(await desk.post(desk.credit(account, 1)))
        await desk.books.ping()
    machine.kill()
    put_back(snapshot, machine.data)
    machine.start()
    assert await epoch_of(database) == first, "who has seen nothing cannot tell"
    minted = await epoch_of(database, books)
    assert minted != first
    assert await epoch_of(database, books) == minted
    machine.kill()


def put_back(source: Path, destination: Path) -> None:
    """Make a copy of a data directory, in place of what is there."""
    shutil.rmtree(destination, ignore_errors=True)
    shutil.copytree(source, destination)
    owner = source.stat()
    for path in [destination, *destination.rglob("*")]:
        shutil.chown(path, owner.st_uid, owner.st_gid)
    destination.chmod(0o700)


async def test_a_promoted_replica_gets_a_new_epoch_although_its_control_file_has_the_old_timeline(
    place: Machines, dump: Path
) -> None:
    """Until the first checkpoint after the promotion, which takes its time when much is to be written."""
    machine, replica = place.cluster("before"), place.server("after")
    make_roles(machine)
    restore(machine, dump)
    first = await epoch_of(database_of(machine))
    replica.take_base_backup(machine)
    replica.configure(primary_conninfo=f"host={machine.sockets} user=postgres", checkpoint_timeout="1h")
    (replica.data / "standby.signal").touch()
    replica.start()
    machine.execute("CREATE TABLE much AS SELECT n FROM generate_series(1, 200000) AS n; UPDATE much SET n = n + 1")
    machine.stop()  # a fast stop waits until the replica has everything
    replica.promote()
    control = "SELECT timeline_id FROM pg_control_checkpoint()"
    assert await epoch_of(database_of(replica)) != first
    assert replica.execute(control) == "1", "what this test is about"
    replica.execute("CHECKPOINT")
    assert replica.execute(control) == "2"
    second = await epoch_of(database_of(replica))
    assert second == await epoch_of(database_of(replica)) != first
    replica.kill()


async def test_a_crash_of_the_server_is_no_new_identity(place: Machines, dump: Path) -> None:
    machine = place.cluster("crash")
    make_roles(machine)
    restore(machine, dump)
    database, books = database_of(machine), PostgresBooks()
    first = await epoch_of(database, books)
    for _ in range(2):
        async with open_desk(database, books) as desk:
            account = await old_account(desk)
            posted(await desk.post(desk.credit(account, 1)))
            await desk.books.ping()
        machine.kill()
        machine.start()
    assert await epoch_of(database, books) == first
    machine.kill()


async def test_a_daemon_notices_that_the_epoch_was_renewed_while_it_served(database: Database) -> None:
    async with open_desk(database) as desk:
        await desk.books.ping()
        await desk.owner("UPDATE ledgerd.settings SET epoch = 'another'")
        with pytest.raises(StorageUnavailable, match="new epoch"):
            await desk.books.ping()
        assert await epoch_of(database, desk.books) == "another"


async def test_two_daemons_that_find_another_ledger_at_once_mint_one_epoch(database: Database) -> None:
    async with open_desk(database) as desk:
        for _ in range(5):
            await desk.owner("UPDATE ledgerd.settings SET timeline = timeline + 1")
            found: list[str] = []

            async def serve(found: list[str] = found) -> None:
                found.append(await epoch_of(database))

            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(serve)
            assert len(set(found)) == 1
