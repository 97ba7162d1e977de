"""What the tests of the storage share."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import asyncpg
import pytest

from ledgerd.storage.embedded import Cluster
from tests.conftest import Database
from tests.storage.bench import Bench


@pytest.fixture(scope="session", autouse=True)
def _unsynced(cluster: Cluster) -> None:
    """Nothing here pulls the plug; without waiting for the disk, a database per test is cheap."""

    async def work() -> None:
        connection = await asyncpg.connect(cluster.dsn_of("postgres"))
        await connection.execute("ALTER SYSTEM SET fsync = off")
        await connection.execute("SELECT pg_reload_conf()")
        await connection.close()

    asyncio.run(work())


@pytest.fixture
def bench(database: Database) -> Iterator[Bench]:
    """A kernel in a fresh database."""
    bench = Bench(database)
    yield bench
    bench.close()
