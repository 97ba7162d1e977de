"""A private PostgreSQL for every test process, and a fresh, migrated database for every test that asks for one."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from msgspec import Struct

from ledgerd.storage import migrations
from ledgerd.storage.embedded import DAEMON_ROLE, Cluster, temporary_cluster

# A test says what must hold, not how fast: machines are shared, and a slow moment is no failure.
settings.register_profile("ledgerd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ledgerd")

TEMPLATE = "ledgerd_template"

_numbers = itertools.count(1)


class Database(Struct, frozen=True):
    """One database of the private cluster. ``dsn`` is the owner's, ``daemon_dsn`` the least-privileged role's."""

    name: str
    dsn: str
    daemon_dsn: str
    cluster: Cluster


async def _execute(dsn: str, *statements: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running PostgreSQL; each xdist worker has its own. Synchronous: it outlives every Trio run."""
    with temporary_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def template(cluster: Cluster) -> str:
    """Name of a migrated database that nobody connects to, so that copies can be made from it."""
    asyncio.run(_execute(cluster.dsn_of("postgres"), f"CREATE DATABASE {TEMPLATE}"))
    migrations.migrate(cluster.dsn_of(TEMPLATE))
    return TEMPLATE


def _fresh(cluster: Cluster, template: str) -> Iterator[Database]:
    name = f"test_{next(_numbers)}"
    admin = cluster.dsn_of("postgres")
    asyncio.run(_execute(admin, f"CREATE DATABASE {name} TEMPLATE {template}"))
    yield Database(name, cluster.dsn_of(name), cluster.dsn_of(name, DAEMON_ROLE), cluster)
    asyncio.run(_execute(admin, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def database(cluster: Cluster, template: str) -> Iterator[Database]:
    """A migrated database without any data, dropped after the test."""
    yield from _fresh(cluster, template)


@pytest.fixture
def empty_database(cluster: Cluster) -> Iterator[Database]:
    """A database without a ledger, dropped after the test."""
    yield from _fresh(cluster, "template1")
