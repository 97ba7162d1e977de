"""Numbered SQL files, applied once each, in order, under an advisory lock, with their checksums on record.

Run as the owner of the database. Each migration is one transaction. A file that changed after it was applied is an
error: write a new one.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from importlib.resources import files

import asyncpg
from msgspec import Struct

from ledgerd import __version__

_LOCK = 0x6C65_6467_6572_6400  # "ledgerd\0": one migrator at a time in a database

_BOOTSTRAP = """
CREATE SCHEMA IF NOT EXISTS ledgerd;
CREATE TABLE IF NOT EXISTS ledgerd.migrations (
    number integer PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);
"""


class MigrationMismatch(Exception):
    """The database was migrated by other files than these: a newer release, or a file that was edited.

    ``found`` says which, ``advice`` what to do.
    """

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(f"{found}: {advice}")
        self.found = found
        self.advice = advice


class Migration(Struct, frozen=True):
    """One numbered file. ``checksum`` is the SHA-256 of its bytes."""

    number: int
    name: str
    checksum: str
    sql: str


def all_migrations() -> list[Migration]:
    """Every migration of this release, in order."""
    folder = files("ledgerd.storage") / "sql" / "migrations"
    found = []
    for entry in folder.iterdir():
        if entry.name.endswith(".sql"):
            data = entry.read_bytes()
            found.append(
                Migration(int(entry.name[:4]), entry.name[:-4], hashlib.sha256(data).hexdigest(), data.decode("utf-8"))
            )
    found.sort(key=lambda migration: migration.number)
    return found


def pending(applied: Mapping[int, str]) -> list[Migration]:
    """Migrations that are missing, given number and checksum of those applied. Raises MigrationMismatch."""
    known = {migration.number: migration for migration in all_migrations()}
    unknown = [number for number in applied if number not in known]
    if unknown:
        raise MigrationMismatch(
            f"the database is newer than this ledgerd: it is at migration {max(unknown)}, {__version__} knows no later "
            f"one than {max(known)}",
            "upgrade ledgerd on this machine to the release that migrated the database; the database cannot go back",
        )
    for number, checksum in applied.items():
        if known[number].checksum != checksum:
            raise MigrationMismatch(
                f"migration {known[number].name} was applied from a file with other contents",
                "use the release that applied it, or restore the file",
            )
    return [migration for number, migration in known.items() if number not in applied]


def plan(dsn: str) -> list[Migration]:
    """What `migrate` would apply. Changes nothing. Raises MigrationMismatch, OSError, asyncpg.PostgresError."""
    return asyncio.run(_plan(dsn))


def migrate(dsn: str, *, report: Callable[[Migration], None] = lambda _: None) -> list[Migration]:
    """Apply what is missing and answer it; ``report`` is called before each. Raises as `plan`."""
    return asyncio.run(_migrate(dsn, report))


async def _plan(dsn: str) -> list[Migration]:
    connection = await asyncpg.connect(dsn)
    try:
        if await connection.fetchval("SELECT to_regclass('ledgerd.migrations')") is None:
            return all_migrations()
        return pending(await _applied(connection))
    finally:
        await connection.close()


async def _migrate(dsn: str, report: Callable[[Migration], None]) -> list[Migration]:
    connection = await asyncpg.connect(dsn)
    try:
        # A session-level lock, because migrations are several transactions; this connection is closed at the end.
        await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
        await connection.execute(_BOOTSTRAP)
        missing = pending(await _applied(connection))
        for migration in missing:
            report(migration)
            async with connection.transaction():
                await connection.execute(migration.sql)
                await connection.execute(
                    "INSERT INTO ledgerd.migrations (number, name, checksum) VALUES ($1, $2, $3)",
                    migration.number,
                    migration.name,
                    migration.checksum,
                )
        return missing
    finally:
        await connection.close()


async def _applied(connection: asyncpg.Connection) -> dict[int, str]:
    rows = await connection.fetch("SELECT number, checksum FROM ledgerd.migrations ORDER BY number")
    return {row["number"]: row["checksum"] for row in rows}
