"""One generation of everything that touches the database: opened as a whole, broken as a whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import structlog
import trio
from msgspec import Struct

from ledgerd import metrics
from ledgerd.config import MINOR_UNIT, Config
from ledgerd.engine.ports import StorageUnavailable
from ledgerd.engine.states import LedgerFacts
from ledgerd.storage import migrations
from ledgerd.storage.books import PostgresBooks, Readers
from ledgerd.storage.connection import Crossing, connect, open_crossing
from ledgerd.storage.failures import Failure, classify
from ledgerd.storage.lane import PostgresLane
from ledgerd.storage.notifications import Notifications
from ledgerd.storage.queries import QUERIES
from ledgerd_protocol.money import iso_scale

PING_INTERVAL_S = 2.0

log = structlog.get_logger(__name__)


class DatabaseUnfit(Exception):
    """The database cannot be served from, and waiting will not help: wrong schema, currencies or settings."""


class Generation(Struct, frozen=True):
    """A running generation: its lanes, its ear for other daemons (with ``feed = notify``), and a watch."""

    lanes: list[PostgresLane]
    notifications: Notifications | None
    crossing: Crossing
    books: PostgresBooks
    call_timeout_s: float

    async def watch(self) -> None:
        """Raises StorageUnavailable as soon as the generation cannot go on."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.crossing.watch, self.call_timeout_s)
            while True:
                await trio.sleep(PING_INTERVAL_S)
                await self.books.ping()


@asynccontextmanager
async def open_generation(
    config: Config, books: PostgresBooks, *, keep_epoch: bool = False
) -> AsyncIterator[Generation]:
    """Connect lanes and readers, check the database, and serve `books` until the end of the block.

    Raises StorageUnavailable (try again), DatabaseUnfit (do not); both arrive in an exception group.
    """
    async with open_crossing() as crossing:
        connections: list[asyncpg.Connection] = []
        try:
            # The connection that checks stays as a reader: one that closes ends the generation.
            readers = [await _open_connection(config, crossing, connections)]
            facts = await _check(config, crossing, readers[0], keep_epoch=keep_epoch)
            readers += [await _open_connection(config, crossing, connections) for _ in range(config.readers - 1)]
            lanes = [await _open_lane(config, crossing, connections) for _ in range(config.lanes)]
            notifications = None
            if config.feed == "notify":
                notifications = Notifications(crossing, await _open_connection(config, crossing, connections))
                await notifications.listen()
            books.attach(Readers(crossing, readers), facts, config.wallet_unit)
            metrics.GENERATIONS.inc()
            metrics.DATABASE_UP.set(1)
            yield Generation(
                lanes=lanes,
                notifications=notifications,
                crossing=crossing,
                books=books,
                call_timeout_s=config.call_timeout_s,
            )
        finally:
            books.detach()
            metrics.DATABASE_UP.set(0)
            # Nothing is in flight here but calls that hang: their outcome is unknown already.
            for connection in connections:
                connection.terminate()


async def _open_connection(
    config: Config, crossing: Crossing, connections: list[asyncpg.Connection]
) -> asyncpg.Connection:
    async def work() -> asyncpg.Connection:
        return await connect(config, crossing)

    try:
        connection = await crossing.run_unwatched(work)
    except Exception as error:
        raise _unreachable(error) from error
    connections.append(connection)
    return connection


def _unreachable(error: Exception) -> Exception:
    if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError | asyncpg.InvalidCatalogNameError):
        return DatabaseUnfit(f"the database refuses the connection: {error}")
    if classify(error) is Failure.REFUSED:
        return DatabaseUnfit(f"the database refuses the connection: {error}")
    return StorageUnavailable(f"the database cannot be reached: {error or type(error).__name__}")


async def _open_lane(config: Config, crossing: Crossing, connections: list[asyncpg.Connection]) -> PostgresLane:
    connection = await _open_connection(config, crossing, connections)
    statement = await crossing.run(lambda: connection.prepare(QUERIES["post"]), connection)
    return PostgresLane(crossing, connection, statement, rerun_within_s=config.statement_timeout_s)


async def _check(
    config: Config, crossing: Crossing, connection: asyncpg.Connection, *, keep_epoch: bool
) -> LedgerFacts:
    """Is this a database that a daemon of this release may serve from?"""

    async def work() -> LedgerFacts:
        if await connection.fetchval("SELECT to_regclass('ledgerd.migrations')") is None:
            raise DatabaseUnfit("the database has no ledger yet: run `ledgerd migrate --apply` with the owner's DSN")
        applied = {row["number"]: row["checksum"] for row in await connection.fetch(QUERIES["applied_migrations"])}
        try:
            missing = migrations.pending(applied)
        except migrations.MigrationMismatch as error:
            raise DatabaseUnfit(str(error)) from error
        if missing:
            raise DatabaseUnfit(
                f"the database lacks {len(missing)} migration(s) of this release: run `ledgerd migrate --apply`"
            )
        if await connection.fetchval("SHOW transaction_isolation") != "read committed":
            raise DatabaseUnfit("the role's transactions are not READ COMMITTED: ALTER ROLE ... RESET ALL")
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            if await connection.fetchval(f"SHOW {setting}") == "off":
                log.warning("unsafe_database_setting", setting=setting, detail="a crash can lose acknowledged money")
        currencies = {row["currency"]: row["scale"] for row in await connection.fetch(QUERIES["currencies"])}
        for currency, scale in currencies.items():
            ours = config.currencies.get(currency, iso_scale(currency))
            if ours is not None and ours != scale:
                raise DatabaseUnfit(
                    f"{currency} has {scale} decimals in this database, {ours} in this configuration: "
                    "a currency's scale never changes"
                )
        wallet_unit = await connection.fetchval(QUERIES["wallet_unit"])
        if wallet_unit not in (None, config.wallet_unit):
            raise DatabaseUnfit(
                f"the betting wallet of this database counts in {_unit_name(wallet_unit)}, this configuration in "
                f"{_unit_name(config.wallet_unit)}: set wallet_unit_decimals as it was, for the unit never changes"
            )
        row = await connection.fetchrow(QUERIES["begin_serving"], keep_epoch)
        return LedgerFacts(
            epoch=row["epoch"],
            deployment=row["deployment"],
            currencies=currencies,
            cursor_key=row["cursor_key"],
        )

    try:
        return await crossing.run(work, connection)
    except asyncpg.PostgresError as error:
        raise DatabaseUnfit(f"the database refuses the daemon's role: {error}") from error


def _unit_name(wallet_unit: str) -> str:
    return "minor units" if wallet_unit == MINOR_UNIT else f"units of {wallet_unit} decimals"
