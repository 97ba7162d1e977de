"""A new epoch by hand, with the owner's connection: for what no daemon can notice by itself (see `identity`)."""

from __future__ import annotations

import asyncio

import asyncpg

# As if the data had come from elsewhere just now: a row that was not written here under its own id is known already.
_RENEW = """
UPDATE ledgerd.settings SET
    epoch = left(replace(gen_random_uuid()::text, '-', ''), 16),
    ids_from = pg_snapshot_xmax(pg_current_snapshot())
RETURNING epoch
"""


def present_epoch(dsn: str) -> str:
    """The epoch as it is. Raises OSError or asyncpg.PostgresError."""
    return asyncio.run(_value(dsn, "SELECT epoch FROM ledgerd.settings"))


def renew_epoch(dsn: str) -> str:
    """Mint a new epoch and answer it. Raises OSError or asyncpg.PostgresError."""
    return asyncio.run(_value(dsn, _RENEW))


async def _value(dsn: str, sql: str) -> str:
    connection = await asyncpg.connect(dsn)
    try:
        return str(await connection.fetchval(sql))
    finally:
        await connection.close()
