"""Connections, and the one place where Trio code crosses over to asyncio.

Everything that touches the database belongs to one generation: an asyncio loop inside Trio, the lanes' connections,
the readers' connections, a watch. When one of them breaks, all of it ends with StorageUnavailable and the daemon
starts the next generation.

A unit of work crosses once and is shielded: cancelling a COMMIT would leave its outcome unknown. What bounds it is the
server's timeouts, and a watch that terminates a connection whose work takes longer than ``call_timeout_s``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar, cast

import asyncpg
import structlog
import trio
import trio_asyncio

from ledgerd.config import Config
from ledgerd.engine.ports import CallRefused, StorageUnavailable
from ledgerd.masking import error_text
from ledgerd.storage.failures import Failure, classify
from ledgerd.storage.hosts import Route
from ledgerd_protocol.errors import LedgerError

T = TypeVar("T")

WATCH_INTERVAL_S = 1.0

_OVER = ConnectionError("the generation is over")

log = structlog.get_logger(__name__)


class Crossing:
    """Runs coroutines of the asyncio side for Trio tasks, and knows since when each connection is busy."""

    def __init__(self, loop: trio_asyncio.BaseTrioEventLoop, route: Route) -> None:
        self._loop = loop
        self._broken = trio.Event()
        self.cause: BaseException | None = None
        self.route = route
        """Where its first connection led: the others go there too, or the generation fails."""
        self.busy_since: dict[asyncpg.Connection, float] = {}

    async def run(self, work: Callable[[], Awaitable[T]], connection: asyncpg.Connection) -> T:
        """Run one bounded unit of work on a connection, shielded from cancellation.

        Raises StorageUnavailable, CallRefused, LedgerError, or an asyncpg error that the caller expects (REFUSED).
        """
        if self.cause is not None:
            # Whoever waited for a connection may get it when the generation is over, and its loop with it.
            raise StorageUnavailable("the connection to the database was lost", applied=False)
        self.busy_since[connection] = trio.current_time()
        try:
            return await self.run_unwatched(work)
        except (StorageUnavailable, CallRefused, LedgerError):
            raise
        except Exception as error:
            failure = classify(error)
            if not isinstance(error, asyncpg.PostgresError) and connection.is_closed():
                # Ended between two steps of asyncpg, which then trips over what it has just put away.
                failure = Failure.LOST
            if failure is Failure.LOST:
                self.break_off(error)
                raise StorageUnavailable(f"the connection was lost: {error_text(error)}", applied=None) from error
            if failure is Failure.LOST_BEFORE:
                raise StorageUnavailable(f"the database refused: {error_text(error)}", applied=False) from error
            raise
        finally:
            self.busy_since.pop(connection, None)

    async def run_unwatched(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run a coroutine that bounds itself, shielded from cancellation. Raises what it raises."""
        with trio.CancelScope(shield=True):
            result = await self._loop.run_aio_coroutine(work())
        return cast("T", result)

    def break_off(self, cause: BaseException) -> None:
        """Say that this generation cannot go on. Never awaits, so that connection callbacks may call it."""
        if self.cause is None:
            self.cause = cause
        self._broken.set()

    async def watch(self, call_timeout_s: float) -> None:
        """Terminate connections that hang, and raise StorageUnavailable when the generation is broken."""
        while True:
            with trio.move_on_after(WATCH_INTERVAL_S):
                await self._broken.wait()
                raise StorageUnavailable(
                    f"the connection to the database was lost: {error_text(self.cause or _OVER)}", applied=None
                )
            now = trio.current_time()
            for connection, since in list(self.busy_since.items()):
                if now - since > call_timeout_s:
                    log.error("database_silent", seconds=round(now - since, 1), call_timeout_s=call_timeout_s)
                    connection.terminate()
                    self.break_off(TimeoutError("the database did not answer in time"))


async def connect(config: Config, crossing: Crossing) -> asyncpg.Connection:
    """Open a connection with this daemon's timeouts. Runs on the asyncio side."""
    connection = await open_session(config, "ledgerd", _session_settings(config), crossing.route)
    connection.add_termination_listener(
        lambda _: crossing.break_off(ConnectionError("the server closed the connection"))
    )
    return connection


async def open_session(
    config: Config, application_name: str, settings: dict[str, str], route: Route
) -> asyncpg.Connection:
    """Open a connection with settings of its session, which a pooler in between may leave out: see `settle`."""
    # What PgBouncer passes on. It refuses or ignores, as it is told, whatever else a session begins with.
    plain = {"application_name": application_name, "timezone": "UTC"}
    try:
        return await route.connect(timeout=config.connect_timeout_s, server_settings=plain | settings)
    except (asyncpg.ProtocolViolationError, OSError) as error:
        if "unsupported startup parameter" not in str(error):
            raise
        return await route.connect(timeout=config.connect_timeout_s, server_settings=plain)


async def settle(config: Config, connection: asyncpg.Connection) -> None:
    """Give a session that came through a pooler what it should have begun with. Runs on the asyncio side."""
    settings = _session_settings(config)
    await connection.execute(
        "SELECT set_config(s.name, s.value, false) FROM unnest($1::text[], $2::text[]) AS s (name, value)",
        list(settings),
        list(settings.values()),
    )


def _session_settings(config: Config) -> dict[str, str]:
    def ms(seconds: float) -> str:
        return str(round(seconds * 1000))

    return {
        "default_transaction_isolation": "read committed",
        "lock_timeout": ms(config.lock_timeout_s),
        "statement_timeout": ms(config.statement_timeout_s),
        "idle_in_transaction_session_timeout": ms(config.statement_timeout_s),
    }


@asynccontextmanager
async def open_crossing(route: Route) -> AsyncIterator[Crossing]:
    """An asyncio loop inside Trio, for one generation."""
    async with trio_asyncio.open_loop() as loop:
        crossing = Crossing(loop, route)
        try:
            yield crossing
        finally:
            crossing.break_off(_OVER)
