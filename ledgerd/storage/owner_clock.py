"""The ledger's own clock, moved with the owner's connection: for development and tests, never in production.

Holds and advances go by this clock: the real one plus an offset. Tokens, passwords and throttles do not.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import asyncpg

from ledgerd.storage.failures import DATABASE_ERRORS

STEP_S = 0.1
"""Between two steps of a clock that runs faster."""

_MOVE = "UPDATE ledgerd.settings SET clock_offset = clock_offset + $1"


def move_clock(dsn: str, days: float) -> None:
    """Let so many days pass at once. Raises OSError or asyncpg.PostgresError."""
    asyncio.run(_move(dsn, timedelta(days=days)))


async def _move(dsn: str, step: timedelta) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(_MOVE, step)
    finally:
        await connection.close()


@contextmanager
def running_clock(dsn: str, speed: float) -> Iterator[None]:
    """Let the clock run ``speed`` times as fast for as long as the block lasts; what has passed has passed.

    A thread of its own: whatever the daemon does, time goes on. While the database is away it stands still.
    """
    stop = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_run(dsn, speed, stop)), name="ledger clock")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


async def _run(dsn: str, speed: float, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            connection = await asyncpg.connect(dsn)
        except DATABASE_ERRORS:
            await asyncio.sleep(STEP_S)
            continue
        try:
            await _step(connection, speed, stop)
        except DATABASE_ERRORS:
            await asyncio.sleep(STEP_S)
        finally:
            connection.terminate()


async def _step(connection: asyncpg.Connection, speed: float, stop: threading.Event) -> None:
    then = time.monotonic()
    while not stop.is_set():
        await asyncio.sleep(STEP_S)
        now = time.monotonic()
        await connection.execute(_MOVE, timedelta(seconds=(now - then) * (speed - 1)))
        then = now
