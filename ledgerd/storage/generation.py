"""One generation of everything that touches the database: opened as a whole, broken as a whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import asyncpg
import structlog
import trio
from msgspec import Struct

from ledgerd import metrics
from ledgerd.config import Config
from ledgerd.engine.ports import StorageUnavailable
from ledgerd.engine.states import LedgerFacts
from ledgerd.masking import error_text
from ledgerd.storage.books import PostgresBooks, Readers
from ledgerd.storage.checks import PER_TRANSACTION, Finding, Level, judge
from ledgerd.storage.connection import Crossing, connect, open_crossing, settle
from ledgerd.storage.facts import PooledPerTransaction, connections_needed, examine
from ledgerd.storage.hosts import Route
from ledgerd.storage.identity import Memory
from ledgerd.storage.lane import PostgresLane
from ledgerd.storage.notifications import Notifications
from ledgerd.storage.queries import QUERIES
from ledgerd.storage.reaching import unreached

PING_INTERVAL_S = 2.0

log = structlog.get_logger(__name__)


class DatabaseUnfit(Exception):
    """The database cannot be served from, and waiting will not help: the message says what to mend."""


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

    async def cut_off(self) -> None:
        """When cancelled, end the calls that are in flight: their shields would hold the end up as long as they last.

        Only for the end of the daemon, when it no longer waits for outcomes.
        """
        try:
            await trio.sleep_forever()
        finally:
            for connection in list(self.crossing.busy_since):
                connection.terminate()


class _Fit(Struct, frozen=True):
    """What a database that may be served from said of itself."""

    ledger: LedgerFacts
    is_pooled: bool


@asynccontextmanager
async def open_generation(
    config: Config, books: PostgresBooks, *, keep_epoch: bool = False
) -> AsyncIterator[Generation]:
    """Connect lanes and readers, check the database, and serve `books` until the end of the block.

    Raises StorageUnavailable (try again), DatabaseUnfit (do not); both arrive in an exception group.
    """
    async with open_crossing(Route(config.dsn, books.memory.old_primaries)) as crossing:
        connections: list[asyncpg.Connection] = []
        try:
            # The connections that check stay as a reader and a lane: one that closes ends the generation.
            for _ in range(2):
                await _open_connection(config, crossing, connections)
            facts = await _check(config, crossing, connections, books.memory, keep_epoch=keep_epoch)
            while len(connections) < connections_needed(config):
                await _open_connection(config, crossing, connections)
            if facts.is_pooled:
                for connection in connections:
                    await crossing.run(partial(settle, config, connection), connection)
            await crossing.run(partial(books.leftovers.end, connections[0]), connections[0])
            if not facts.is_pooled:
                await crossing.run(partial(books.leftovers.note, connections[0], connections), connections[0])
            readers, rest = connections[: config.readers], connections[config.readers :]
            lanes = [await _open_lane(config, crossing, connection) for connection in rest[: config.lanes]]
            notifications = None
            if config.feed == "notify":
                notifications = Notifications(crossing, rest[config.lanes])
                await notifications.listen()
            books.attach(Readers(crossing, readers), facts.ledger, config.wallet_unit)
            metrics.GENERATIONS.inc()
            metrics.DATABASE_UP.set(1)
            log.info(
                "database_connected",
                epoch=facts.ledger.epoch,
                lanes=config.lanes,
                readers=config.readers,
                feed=config.feed,
                is_pooled=facts.is_pooled,
            )
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


async def _open_connection(config: Config, crossing: Crossing, connections: list[asyncpg.Connection]) -> None:
    async def work() -> asyncpg.Connection:
        return await connect(config, crossing)

    try:
        connections.append(await crossing.run_unwatched(work))
    except Exception as error:
        why = unreached(error)
        if why.is_final:
            raise DatabaseUnfit(why.sentence) from error
        raise StorageUnavailable(why.sentence) from error


async def _open_lane(config: Config, crossing: Crossing, connection: asyncpg.Connection) -> PostgresLane:
    statement = await crossing.run(lambda: connection.prepare(QUERIES["post"]), connection)
    return PostgresLane(crossing, connection, statement, rerun_within_s=config.statement_timeout_s)


async def _check(
    config: Config,
    crossing: Crossing,
    connections: list[asyncpg.Connection],
    memory: Memory,
    *,
    keep_epoch: bool,
) -> _Fit:
    """Is this a database that a daemon of this release may serve from? Looks before it writes anything."""
    first, second = connections

    async def work() -> _Fit:
        facts = await examine(config, first, second, serving=True)
        _obey(judge(facts))
        assert facts.ledger is not None, "a ledger that nothing is wrong with was read"
        row = await memory.begin_serving(first, crossing.route.host, keep_epoch=keep_epoch)
        ledger = LedgerFacts(
            epoch=row["epoch"],
            deployment=row["deployment"],
            currencies=facts.ledger.currencies,
            cursor_key=row["cursor_key"],
        )
        return _Fit(ledger=ledger, is_pooled=facts.probe.pooled)

    try:
        return await crossing.run(work, first)
    except PooledPerTransaction as error:
        raise DatabaseUnfit(PER_TRANSACTION.sentence) from error
    except asyncpg.PostgresError as error:
        raise DatabaseUnfit(
            f"the database refuses what every daemon asks ({error_text(error)}): is it PostgreSQL, and did anybody "
            "change its schema? `ledgerd doctor` says more"
        ) from error


def _obey(findings: list[Finding]) -> None:
    """Say what is worth a word. Raises StorageUnavailable if waiting may help, and DatabaseUnfit if it will not."""
    for finding in findings:
        if finding.level in (Level.INFO, Level.WARN):
            tell = log.warning if finding.level is Level.WARN else log.info
            tell("database_check", check=finding.check, found=finding.what, hint=finding.advice)
    for level, error in ((Level.WAIT, StorageUnavailable), (Level.REFUSE, DatabaseUnfit)):
        sentences = [finding.sentence for finding in findings if finding.level is level]
        if sentences:
            raise error("; ".join(sentences))
