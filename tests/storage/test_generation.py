"""A generation is opened as a whole and broken as a whole; what was lost with it is found again by its ids."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import asyncpg
import msgspec
import pytest
import trio
import trio.testing

from ledgerd.config import Config
from ledgerd.engine.commands import Posted, Refused
from ledgerd.engine.ports import StorageUnavailable
from ledgerd.storage import connection as connection_module
from ledgerd.storage import generation as generation_module
from ledgerd.storage.books import PostgresBooks
from ledgerd.storage.generation import DatabaseUnfit, open_generation
from ledgerd.storage.lane import PostgresLane
from ledgerd.storage.queries import QUERIES
from ledgerd_protocol.errors import ErrorCode
from tests.conftest import Database
from tests.storage.desk import Desk, open_desk, posted, register, unit


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "WATCH_INTERVAL_S", 0.02)
    monkeypatch.setattr(generation_module, "PING_INTERVAL_S", 0.02)


@contextmanager
def lost_generation() -> Iterator[None]:
    """Expects the end of a generation: StorageUnavailable through its nurseries, from whoever of them noticed first,
    or from several at the same moment, and nothing else.
    """
    noticed = 0
    try:
        yield
    except* StorageUnavailable as group:
        noticed = len(group.exceptions)
    assert noticed


def pid_of(lane: PostgresLane) -> int:
    return int(lane._connection.get_server_pid())


async def until_waiting(desk: Desk, pid: int) -> None:
    """Until a server process waits for a lock; the test's timeout bounds it."""
    while not await desk.owner("SELECT 1 FROM pg_locks WHERE pid = $1 AND NOT granted", pid):
        pass


@asynccontextmanager
async def account_locked(desk: Desk, account_id: int) -> AsyncIterator[None]:
    """Somebody else holds the account's lock."""
    holder: list[asyncpg.Connection] = []

    async def take() -> None:
        holder.append(await asyncpg.connect(desk.database.dsn))
        key = "(SELECT deployment::bigint << 48 FROM ledgerd.settings) | $1"
        await holder[0].execute(f"SELECT pg_advisory_lock({key})", account_id)

    await desk.generation.crossing.run_unwatched(take)
    try:
        yield
    finally:
        await desk.generation.crossing.run_unwatched(lambda: holder[0].close())


# -- opening ----------------------------------------------------------------------------------------------------------


async def test_a_generation_that_is_left_alone_goes_on(database: Database) -> None:
    async with open_desk(database) as desk, trio.open_nursery() as nursery:
        nursery.start_soon(desk.generation.watch)
        for _ in range(20):
            await desk.books.ping()
        assert desk.generation.crossing.cause is None
        nursery.cancel_scope.cancel()


async def test_it_opens_as_many_connections_as_it_is_told(database: Database) -> None:
    async with open_desk(database, lanes=3, readers=4, feed="poll") as desk:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND application_name = 'ledgerd'"
        assert (await desk.owner(query, database.name))[0]["count"] == 7
        assert len(desk.generation.lanes) == 3


async def test_a_second_generation_on_the_same_books_finds_the_same_ledger(database: Database) -> None:
    books = PostgresBooks()
    async with open_desk(database, books) as desk:
        account = await desk.account(balance=5)
        first = books.facts()
    async with open_desk(database, books):
        (state,) = await books.account_states([account.account_id])
        assert state.balance == 5
        assert msgspec.structs.replace(books.facts(), currencies={}) == msgspec.structs.replace(first, currencies={})


async def test_between_two_generations_the_books_are_unavailable_and_their_facts_stay_known(database: Database) -> None:
    books = PostgresBooks()
    with pytest.raises(StorageUnavailable):
        books.facts()
    async with open_desk(database, books):
        assert books.connected
    assert not books.connected
    assert books.facts().epoch
    with pytest.raises(StorageUnavailable) as refused:
        await books.user(1)
    assert refused.value.applied is False


async def test_who_waits_for_a_connection_when_the_generation_ends_is_told_that_it_is_unavailable(
    database: Database, nursery: trio.Nursery
) -> None:
    books = PostgresBooks()
    refusals: list[StorageUnavailable] = []

    async def read() -> None:
        with pytest.raises(StorageUnavailable) as refused:
            await books.user(1)
        refusals.append(refused.value)

    async with open_desk(database, books, readers=1) as desk:
        assert books._readers is not None
        async with books._readers._limiter:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            desk.generation.crossing.break_off(ConnectionError("lost"))
    await trio.testing.wait_all_tasks_blocked()
    assert [refusal.applied for refusal in refusals] == [False]


async def test_a_call_on_the_loop_of_a_generation_that_is_over_is_refused(database: Database) -> None:
    async with open_desk(database) as desk:
        lane = desk.generation.lanes[0]
    with pytest.raises(StorageUnavailable) as refused:
        await lane._crossing.run(lambda: lane._connection.fetch("SELECT 1"), lane._connection)
    assert refused.value.applied is False


async def test_connections_are_closed_at_the_end(database: Database) -> None:
    async with open_desk(database):
        pass
    async with open_desk(database, lanes=1, readers=1, feed="poll") as desk:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND application_name = 'ledgerd'"
        while (await desk.owner(query, database.name))[0]["count"] > 2:
            pass


# -- databases one cannot serve from ----------------------------------------------------------------------------------


async def unfit(config: Config) -> str:
    expected = pytest.RaisesExc(DatabaseUnfit)
    with pytest.RaisesGroup(expected, flatten_subgroups=True) as refused:
        async with open_generation(config, PostgresBooks()):
            pytest.fail("it was opened")
    leaf: BaseException = refused.value
    while isinstance(leaf, BaseExceptionGroup):
        (leaf,) = leaf.exceptions
    return str(leaf)


async def test_a_database_without_a_ledger_is_unfit(empty_database: Database) -> None:
    assert "ledgerd migrate --apply" in await unfit(Config(dsn=empty_database.daemon_dsn))


async def test_a_database_that_lacks_migrations_is_unfit(database: Database) -> None:
    async with open_desk(database) as desk:
        await desk.owner("DELETE FROM ledgerd.migrations WHERE number > 2")
    message = await unfit(Config(dsn=database.daemon_dsn))
    assert "lacks" in message
    assert "ledgerd migrate --apply" in message


async def test_a_database_of_a_newer_release_is_unfit(database: Database) -> None:
    async with open_desk(database) as desk:
        await desk.owner("INSERT INTO ledgerd.migrations (number, name, checksum) VALUES (9999, 'new', 'x')")
    assert "9999" in await unfit(Config(dsn=database.daemon_dsn))


async def test_a_currency_with_other_decimals_than_configured_is_unfit(database: Database) -> None:
    async with open_desk(database) as desk:
        await register(desk.books, currency="USD", scale=2)
        await register(desk.books, currency="COIN", scale=8)
    assert "USD has 2 decimals" in await unfit(Config(dsn=database.daemon_dsn, currencies={"USD": 3}))
    assert "COIN has 8 decimals" in await unfit(Config(dsn=database.daemon_dsn, currencies={"COIN": 2}))
    async with open_desk(database, currencies={"COIN": 8}) as desk:
        assert desk.books.facts().currencies == {"USD": 2, "COIN": 8}


async def test_a_role_that_was_given_nothing_is_unfit(database: Database) -> None:
    role = f"nobody_{database.name}"
    async with open_desk(database) as desk:
        await desk.owner(f"CREATE ROLE {role} LOGIN")
    try:
        message = await unfit(Config(dsn=database.cluster.dsn_of(database.name, role)))
        assert "permission denied" in message
    finally:
        async with open_desk(database) as desk:
            await desk.owner(f"DROP ROLE {role}")


async def test_a_role_a_database_or_a_dsn_that_does_not_exist_is_unfit(database: Database) -> None:
    assert "refuses" in await unfit(Config(dsn=database.cluster.dsn_of(database.name, "nobody_at_all")))
    assert "refuses" in await unfit(Config(dsn=database.cluster.dsn_of("no_such_database")))
    assert "refuses" in await unfit(Config(dsn="http://not.a.dsn/"))


async def test_a_server_that_is_not_there_is_unavailable_and_may_come_back(database: Database) -> None:
    config = Config(dsn="postgresql://ledgerd@/ledgerd?host=/nowhere")
    with lost_generation():
        async with open_generation(config, PostgresBooks()):
            pytest.fail("it was opened")


# -- the epoch --------------------------------------------------------------------------------------------------------


async def test_the_epoch_stays_while_the_database_is_the_same(database: Database) -> None:
    epochs = []
    for _ in range(2):
        async with open_desk(database) as desk:
            epochs.append(desk.books.facts().epoch)
    assert epochs[0] == epochs[1]


@pytest.mark.parametrize("change", ["system_identifier = system_identifier + 1", "timeline = timeline + 1"])
async def test_a_database_whose_identity_changed_gets_a_new_epoch_unless_told_to_keep_it(
    database: Database, change: str
) -> None:
    async def epoch(*, keep: bool) -> str:
        async with open_desk(database, keep_epoch=keep) as desk:
            found = desk.books.facts().epoch
            await desk.owner(f"UPDATE ledgerd.settings SET {change}")
            return found

    first = await epoch(keep=False)
    kept = await epoch(keep=True)
    minted = await epoch(keep=False)
    assert first == kept != minted


# -- losing connections -----------------------------------------------------------------------------------------------


async def test_a_connection_killed_while_idle_ends_the_generation(database: Database) -> None:
    async with open_desk(database) as desk:
        await desk.owner("SELECT pg_terminate_backend($1)", pid_of(desk.generation.lanes[0]))
        with lost_generation():
            await desk.generation.watch()


async def test_a_call_on_a_connection_that_is_known_to_be_lost_surely_did_not_run(database: Database) -> None:
    async with open_desk(database) as desk:
        account = await desk.account()
        lane = desk.generation.lanes[0]
        await desk.owner("SELECT pg_terminate_backend($1)", pid_of(lane))
        with lost_generation():
            await desk.generation.watch()
        with pytest.raises(StorageUnavailable) as lost:
            await desk.post(desk.credit(account, 5))
        assert lost.value.applied is False


async def test_a_connection_that_ends_between_two_steps_of_the_driver_is_lost_and_no_bug(database: Database) -> None:
    async with open_desk(database) as desk:
        connection = desk.generation.lanes[0]._connection

        async def work() -> None:
            connection.terminate()
            connection._protocol.get_settings()  # the driver's next step, on what it has put away

        with pytest.raises(StorageUnavailable) as lost:
            await desk.generation.crossing.run(work, connection)
        assert isinstance(lost.value.__cause__, AttributeError)
        assert lost.value.applied is None
        assert desk.generation.crossing.cause is not None


async def test_a_connection_killed_during_a_call_leaves_its_outcome_unknown_until_it_is_sent_again(
    database: Database,
) -> None:
    books = PostgresBooks()
    async with open_desk(database, books) as desk:
        account = await desk.account(balance=10)
        command = desk.debit(account, 4)
        pid = pid_of(desk.generation.lanes[0])

        async def kill() -> None:
            await until_waiting(desk, pid)
            await desk.owner("SELECT pg_terminate_backend($1)", pid)

        async with account_locked(desk, account.account_id), trio.open_nursery() as nursery:
            nursery.start_soon(kill)
            with pytest.raises(StorageUnavailable) as lost:
                await desk.post(command)
        assert lost.value.applied is None
        assert desk.generation.crossing.cause is not None

    async with open_desk(database, books) as desk:
        outcome = posted(await desk.post(command, resent=True))
        assert (outcome.replayed, outcome.record.sides[0].balance) == (False, 6)


async def test_a_call_that_hangs_is_given_up_by_the_watch_and_what_it_did_is_found_again(database: Database) -> None:
    books = PostgresBooks()
    async with open_desk(database, books, call_timeout_s=0.05) as desk:
        account = await desk.account(balance=10)
        command = desk.debit(account, 4)
        lane = desk.generation.lanes[0]
        pid = pid_of(lane)
        failures: list[StorageUnavailable] = []

        async def call() -> None:
            with pytest.raises(StorageUnavailable) as lost:
                await desk.post(command)
            failures.append(lost.value)

        async with account_locked(desk, account.account_id):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call)
                await until_waiting(desk, pid)
                with lost_generation():
                    await desk.generation.watch()
            assert [failure.applied for failure in failures] == [None]
        # The server did not notice that nobody listens any more: with the lock it goes on, and commits.
        while not await desk.owner(
            "SELECT 1 FROM ledgerd.transactions WHERE transaction_id = $1", command.transaction_id
        ):
            pass

    async with open_desk(database, books) as desk:
        outcome = posted(await desk.post(command, resent=True))
        assert (outcome.replayed, outcome.record.sides[0].balance) == (True, 6)
        assert await desk.books.heads([account.account_id]) == {account.account_id: 2}


async def test_a_posted_call_whose_answer_was_lost_is_replayed_as_it_was(database: Database) -> None:
    books = PostgresBooks()
    async with open_desk(database, books) as desk:
        account = await desk.account(balance=10)
        commands = [desk.debit(account, 4), desk.debit(account, 100), desk.debit(account, 5)]
        before = await desk.generation.lanes[0].post([unit(command) for command in commands], resent=False)
        await desk.post(desk.credit(account, 1_000))

    async with open_desk(database, books) as desk:
        after = await desk.generation.lanes[0].post([unit(command) for command in commands], resent=True)
    for (first,), (second,) in zip(before, after, strict=True):
        if isinstance(first, Posted):
            assert second == Posted(first.record, replayed=True)
        else:
            assert isinstance(second, Refused)
            assert (second.code, second.data, second.attempt_id) == (first.code, first.data, first.attempt_id)
            assert second.code == ErrorCode.INSUFFICIENT_FUNDS


async def test_a_committed_call_whose_records_cannot_be_read_is_never_called_unapplied(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_desk(database, statement_timeout_s=0.05) as desk:
        account = await desk.account()
        command = desk.credit(account, 5)
        await desk.post(command)
        monkeypatch.setitem(QUERIES, "records", "SELECT pg_sleep(60) WHERE $1::uuid [] IS NOT NULL")
        with pytest.raises(StorageUnavailable) as lost:
            await desk.post(command, resent=True)
        assert lost.value.applied is None


async def test_a_statement_that_the_server_timed_out_surely_did_not_run(database: Database) -> None:
    async with open_desk(database, statement_timeout_s=1.0, lock_timeout_s=60) as desk:
        account = await desk.account()
        async with account_locked(desk, account.account_id):
            with pytest.raises(StorageUnavailable) as lost:
                await desk.post(desk.credit(account, 5))
        assert lost.value.applied is False
        assert await desk.books.heads([account.account_id]) == {account.account_id: 0}


async def test_a_call_that_never_gets_its_locks_ends_as_unavailable_and_unapplied(database: Database) -> None:
    async with open_desk(database, lock_timeout_s=0.01) as desk:
        account = await desk.account()
        async with account_locked(desk, account.account_id):
            with pytest.raises(StorageUnavailable) as lost:
                await desk.post(desk.credit(account, 5))
        assert lost.value.applied is False
        assert posted(await desk.post(desk.credit(account, 5))).record.sides[0].version == 1


async def test_a_cancelled_caller_waits_for_the_end_of_its_call(database: Database) -> None:
    """Cancelling a COMMIT would leave its outcome unknown."""
    async with open_desk(database) as desk:
        account = await desk.account()
        command = desk.credit(account, 5)
        with trio.CancelScope() as scope:
            scope.cancel()
            await desk.post(command)
        assert posted(await desk.post(command, resent=True)).replayed


async def test_readers_that_all_are_busy_make_the_next_one_wait(database: Database) -> None:
    async with open_desk(database, readers=2) as desk:
        users = await desk.books.user(1), await desk.books.user(1), await desk.books.user(1)
        assert users == (None, None, None)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(desk.books.ping)
