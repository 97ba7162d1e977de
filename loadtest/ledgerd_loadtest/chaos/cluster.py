"""A PostgreSQL to be broken: killed, frozen, starved of disk, connections and locks, and always started again.

Rules of this file:

- `ledgerd dev` makes the database, once, and ends: the roles, the migrations and the operator's token are its own.
- From then on the server is a child of ours, started without `pg_ctl`: ``SIGQUIT`` to it is what `pg_ctl stop -m
  immediate` sends. Its programs are those that `dev` was seen to run.
- Where it can (as root, on Linux), everything lives on a small file system of its own, so that a full disk is a real
  one, down to the log that PostgreSQL cannot write.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import trio

from ledgerd_loadtest.baseline import BaselineFailed, value
from ledgerd_loadtest.target import spawned_daemon

READY_TIMEOUT_S = 60
REMOVE_TIMEOUT_S = 15
LOOK_S = 0.05

DISK_MIB = 512
SPARE_BYTES = 16_384
"""What a full disk has left: not even the next page of a table."""

SETTINGS = {
    "listen_addresses": "",
    "max_connections": "40",
    "shared_buffers": "32MB",
    "min_wal_size": "32MB",
    "max_wal_size": "64MB",
    "deadlock_timeout": "200ms",
    "commit_delay": "5000",  # microseconds, in each commit: a slow disk, and something to meet a commit in
    "commit_siblings": "0",
    "log_line_prefix": "%m [%p] ",
    "log_checkpoints": "off",
    "autovacuum_worker_slots": "4",
    "max_worker_processes": "2",
    "max_wal_senders": "0",
}
"""A server that is small, so that there is something to run out of."""


class ClusterFailed(Exception):
    """PostgreSQL did not come back: what it logged says why."""


class Cluster:
    """The server's process and files. `open_cluster` makes it."""

    def __init__(self, data: Path, programs: Path, sockets: Path, token: str, *, own_disk: bool) -> None:
        self.token = token
        self.settings = dict(SETTINGS)
        self.starved = False  # runs with further settings
        self.own_disk = own_disk
        self.log = sockets / "postgres.log"
        self.socket = sockets / ".s.PGSQL.5432"
        self._data = data
        self._programs = programs
        self._sockets = sockets
        self._ballast = data.parent / "ballast"
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        """The owner's connection string."""
        return f"postgresql://postgres@/ledgerd?host={quote(str(self._sockets))}"

    @property
    def pid(self) -> int:
        """The postmaster's."""
        assert self._server is not None
        return self._server.pid

    @property
    def ended(self) -> bool:
        """Whether the postmaster has ended, by itself or not."""
        return self._server is None or self._server.poll() is not None

    def start(self, **settings: str) -> None:
        """Start it; further settings hold until it is started again."""
        self.starved = bool(settings)
        owner = self._data.stat()
        command = [str(self._programs / "postgres"), "-D", str(self._data), "-k", str(self._sockets)]
        for name, text in {**self.settings, **settings}.items():
            command += ["-c", f"{name}={text}"]
        root = os.geteuid() == 0
        with self.log.open("ab") as output:
            self._server = subprocess.Popen(  # noqa: S603  the program that `ledgerd dev` ran
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                user=owner.st_uid if root else None,
                group=owner.st_gid if root else None,
                extra_groups=[] if root else None,
            )

    async def ready(self) -> None:
        """Return when it answers; one that ended in its recovery is started again. Raises ClusterFailed."""
        with trio.move_on_after(READY_TIMEOUT_S):
            while True:
                if self.ended:
                    self.start()
                try:
                    await trio.to_thread.run_sync(value, self.dsn, "SELECT 1")
                except (BaselineFailed, OSError):
                    await trio.sleep(LOOK_S)
                else:
                    return
        raise ClusterFailed(f"PostgreSQL was not ready within {READY_TIMEOUT_S} s:\n{self._tail()}")

    async def stop(self, number: int = signal.SIGINT) -> None:
        """Stop it: SIGINT in an orderly way, SIGQUIT at once and with a recovery at the next start."""
        if not self.ended:
            self.signal(signal.SIGCONT, *self.backends())
            os.kill(self.pid, number)
            with trio.move_on_after(READY_TIMEOUT_S):
                while not self.ended:  # noqa: ASYNC110  a process has no event of its own
                    await trio.sleep(LOOK_S)
        self.remove()

    def kill(self) -> None:
        """End the postmaster as a power cut would, and then all that it has left behind."""
        if not self.ended:
            backends = self.backends()
            os.kill(self.pid, signal.SIGKILL)
            self._bury()
            self.signal(signal.SIGKILL, *backends)

    def remove(self) -> None:
        """Whatever it does, it and all its processes are gone afterwards."""
        if not self.ended:
            self.signal(signal.SIGCONT, self.pid, *self.backends())
            self.signal(signal.SIGQUIT, self.pid)
            try:
                self._bury(REMOVE_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()

    def _bury(self, timeout_s: float | None = None) -> None:
        assert self._server is not None
        self._server.wait(timeout_s)

    def backends(self, role: str = "") -> list[int]:
        """The server's processes; those that serve a role if one is given."""
        found = []
        for pid in _children(self.pid):
            with suppress(OSError):
                title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
                if title.startswith(f"postgres: {role}".encode()):
                    found.append(pid)
        return found

    def signal(self, number: int, *pids: int) -> None:
        """Send a signal to processes of this server; those that have ended do not mind."""
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def fill_disk(self) -> None:
        """Leave no room on its file system. Only where it has one of its own."""
        assert self.own_disk
        free = shutil.disk_usage(self._data).free - SPARE_BYTES
        with suppress(OSError), self._ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, free))

    def free_disk(self) -> None:
        """Give the room back."""
        self._ballast.unlink(missing_ok=True)

    def log_lines(self) -> list[str]:
        """All that it has logged, through all restarts."""
        return self.log.read_text(errors="replace").splitlines()

    def _tail(self) -> str:
        return "\n".join(self.log_lines()[-20:])


@contextmanager
def open_cluster() -> Iterator[Cluster]:
    """A migrated database that nobody serves from, and its server, not yet started. All of it goes away at the end.

    Raises DaemonDidNotStart, OSError.
    """
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="ledgerd-chaos-", ignore_cleanup_errors=True))
        sockets, disk = Path(name) / "s", Path(name) / "disk"
        sockets.mkdir()
        disk.mkdir()
        own_disk = stack.enter_context(_own_disk(disk))
        with spawned_daemon(disk) as keeper:
            data = disk / "data" / "postgres"
            postmaster = int((data / "postmaster.pid").read_text().split()[0])
            programs = Path(f"/proc/{postmaster}/exe").resolve().parent
            token = keeper.token
        # PostgreSQL may not run as root: its sockets and files belong to whom `dev` gave them.
        for path in (Path(name), disk):
            path.chmod(0o755)
        shutil.chown(sockets, data.stat().st_uid, data.stat().st_gid)
        cluster = Cluster(data, programs, sockets, token, own_disk=own_disk)
        stack.callback(cluster.remove)
        yield cluster


@contextmanager
def _own_disk(path: Path) -> Iterator[bool]:
    """Mount a small file system there, if this process may; whether it did."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    mounted = mount is not None and umount is not None and os.geteuid() == 0 and _run(
        mount, "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "ledgerd-chaos", str(path)
    )  # fmt: skip
    try:
        yield mounted
    finally:
        if mounted and umount is not None and not _run(umount, str(path)):
            _run(umount, "-l", str(path))


def _run(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603  fixed commands


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
