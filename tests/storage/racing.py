"""Kernel calls on several connections at once, and how to know that one of them waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from ledgerd.storage.queries import QUERIES
from tests.model import Command, Unit
from tests.storage.bench import Answer, Bench, answers, arguments


async def post(connection: asyncpg.Connection, *commands: Command) -> list[Answer]:
    units = [Unit((command,)) for command in commands]
    row = await connection.fetchrow(QUERIES["post"], *arguments(units))
    return [answer for (answer,) in answers(row, units)]


@asynccontextmanager
async def lanes(bench: Bench, count: int) -> AsyncIterator[list[asyncpg.Connection]]:
    connections = [await asyncpg.connect(bench.database.daemon_dsn) for _ in range(count)]
    try:
        yield connections
    finally:
        for connection in connections:
            await connection.close()


async def until_waiting(
    bench: Bench, connection: asyncpg.Connection, *, for_: str, unless: asyncio.Task[Any] | None = None
) -> None:
    """Until a connection waits for a lock of this type, or the task is done; the test's timeout bounds it."""
    pid = connection.get_server_pid()
    query = "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND locktype = $2 AND NOT granted)"
    while not await bench.owner.fetchval(query, pid, for_):
        if unless is not None and unless.done():
            return
