"""What there is to know about a database before it is served from; `ledgerd.storage.checks` judges it.

Two connections are asked: that account locks exclude, and that no pooler shares our sessions with others, shows only
between two. It takes about ten round trips, writes nothing and locks nothing but one random key, for as long as two of
those round trips. Runs on the asyncio side.
"""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime, timedelta

import asyncpg
from msgspec import Struct

from ledgerd.config import Config
from ledgerd.engine.ports import CallRefused
from ledgerd.storage import migrations
from ledgerd.storage.queries import CHECKS, QUERIES

USED = sorted({name for sql in QUERIES.values() for name in re.findall(r"\bledgerd\.(\w+)", sql)})
"""Functions, tables and types of the schema that a daemon names in what it asks."""

IDLE_HOLDER = timedelta(seconds=10)
"""A session that holds an account's lock and does nothing for so long keeps everybody from the account by mistake."""

_PROBE_KEYS = 1 << 47
"""Probes lock keys from here up to twice that: deployment 0, which nobody has, and no small number of somebody else's
advisory locks. The key is random, so that daemons which start together do not meet."""


class PooledPerTransaction(CallRefused):
    """What was prepared on a connection is not there any more: its transactions run in sessions of a pooler."""


class Server(Struct, frozen=True, kw_only=True):
    """The server, the session and the role, as sql/checks.sql asks for them."""

    database: str
    role: str
    version_num: int
    version: str
    in_recovery: bool
    started_at: datetime
    clock: datetime
    pid: int
    encoding: str
    isolation: str
    fsync: str
    full_page_writes: str
    synchronous_commit: str
    synchronous_standby_names: str
    data_checksums: str
    locks_per_transaction: int
    prepared_transactions_max: int
    connections_max: int
    connections_reserved: int
    connections: int
    database_connections_max: int
    database_connections: int
    role_connections_max: int
    role_connections: int
    daemon_connections: int
    is_superuser: bool
    sees_all_sessions: bool
    has_schema: bool
    may_use_schema: bool
    owns_schema: bool
    has_migrations: bool
    may_read_migrations: bool
    absent: list[str]
    not_executable: list[str]
    not_readable: list[str]
    writable: list[str]


class Probe(Struct, frozen=True):
    """What two connections see of each other. ``shared``: a server process answered both, or two answered one."""

    one_server: bool
    pooled: bool
    shared: bool
    excluded: bool
    released: bool


class IdleHolder(Struct, frozen=True):
    """A session that keeps locks of accounts and does nothing."""

    pid: int
    role: str
    application_name: str
    locks: int
    idle_for: timedelta


class Ledger(Struct, frozen=True):
    """What the ledger in the database says of itself."""

    deployment: int
    epoch: str
    currencies: dict[str, int]
    wallet_unit: str | None
    idle_holders: list[IdleHolder]


class Facts(Struct, frozen=True, kw_only=True):
    """All of it. ``applied`` is None without a ledger or without leave to look; ``ledger`` also without privileges.

    ``clock_ahead_s`` is how far the database's clock is before ours, ``clock_error_s`` how wrong that may be.
    ``serving`` says that who asks is a daemon that starts, not somebody who only looks.
    """

    config: Config
    serving: bool
    server: Server
    probe: Probe
    applied: dict[int, str] | None
    ledger: Ledger | None
    clock_ahead_s: float
    clock_error_s: float

    @property
    def daemons(self) -> int:
        """Daemons on this server, with one that is starting. Others are taken to have as many connections each."""
        own = 2 if self.serving and self.probe.pooled else 0  # a pooler hides which server processes are ours
        others = -(-max(self.server.daemon_connections - own, 0) // connections_needed(self.config))
        return max(1, others + self.serving)


def connections_needed(config: Config) -> int:
    """Connections to the database that a daemon keeps open."""
    return config.lanes + config.readers + (config.feed == "notify")


async def examine(
    config: Config, first: asyncpg.Connection, second: asyncpg.Connection, *, serving: bool = False
) -> Facts:
    """Ask for everything that may be asked of this database by this role.

    Raises PooledPerTransaction, or what asyncpg raises.
    """
    try:
        before = datetime.now(UTC)
        server = await _server(first, second)
        after = datetime.now(UTC)
        probe = await _probe(server, first, second)
        applied = None
        if server.has_migrations and server.may_use_schema and server.may_read_migrations:
            applied = {row["number"]: row["checksum"] for row in await first.fetch(QUERIES["applied_migrations"])}
        ledger = None
        if (
            applied is not None
            and _is_ours(applied)
            and not (server.absent or server.not_executable or server.not_readable)
        ):
            ledger = await _ledger(first)
    except asyncpg.PostgresError as error:
        if _is_of_a_pooler(error):
            raise PooledPerTransaction(str(error)) from error
        raise
    return Facts(
        config=config,
        serving=serving,
        server=server,
        probe=probe,
        applied=applied,
        ledger=ledger,
        clock_ahead_s=(server.clock - before - (after - before) / 2).total_seconds(),
        clock_error_s=((after - before) / 2).total_seconds(),
    )


def _is_ours(applied: dict[int, str]) -> bool:
    try:
        return not migrations.pending(applied)
    except migrations.MigrationMismatch:
        return False


def _is_of_a_pooler(error: asyncpg.PostgresError) -> bool:
    """Whether statements vanish or meet: both connections name them alike, in sessions of their own."""
    if isinstance(error, asyncpg.DuplicatePreparedStatementError | asyncpg.InvalidSQLStatementNameError):
        return True
    return "statement pooling" in str(error)  # PgBouncer refuses transactions in that mode


async def _server(first: asyncpg.Connection, second: asyncpg.Connection) -> Server:
    row = await first.fetchrow(CHECKS["server"], USED, first.get_server_pid(), second.get_server_pid())
    return Server(**row)


async def _probe(server: Server, first: asyncpg.Connection, second: asyncpg.Connection) -> Probe:
    key = _PROBE_KEYS + secrets.randbelow(_PROBE_KEYS)
    # A pooler makes up the process id it tells at the start. One that hands out the session that was used last gives
    # ours to the second connection; one that takes turns gives the first connection another one.
    pooled = first.get_server_pid() != server.pid
    again = await first.fetchrow(CHECKS["session"]) if pooled else None
    other = await second.fetchrow(CHECKS["session"])
    await first.execute(f"BEGIN; SELECT pg_catalog.pg_advisory_xact_lock({key})")
    try:
        during = await second.fetchrow(CHECKS["try_lock"], key)
    finally:
        await first.execute("ROLLBACK")
    after = await second.fetchrow(CHECKS["try_lock"], key)
    return Probe(
        one_server=other["started_at"] == server.started_at,
        pooled=pooled,
        shared=(
            other["pid"] == server.pid
            or (again is not None and again["pid"] != server.pid)
            or len({other["pid"], during["pid"], after["pid"]}) > 1
        ),
        excluded=not during["taken"],
        released=after["taken"],
    )


async def _ledger(connection: asyncpg.Connection) -> Ledger:
    identity = await connection.fetchrow(CHECKS["identity"])
    holders = await connection.fetch(CHECKS["idle_holders"], identity["deployment"], IDLE_HOLDER)
    return Ledger(
        deployment=identity["deployment"],
        epoch=identity["epoch"],
        currencies={row["currency"]: row["scale"] for row in await connection.fetch(QUERIES["currencies"])},
        wallet_unit=await connection.fetchval(QUERIES["wallet_unit"]),
        idle_holders=[IdleHolder(**row) for row in holders],
    )
