"""A private ledger to be broken: one PostgreSQL, and several daemons that can be killed and started again.

`ledgerd dev` keeps the house: it owns PostgreSQL and is left alone. The daemons that serve, and die, are of the kind
that runs in production, `ledgerd serve`.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import trio

from ledgerd_loadtest.processes import resident_kib
from ledgerd_loadtest.target import Daemon, DaemonDidNotStart, spawned_daemon

READY_TIMEOUT_S = 60
STOP_TIMEOUT_S = 30
LOOK_S = 0.05

_PORTS = range(20_000, 32_000)
"""Below those that the kernel gives to connections: a client that calls a dead daemon there could meet itself."""

_LINES_SHOWN = 5


LEDGERD = (sys.executable, "-m", "ledgerd")
"""What starts a daemon: our own interpreter and our own module."""


class ServedDaemon:
    """One `ledgerd serve`. It listens on the same ports whenever it runs."""

    def __init__(
        self,
        number: int,
        dsn: str,
        settings: dict[str, str],
        log: Path,
        *,
        launcher: Sequence[str] = LEDGERD,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.number = number
        self.port = _free_port()
        self._http_port = _free_port()
        self.url = f"ws://127.0.0.1:{self.port}"
        self.http_url = f"http://127.0.0.1:{self._http_port}"
        self._environment = {**os.environ, **(environment or {}), "LEDGERD_DSN": dsn}
        self._launcher = launcher
        self._settings = settings
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, **settings: str) -> None:
        """Start it. Further settings hold until it is started again."""
        given = {"log_level": "warning", **self._settings, **settings}
        command = [*self._launcher, "serve"]
        command += ["--listen", f"127.0.0.1:{self.port}", "--http", f"127.0.0.1:{self._http_port}"]
        for name, value in given.items():
            command += ["--set", f"{name}={value}"]
        with self._log.open("ab") as output:
            # A session of its own: Ctrl-C at the terminal is for the test, which then stops the daemon itself.
            self._process = subprocess.Popen(  # noqa: S603 - `LEDGERD`, or what a test starts instead
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                start_new_session=True,
            )

    async def ready(self) -> None:
        """Return when it accepts connections. Raises DaemonDidNotStart."""
        with trio.move_on_after(READY_TIMEOUT_S):
            while self.ended is None:
                try:
                    stream = await trio.open_tcp_stream("127.0.0.1", self.port)
                except OSError:
                    await trio.sleep(LOOK_S)
                else:
                    await stream.aclose()
                    return
        raise DaemonDidNotStart(f"daemon {self.number} ended ({self.ended}) or was not ready:\n{self._log.read_text()}")

    @property
    def pid(self) -> int:
        """Its process number."""
        assert self._process is not None
        return self._process.pid

    @property
    def ended(self) -> int | None:
        """Its exit status if it has ended, by itself or not."""
        return self._process.poll() if self._process is not None else 0

    def kill(self) -> None:
        """End it as a power cut would, and bury it."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    async def stop(self) -> int:
        """Let it drain and end; its exit status, negative if it had to be killed."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        with trio.move_on_after(STOP_TIMEOUT_S):
            while self.ended is None:  # noqa: ASYNC110  a process has no event of its own
                await trio.sleep(LOOK_S)
        self.remove()
        return self._process.returncode

    def remove(self) -> None:
        """Whatever it does, it is gone afterwards."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    @property
    def resident_kib(self) -> int:
        """Its memory. Raises OSError, ValueError."""
        assert self._process is not None
        return resident_kib(self._process.pid)

    def errors(self) -> list[str]:
        """What it logged as an error, and whatever is not a log line: tracebacks of a crash."""
        return error_lines(self._log.read_text(errors="replace").splitlines()) if self._log.exists() else []


class House:
    """The keeper and the daemons, in a directory that can be looked into afterwards."""

    def __init__(self, keeper: Daemon, directory: Path) -> None:
        self.keeper = keeper
        self.directory = directory
        self.daemons: list[ServedDaemon] = []

    def add_daemon(self, settings: dict[str, str]) -> ServedDaemon:
        """One more daemon, not yet started."""
        number = len(self.daemons)
        daemon = ServedDaemon(number, self.keeper.daemon_dsn, settings, self.directory / f"daemon-{number}.log")
        self.daemons.append(daemon)
        return daemon


@contextmanager
def open_house() -> Iterator[House]:
    """Start the keeper; at the end stop everything. The daemons' logs go away with the directory.

    Raises DaemonDidNotStart, OSError.
    """
    with ExitStack() as stack:
        keeper = stack.enter_context(spawned_daemon())
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="ledgerd-soak-", ignore_cleanup_errors=True))
        house = House(keeper, Path(name))
        try:
            yield house
        finally:
            for daemon in house.daemons:
                daemon.remove()


def error_lines(log: list[str]) -> list[str]:
    """The first lines of a daemon's log that tell of something that must not happen, and how many more there are."""
    found = []
    for line in log:
        try:
            level = msgspec.json.decode(line, type=dict[str, object]).get("level")
        except msgspec.MsgspecError:
            level = "not a log line" if line.strip() else None
        if level in ("error", "critical", "not a log line"):
            found.append(line)
    return found if len(found) <= _LINES_SHOWN else [*found[:_LINES_SHOWN], f"and {len(found) - _LINES_SHOWN} more"]


def _free_port() -> int:
    """A port that nobody listens on."""
    for port in random.sample(_PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port found")
