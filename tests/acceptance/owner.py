"""What the database's owner does by hand, outside every daemon."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import trio


def fetch(dsn: str, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """Run one statement; its rows."""

    async def work() -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(dsn)
        try:
            return [tuple(row) for row in await connection.fetch(sql, *values)]
        finally:
            await connection.close()

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        return runner.run(work())


def value(dsn: str, sql: str, *values: Any) -> Any:
    """Run one statement; the first value of its first row, None without a row."""
    rows = fetch(dsn, sql, *values)
    return rows[0][0] if rows else None


async def ask(dsn: str, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """`fetch` in a thread: asyncio does not run inside Trio's."""
    return await trio.to_thread.run_sync(lambda: fetch(dsn, sql, *values))


async def move_clock(dsn: str, seconds: int) -> None:
    """Let so much time pass for holds and advances."""
    await ask(dsn, "UPDATE ledgerd.settings SET clock_offset = clock_offset + make_interval(secs => $1)", seconds)
