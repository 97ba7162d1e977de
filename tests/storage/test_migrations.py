"""Migrations are applied once each, as a whole, by one migrator at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import asyncpg
import msgspec
import pytest

from ledgerd.storage import migrations
from ledgerd.storage.migrations import Migration, MigrationMismatch
from tests.conftest import Database


def ask(dsn: str, query: str, *values: Any) -> Any:
    async def work() -> Any:
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetchval(query, *values)
        finally:
            await connection.close()

    return asyncio.run(work())


def applied(database: Database) -> list[int]:
    return list(ask(database.dsn, "SELECT array_agg(number ORDER BY number) FROM ledgerd.migrations") or [])


def objects(database: Database) -> int:
    return int(ask(database.dsn, "SELECT count(*) FROM pg_class WHERE relnamespace::regnamespace::text = 'ledgerd'"))


@pytest.fixture
def with_migration(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Migration]:
    """A further migration at the end of this release's."""

    def add(sql: str) -> Migration:
        real = migrations.all_migrations()
        number = real[-1].number + 1
        further = Migration(number, f"{number:04}_further", "checksum", sql)
        monkeypatch.setattr(migrations, "all_migrations", lambda: [*real, further])
        return further

    return add


def test_the_files_are_numbered_from_one_without_a_hole() -> None:
    numbers = [migration.number for migration in migrations.all_migrations()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_plan_names_what_is_missing_and_changes_nothing(empty_database: Database) -> None:
    assert migrations.plan(empty_database.dsn) == migrations.all_migrations()
    assert ask(empty_database.dsn, "SELECT to_regnamespace('ledgerd')") is None


def test_migrating_reports_and_answers_each(empty_database: Database) -> None:
    reported: list[Migration] = []
    done = migrations.migrate(empty_database.dsn, report=reported.append)

    assert done == reported == migrations.all_migrations()
    assert applied(empty_database) == [migration.number for migration in done]


def test_migrating_again_does_nothing(database: Database) -> None:
    before = objects(database)
    assert migrations.plan(database.dsn) == []
    assert migrations.migrate(database.dsn) == []
    assert objects(database) == before


def test_two_migrators_at_once_apply_everything_once(empty_database: Database) -> None:
    async def both() -> list[list[Migration]]:
        # The wrappers run a loop of their own; two of them in one process need threads.
        return await asyncio.gather(*(asyncio.to_thread(migrations.migrate, empty_database.dsn) for _ in range(2)))

    done = sorted(asyncio.run(both()), key=len)
    assert done == [[], migrations.all_migrations()]
    assert applied(empty_database) == [migration.number for migration in migrations.all_migrations()]


def test_a_file_that_changed_after_it_was_applied_is_refused(database: Database) -> None:
    ask(database.dsn, "UPDATE ledgerd.migrations SET checksum = 'other' WHERE number = 2")
    for run in (migrations.plan, migrations.migrate):
        with pytest.raises(MigrationMismatch, match="0002_people"):
            run(database.dsn)


def test_a_database_of_a_newer_release_is_refused(database: Database) -> None:
    ask(database.dsn, "INSERT INTO ledgerd.migrations (number, name, checksum) VALUES (9999, 'new', 'x')")
    for run in (migrations.plan, migrations.migrate):
        with pytest.raises(MigrationMismatch, match="9999"):
            run(database.dsn)


def test_a_migration_that_fails_leaves_nothing_and_can_be_repaired(
    database: Database, with_migration: Callable[[str], Migration], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = applied(database)
    broken = with_migration("CREATE TABLE ledgerd.half (n integer); SELECT 1 / 0;")
    with pytest.raises(asyncpg.DivisionByZeroError):
        migrations.migrate(database.dsn)
    assert ask(database.dsn, "SELECT to_regclass('ledgerd.half')") is None
    assert applied(database) == before

    real = [migration for migration in migrations.all_migrations() if migration.number != broken.number]
    repaired = msgspec.structs.replace(broken, sql="CREATE TABLE ledgerd.half (n integer);")
    monkeypatch.setattr(migrations, "all_migrations", lambda: [*real, repaired])
    assert migrations.migrate(database.dsn) == [repaired]


def test_the_migrations_before_one_that_fails_stay(
    empty_database: Database, with_migration: Callable[[str], Migration]
) -> None:
    broken = with_migration("SELECT 1 / 0;")
    with pytest.raises(asyncpg.DivisionByZeroError):
        migrations.migrate(empty_database.dsn)
    assert migrations.plan(empty_database.dsn) == [broken]


def test_an_owner_who_is_no_superuser_can_migrate_and_its_database_can_be_served(empty_database: Database) -> None:
    owner = f"owner_{empty_database.name}"
    ask(empty_database.dsn, f"CREATE ROLE {owner} LOGIN CREATEROLE")
    ask(empty_database.dsn, f"ALTER DATABASE {empty_database.name} OWNER TO {owner}")
    migrations.migrate(empty_database.cluster.dsn_of(empty_database.name, owner))

    assert ask(empty_database.daemon_dsn, "SELECT epoch FROM ledgerd.begin_serving(false)")
    ask(empty_database.dsn, f"REASSIGN OWNED BY {owner} TO postgres")
    ask(empty_database.dsn, f"DROP ROLE {owner}")
