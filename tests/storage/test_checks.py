"""Every start-up check is made to fail on a real server, and passes on one that is as it should be."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
import trio
from structlog.testing import capture_logs

from ledgerd import __version__
from ledgerd.config import Config
from ledgerd.engine.ports import StorageUnavailable
from ledgerd.storage import checks, facts, migrations
from ledgerd.storage.books import PostgresBooks
from ledgerd.storage.checks import Finding, Level, judge
from ledgerd.storage.embedded import Cluster, running_cluster, temporary_cluster
from ledgerd.storage.facts import Facts, PooledPerTransaction, examine
from ledgerd.storage.generation import DatabaseUnfit, open_generation
from tests.conftest import Database
from tests.storage.desk import open_desk
from tests.storage.pooler import needs_pgbouncer, pgbouncer

LOCK, TRY, CLOCK = "pg_advisory_xact_lock(bigint)", "pg_try_advisory_xact_lock(bigint)", "clock_timestamp()"


async def _execute(dsn: str, *statements: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


def execute(dsn: str, *statements: str) -> None:
    asyncio.run(_execute(dsn, *statements))


@asynccontextmanager
async def sessions(dsn: str, count: int, **settings: str) -> AsyncIterator[list[asyncpg.Connection]]:
    """Open connections, with settings they begin with."""
    opened = [await asyncpg.connect(dsn, server_settings=settings) for _ in range(count)]
    try:
        yield opened
    finally:
        for connection in opened:
            await connection.close()


def looked(dsn: str, config: Config | None = None, *, second: str | None = None, serving: bool = False) -> Facts:
    """The facts, as two plain connections see them. They are READ ONLY: looking writes nothing."""

    async def work() -> Facts:
        read_only = {"default_transaction_read_only": "on"}
        async with sessions(dsn, 1, **read_only) as (one,), sessions(second or dsn, 1, **read_only) as (two,):
            return await examine(config or Config(), one, two, serving=serving)

    return asyncio.run(work())


def found(dsn: str, config: Config | None = None, **more: Any) -> dict[str, Finding]:
    return {finding.check: finding for finding in judge(looked(dsn, config, **more))}


def finding(check: str, facts: Facts) -> Finding:
    return next(finding for finding in judge(facts) if finding.check == check)


def assert_says(finding: Finding, level: Level, *words: str) -> None:
    assert finding.level is level, finding
    for word in words:
        assert word in finding.sentence
    assert finding.advice, "it says what to do"


@contextmanager
def replaced(database: Database, signature: str, body: str) -> Iterator[None]:
    """Another function takes the place of one of PostgreSQL's own, in this database alone."""
    name, arguments = signature.rstrip(")").split("(")
    returns = {LOCK: "void", TRY: "boolean", CLOCK: "timestamptz"}[signature]
    execute(
        database.dsn,
        f"ALTER FUNCTION pg_catalog.{signature} RENAME TO real_{name}",
        f"CREATE FUNCTION pg_catalog.{name}({arguments}) RETURNS {returns} LANGUAGE sql VOLATILE AS $$ {body} $$",
    )
    yield


@pytest.fixture(autouse=True)
def _alone(cluster: Cluster) -> None:
    """Daemons of the test before may still be leaving, and would be counted; the test's timeout bounds it."""

    async def work() -> None:
        async with sessions(cluster.dsn_of("postgres"), 1) as (looking,):
            while await looking.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ledgerd'"):
                pass

    asyncio.run(work())


@pytest.fixture
def role(database: Database) -> Iterator[str]:
    """A login role of this test alone that is in ledgerd_daemon."""
    name = f"daemon_{database.name}"
    execute(database.dsn, f"CREATE ROLE {name} LOGIN IN ROLE ledgerd_daemon")
    yield name
    execute(database.dsn, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


@pytest.fixture(scope="module")
def spare() -> Iterator[Path]:
    """The data directory of a cluster that may be spoilt: it is started as often as needed, one test at a time."""
    with tempfile.TemporaryDirectory(prefix="ledgerd-", ignore_cleanup_errors=True) as name:
        with running_cluster(Path(name)) as cluster:
            migrations.migrate(cluster.dsn)
        yield Path(name)


@contextmanager
def restarted(directory: Path, *statements: str) -> Iterator[Cluster]:
    """The cluster, started again after these statements, which are undone at the end."""
    with running_cluster(directory) as cluster:
        execute(cluster.dsn, *statements)
    try:
        with running_cluster(directory) as cluster:
            yield cluster
    finally:
        with running_cluster(directory) as cluster:
            execute(cluster.dsn, "ALTER SYSTEM RESET ALL")


# -- the list ----------------------------------------------------------------------------------------------------------


def test_the_table_in_the_documentation_is_the_list_of_the_code() -> None:
    rows = re.findall(r"^    (\w+) +((?:refuse|wait|warn|info)(?:, \w+)*) +(.+)$", checks.__doc__ or "", re.MULTILINE)
    assert rows == [
        (check.name, ", ".join(level.value for level in check.levels), check.says) for check in checks.CHECKS
    ]


def test_a_database_as_it_should_be_passes_every_check_in_the_documented_order(database: Database) -> None:
    findings = judge(looked(database.daemon_dsn))
    assert [finding.check for finding in findings] == [check.name for check in checks.CHECKS]
    # The tests' own cluster does not wait for the disk.
    assert {finding.check for finding in findings if finding.level is not Level.OK} == {"durability"}


def test_looking_takes_few_round_trips(database: Database) -> None:
    async def work() -> int:
        asked: list[Any] = []
        async with sessions(database.daemon_dsn, 2) as (one, two):
            one.add_query_logger(asked.append)
            two.add_query_logger(asked.append)
            await examine(Config(), one, two)
        return len(asked)

    assert asyncio.run(work()) <= 11


# -- where the connections lead ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version_num", "level"),
    [(140_012, Level.REFUSE), (150_000, Level.OK), (180_004, Level.OK), (190_000, Level.WARN)],
)
def test_a_server_that_is_too_old_is_refused_and_one_that_nobody_knows_is_warned_of(
    database: Database, version_num: int, level: Level
) -> None:
    found = looked(database.daemon_dsn)
    server = msgspec.structs.replace(found.server, version_num=version_num)
    assert finding("server_version", msgspec.structs.replace(found, server=server)).level is level


def test_connections_to_two_servers_are_told_apart(database: Database) -> None:
    with temporary_cluster() as another:
        assert_says(found(database.daemon_dsn, second=another.dsn)["one_server"], Level.WAIT, "different servers")


def test_a_standby_is_waited_for_and_not_given_up(spare: Path) -> None:
    async def serve(dsn: str) -> None:
        async with open_generation(Config(dsn=dsn), PostgresBooks()):
            pytest.fail("it was opened")

    signal = spare / "postgres" / "standby.signal"
    signal.touch()
    expected = pytest.RaisesExc(StorageUnavailable, match=r"standby.*promoted")
    try:
        with running_cluster(spare) as cluster, pytest.RaisesGroup(expected, flatten_subgroups=True):
            trio.run(serve, cluster.daemon_dsn)
    finally:
        signal.unlink()


@needs_pgbouncer
@pytest.mark.parametrize(
    "ignored",
    [(), ("default_transaction_isolation,lock_timeout,statement_timeout,idle_in_transaction_session_timeout",)],
    ids=["as installed", "told to ignore what it does not know"],
)
async def test_through_a_pooler_in_session_mode_a_daemon_serves_with_its_timeouts(
    database: Database, ignored: tuple[str, ...]
) -> None:
    lines = [f"ignore_startup_parameters = {names}" for names in ignored]
    with pgbouncer(database.cluster, "pool_mode = session", *lines) as through, capture_logs() as said:
        pooled = msgspec.structs.replace(database, daemon_dsn=f"postgresql://ledgerd@/{database.name}?{through}")
        async with open_desk(pooled, lock_timeout_s=1.5, statement_timeout_s=2.5) as desk:
            account = await desk.account(balance=5)
            assert (await desk.books.heads([account.account_id])) == {account.account_id: 1}
            timeouts = "SELECT current_setting('lock_timeout'), current_setting('statement_timeout')"
            for lane in desk.generation.lanes:
                crossing, connection = desk.generation.crossing, lane._connection
                row = await crossing.run(lambda connection=connection: connection.fetchrow(timeouts), connection)
                assert tuple(row) == ("1500ms", "2500ms")
    assert [line["check"] for line in said if line["event"] == "database_check" and line["log_level"] == "info"] == [
        "pooler"
    ]


@needs_pgbouncer
@pytest.mark.parametrize(
    "settings",
    [
        ("pool_mode = transaction",),
        ("pool_mode = transaction", "server_round_robin = 1", "min_pool_size = 3"),
        ("pool_mode = statement",),
    ],
    ids=["transaction", "transaction, in turns", "statement"],
)
async def test_a_pooler_that_shares_sessions_is_refused(database: Database, settings: tuple[str, ...]) -> None:
    with pgbouncer(database.cluster, *settings) as through:
        for _ in range(3):  # also when its sessions have been used before
            with pytest.RaisesGroup(
                pytest.RaisesExc(DatabaseUnfit, match="pooler in transaction .* pool_mode = session"),
                flatten_subgroups=True,
            ):
                dsn = f"postgresql://ledgerd@/{database.name}?{through}"
                async with open_generation(Config(dsn=dsn), PostgresBooks()):
                    pytest.fail("it was opened")


@needs_pgbouncer
def test_sessions_that_are_shared_are_seen_by_their_processes_too(database: Database) -> None:
    """A pooler that keeps prepared statements for its clients gives itself away by nothing else."""

    async def work(dsn: str) -> Facts:
        one, two = [await asyncpg.connect(dsn, statement_cache_size=0) for _ in range(2)]
        try:
            return await examine(Config(), one, two)
        finally:
            one.terminate()
            two.terminate()

    with pgbouncer(database.cluster, "pool_mode = transaction") as through:
        facts = asyncio.run(work(f"postgresql://ledgerd@/{database.name}?{through}"))
    assert facts.probe.shared
    assert finding("pooler", facts) == checks.PER_TRANSACTION


def test_a_statement_that_is_there_already_is_a_poolers_doing(database: Database) -> None:
    async def work() -> None:
        async with sessions(database.daemon_dsn, 2) as (one, two):
            names = "".join(f"PREPARE __asyncpg_stmt_{n:x}__ AS SELECT 1;" for n in range(1, 4_096))
            await one.execute(names)
            with pytest.raises(PooledPerTransaction):
                await examine(Config(), one, two)

    asyncio.run(work())


def test_advisory_locks_that_do_nothing_are_refused(database: Database) -> None:
    with replaced(database, LOCK, "SELECT"):
        assert_says(found(database.daemon_dsn)["advisory_locks"], Level.REFUSE, "do not exclude", "same money")


def test_advisory_locks_that_are_never_let_go_are_refused(database: Database) -> None:
    with replaced(database, TRY, "SELECT false"):
        assert_says(found(database.daemon_dsn)["advisory_locks"], Level.REFUSE, "outlived its transaction")


async def test_a_daemon_does_not_start_where_advisory_locks_do_nothing_and_changes_nothing_there(
    database: Database,
) -> None:
    async with open_desk(database) as desk:
        before = await desk.owner("SELECT * FROM ledgerd.settings")
        await desk.owner(f"ALTER FUNCTION pg_catalog.{LOCK} RENAME TO real_lock")
        await desk.owner(f"CREATE FUNCTION pg_catalog.{LOCK} RETURNS void LANGUAGE sql AS 'SELECT'")
        await desk.owner("UPDATE ledgerd.settings SET timeline = timeline + 1")
        with pytest.RaisesGroup(pytest.RaisesExc(DatabaseUnfit, match="do not exclude"), flatten_subgroups=True):
            async with open_generation(Config(dsn=database.daemon_dsn), PostgresBooks()):
                pytest.fail("it was opened")
        after = await desk.owner("SELECT * FROM ledgerd.settings")
        assert [row["epoch"] for row in after] == [row["epoch"] for row in before]


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_transactions_that_are_not_read_committed_are_refused(database: Database, isolation: str) -> None:
    execute(database.dsn, f"ALTER DATABASE {database.name} SET default_transaction_isolation = '{isolation}'")
    assert_says(found(database.daemon_dsn)["isolation"], Level.REFUSE, isolation.upper(), "RESET")


def test_a_database_that_cannot_store_every_text_is_refused(database: Database) -> None:
    name = f"{database.name}_latin"
    execute(database.dsn, f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        assert_says(found(database.cluster.dsn_of(name))["encoding"], Level.REFUSE, "LATIN1", "ENCODING 'UTF8'")
    finally:
        execute(database.dsn, f"DROP DATABASE {name}")


# -- the ledger in it --------------------------------------------------------------------------------------------------


def test_a_database_without_a_ledger_says_who_makes_one(empty_database: Database) -> None:
    findings = found(empty_database.daemon_dsn)
    assert_says(findings["schema"], Level.REFUSE, "no ledger yet", "ledgerd migrate --apply")
    skipped = {name for name, finding in findings.items() if finding.level is Level.SKIPPED}
    assert skipped == {"privileges", "currencies", "wallet_unit", "idle_holders"}


@pytest.mark.parametrize("applied", [1, 3, 5, 9, 11])
def test_an_older_database_is_refused_by_a_newer_daemon_with_what_it_lacks(
    empty_database: Database, applied: int
) -> None:
    every = migrations.all_migrations()
    execute(
        empty_database.dsn,
        migrations._BOOTSTRAP,
        *(
            f"{one.sql};\nINSERT INTO ledgerd.migrations VALUES ({one.number}, '{one.name}', '{one.checksum}')"
            for one in every[:applied]
        ),
    )
    # The owner's, because the first migrations give nobody leave to look.
    schema = found(empty_database.dsn)["schema"]
    assert_says(schema, Level.REFUSE, "older than this ledgerd", every[applied].name, __version__, "backup", "--apply")


def test_a_newer_database_is_refused_by_an_older_daemon_which_is_to_be_upgraded(database: Database) -> None:
    execute(database.dsn, "INSERT INTO ledgerd.migrations (number, name, checksum) VALUES (9999, 'new', 'x')")
    last = migrations.all_migrations()[-1].number
    schema = found(database.daemon_dsn)["schema"]
    assert_says(schema, Level.REFUSE, "newer than this ledgerd", "9999", f"than {last}", "upgrade ledgerd on this")


def test_a_migration_from_an_edited_file_is_refused_by_its_name(database: Database) -> None:
    execute(database.dsn, "UPDATE ledgerd.migrations SET checksum = 'x' WHERE number = 2")
    assert_says(found(database.daemon_dsn)["schema"], Level.REFUSE, "0002_people", "other contents")


def test_a_function_that_is_gone_is_missed(database: Database) -> None:
    execute(database.dsn, "DROP FUNCTION ledgerd.remove_monitor")
    assert_says(found(database.daemon_dsn)["schema"], Level.REFUSE, "damaged", "remove_monitor", "backup")


def test_every_function_that_the_daemon_names_is_looked_at() -> None:
    assert {"post", "begin_serving", "accounts", "collect_due", "set_monitor"} <= set(facts.USED)


def test_a_role_that_was_given_nothing_is_told_what_it_lacks(database: Database) -> None:
    name = f"nobody_{database.name}"
    execute(database.dsn, f"CREATE ROLE {name} LOGIN")
    try:
        findings = found(database.cluster.dsn_of(database.name, name))
        assert_says(findings["privileges"], Level.REFUSE, "permission denied", f"GRANT ledgerd_daemon TO {name}")
        assert findings["schema"].level is Level.SKIPPED
    finally:
        execute(database.dsn, f"DROP ROLE {name}")


def test_functions_and_tables_that_the_role_may_not_use_are_named_with_the_statement_that_helps(
    database: Database,
) -> None:
    execute(
        database.dsn,
        "REVOKE EXECUTE ON FUNCTION ledgerd.post, ledgerd.collect_due FROM ledgerd_daemon",
        "REVOKE SELECT ON ledgerd.monitors FROM ledgerd_daemon",
    )
    refused = found(database.daemon_dsn)["privileges"]
    assert_says(refused, Level.REFUSE, "may not EXECUTE collect_due, post")
    execute(database.dsn, refused.advice.partition(": ")[2])
    refused = found(database.daemon_dsn)["privileges"]
    assert_says(refused, Level.REFUSE, "may not SELECT from monitors")
    execute(database.dsn, refused.advice.partition(": ")[2])
    assert found(database.daemon_dsn)["privileges"].level is Level.OK


def test_a_role_that_could_rewrite_the_ledger_is_warned_of(database: Database, role: str) -> None:
    dsn = database.cluster.dsn_of(database.name, role)
    assert found(dsn)["role"].level is Level.OK
    execute(database.dsn, f"GRANT UPDATE (balance) ON ledgerd.accounts TO {role}")
    assert_says(found(dsn)["role"], Level.WARN, "can write accounts", "IN ROLE ledgerd_daemon")
    execute(database.dsn, f"GRANT TRUNCATE ON ledgerd.transactions TO {role}")
    assert_says(found(dsn)["role"], Level.WARN, "can write accounts, transactions")

    execute(database.dsn, f"ALTER SCHEMA ledgerd OWNER TO {role}")
    assert_says(found(dsn)["role"], Level.WARN, "owns the ledger's schema")
    execute(database.dsn, "ALTER SCHEMA ledgerd OWNER TO postgres")
    assert_says(found(database.dsn)["role"], Level.WARN, "is a superuser")


async def test_what_a_daemon_is_warned_of_is_a_line_each_in_its_log(database: Database) -> None:
    with capture_logs() as said:
        async with open_generation(Config(dsn=database.dsn), PostgresBooks()):
            pass
    lines = {line["check"]: line for line in said if line["event"] == "database_check"}
    assert set(lines) == {"role", "durability"}
    assert lines["role"]["log_level"] == "warning"
    assert "superuser" in lines["role"]["found"]
    assert "CREATE ROLE" in lines["role"]["hint"]


# -- room on the server ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lanes", "level"), [(4, Level.OK), (5, Level.WARN), (7, Level.REFUSE)])
def test_the_lock_table_has_room_for_every_account_of_every_lane_and_for_others(
    database: Database, lanes: int, level: Level
) -> None:
    lock_table = found(database.daemon_dsn, Config(lanes=lanes))["lock_table"]
    assert lock_table.level is level
    assert f"{lanes},000 accounts at once ({lanes} lanes x 1,000" in lock_table.what
    assert "6,400 locks (64 x 100 sessions)" in lock_table.what
    if level is not Level.OK:
        assert "max_locks_per_transaction" in lock_table.advice


def test_the_lock_table_is_shared_with_the_other_daemons(database: Database) -> None:
    async def work(*, serving: bool) -> Facts:
        async with (
            sessions(database.daemon_dsn, 10, application_name="ledgerd"),
            sessions(database.daemon_dsn, 2, application_name="ledgerd") as (one, two),
        ):
            return await examine(Config(), one, two, serving=serving)

    starting = asyncio.run(work(serving=True))
    assert starting.daemons == 3
    assert_says(finding("lock_table", starting), Level.WARN, "3 daemons may lock 6,000", "each)")
    assert asyncio.run(work(serving=False)).daemons == 2


def test_the_numbers_of_a_small_server_are_its_own_and_following_the_advice_helps(spare: Path) -> None:
    small = ("ALTER SYSTEM SET max_connections = 10", "ALTER SYSTEM SET max_locks_per_transaction = 20")
    with restarted(spare, *small) as cluster:
        findings = found(cluster.daemon_dsn)
        assert_says(findings["lock_table"], Level.REFUSE, "200 locks (20 x 10 sessions)", "= 267")
        assert "of the 7 that the server allows are free" in findings["connections"].what
        assert_says(found(cluster.daemon_dsn, Config(readers=5))["connections"], Level.REFUSE, "allows 7")
    with restarted(spare, small[0], "ALTER SYSTEM SET max_locks_per_transaction = 267") as cluster:
        assert found(cluster.daemon_dsn)["lock_table"].level is Level.OK


def test_limits_of_role_and_database_that_a_daemon_does_not_fit_in_are_refused_by_their_name(
    database: Database, role: str
) -> None:
    dsn = database.cluster.dsn_of(database.name, role)
    execute(database.dsn, f"ALTER ROLE {role} CONNECTION LIMIT 4")
    assert_says(found(dsn)["connections"], Level.REFUSE, f"ALTER ROLE {role} CONNECTION LIMIT -1", "allows 4")
    assert found(dsn, Config(feed="poll"))["connections"].level is Level.OK
    execute(database.dsn, f"ALTER ROLE {role} CONNECTION LIMIT -1")
    execute(database.dsn, f"ALTER DATABASE {database.name} CONNECTION LIMIT 3")
    assert_says(found(dsn)["connections"], Level.REFUSE, f"ALTER DATABASE {database.name} CONNECTION LIMIT -1")


def test_connections_that_others_have_are_not_free(database: Database, role: str) -> None:
    dsn = database.cluster.dsn_of(database.name, role)
    execute(database.dsn, f"ALTER ROLE {role} CONNECTION LIMIT 8")

    async def work() -> Facts:
        async with sessions(dsn, 4), sessions(dsn, 2) as (one, two):
            return await examine(Config(), one, two)

    assert_says(finding("connections", asyncio.run(work())), Level.WARN, "needs 5 connections, 4 of the 8")


# -- what a crash would cost -------------------------------------------------------------------------------------------


def test_settings_that_lose_money_in_a_crash_are_warned_of(database: Database, spare: Path) -> None:
    assert_says(found(database.daemon_dsn)["durability"], Level.WARN, "fsync is off", "ALTER SYSTEM SET fsync = on")
    with restarted(spare, "ALTER SYSTEM SET full_page_writes = off") as cluster:
        assert_says(found(cluster.daemon_dsn)["durability"], Level.WARN, "full_page_writes is off")


def test_a_commit_that_does_not_wait_is_warned_of(database: Database, spare: Path) -> None:
    execute(database.dsn, f"ALTER DATABASE {database.name} SET synchronous_commit = off")
    assert_says(found(database.daemon_dsn)["synchronous_commit"], Level.WARN, "is off", "ALTER ROLE ledgerd SET")
    local = ("ALTER SYSTEM SET synchronous_commit = local", "ALTER SYSTEM SET synchronous_standby_names = 'another'")
    with restarted(spare, *local) as cluster:
        assert_says(found(cluster.daemon_dsn)["synchronous_commit"], Level.WARN, "is local", "fail-over loses")


def test_missing_checksums_are_worth_a_word(database: Database) -> None:
    found = looked(database.daemon_dsn)
    server = msgspec.structs.replace(found.server, data_checksums="off")
    assert_says(finding("data_checksums", msgspec.structs.replace(found, server=server)), Level.INFO, "pg_checksums")


@pytest.mark.parametrize(("shift", "way"), [("'1 hour'", "ahead of"), ("'-1 hour'", "behind")])
def test_clocks_that_disagree_are_warned_of(database: Database, shift: str, way: str) -> None:
    with replaced(database, CLOCK, f"SELECT now() + interval {shift}"):
        assert_says(found(database.daemon_dsn)["clock"], Level.WARN, way, "3,", "time service")


def test_a_clock_is_not_blamed_for_a_slow_answer(database: Database) -> None:
    found = looked(database.daemon_dsn)
    slow = msgspec.structs.replace(found, clock_ahead_s=-30.0, clock_error_s=29.0)
    assert finding("clock", slow).level is Level.OK
    assert finding("clock", msgspec.structs.replace(slow, clock_error_s=27.0)).level is Level.WARN


def test_a_session_that_keeps_an_accounts_lock_and_does_nothing_is_named(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "IDLE_HOLDER", timedelta(0))

    async def work() -> tuple[Facts, Facts, int]:
        async with (
            sessions(database.daemon_dsn, 1, application_name="somebody") as (holder,),
            sessions(database.daemon_dsn, 2) as (one, two),
        ):
            before = await examine(Config(), one, two)
            deployment = await holder.fetchval("SELECT deployment FROM ledgerd.settings")
            await holder.execute(f"BEGIN; SELECT pg_advisory_xact_lock({deployment << 48 | 7})")
            return before, await examine(Config(), one, two), holder.get_server_pid()

    before, after, pid = asyncio.run(work())
    assert finding("idle_holders", before).level is Level.OK
    assert_says(
        finding("idle_holders", after), Level.WARN, f"process {pid} (ledgerd, somebody) has kept 1", "pg_terminate"
    )
