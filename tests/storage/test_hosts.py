"""Several hosts in one DSN: the primary is found, and a host that says nothing costs no more than its time."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Iterator
from typing import TypeVar
from urllib.parse import quote

import asyncpg
import pytest

from ledgerd.storage.hosts import Host, Route, hosts_of
from tests.conftest import Database
from tests.storage.desk import open_desk

T = TypeVar("T")


@pytest.mark.parametrize(
    ("dsn", "hosts"),
    [
        ("postgresql:///bank", []),
        ("postgresql://ann@/bank?host=/run/postgresql", [Host("/run/postgresql", None)]),
        ("postgresql://ann:pw@db/bank", [Host("db", None)]),
        ("postgresql://ann:p%40w@db:5433/bank", [Host("db", 5433)]),
        ("postgresql://one,two:5433/bank", [Host("one", None), Host("two", 5433)]),
        ("postgresql://[::1]:5433,two/bank", [Host("::1", 5433), Host("two", None)]),
        ("postgresql:///bank?host=one,two&port=1,2", [Host("one", 1), Host("two", 2)]),
        ("postgresql:///bank?host=one,/two&port=1", [Host("one", 1), Host("/two", 1)]),
        ("postgresql://%2Ftmp%2Fa,%2Ftmp%2Fb/bank", [Host("/tmp/a", None), Host("/tmp/b", None)]),
    ],
)
def test_hosts_are_read_as_postgres_reads_them(dsn: str, hosts: list[Host]) -> None:
    assert hosts_of(dsn) == hosts


def test_as_many_ports_as_hosts_or_one() -> None:
    with pytest.raises(ValueError, match="as many hosts"):
        hosts_of("postgresql:///bank?host=one,two&port=1,2,3")


def run(work: Awaitable[T]) -> T:
    async def wait() -> T:
        return await work

    return asyncio.run(wait())


async def found(dsn: str) -> Host | None:
    route = Route(dsn)
    connection = await route.connect(timeout=0.5)
    await connection.close()
    return route.host


def several(database: Database, *others: str) -> str:
    hosts = ",".join([*others, str(database.cluster.socket_dir)])
    return f"postgresql://postgres@/{database.name}?host={quote(hosts)}"


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that takes connections and never answers: a server that hangs, or packets that are dropped."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_hosts_that_are_not_there_or_never_answer_are_passed_over(database: Database, silent: str) -> None:
    primary = Host(str(database.cluster.socket_dir), None)
    assert run(found(several(database, "/nowhere"))) == primary
    assert run(found(several(database, silent))) == primary


def test_a_host_that_refuses_the_role_is_not_passed_over(database: Database) -> None:
    dsn = several(database, str(database.cluster.socket_dir)).replace("postgres@", "nobody_at_all@")
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
        run(found(dsn))


def test_when_there_is_none_it_says_of_each_why(database: Database) -> None:
    with pytest.raises(OSError, match=r"/nowhere: .*; /also: ") as failed:
        run(found(f"postgresql://postgres@/{database.name}?host=/nowhere,/also"))
    assert "primary" not in str(failed.value)


def test_a_server_that_takes_no_writes_is_passed_over(database: Database) -> None:
    run(read_only(database, "on"))
    try:
        with pytest.raises(OSError, match="not to be written to"):
            run(found(several(database, "/nowhere")))
        assert run(found(several(database, "/nowhere") + "&target_session_attrs=any"))
    finally:
        run(read_only(database, "off"))


async def read_only(database: Database, value: str) -> None:
    connection = await asyncpg.connect(database.dsn, server_settings={"default_transaction_read_only": "off"})
    await connection.execute(f"ALTER DATABASE {database.name} SET default_transaction_read_only = {value}")
    await connection.close()


async def test_all_connections_of_a_generation_go_to_the_host_that_the_first_one_found(database: Database) -> None:
    dsn = several(database, "/nowhere").replace("postgres@", "ledgerd@")
    async with open_desk(database, dsn=dsn) as desk:
        route = desk.generation.crossing.route
        assert route is not None
        assert route.host == Host(str(database.cluster.socket_dir), None)
