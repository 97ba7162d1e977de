"""The daemon that is measured: one that runs already, or one started for the occasion."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 30

_LOG_LINES_SHOWN = 20


class DaemonDidNotStart(Exception):
    """The daemon that was started for the benchmark ended, or was not ready in time."""


class Daemon(Struct, frozen=True):
    """Where a daemon is and what may be known about it. ``dsn`` is the database owner's, ``daemon_dsn`` its own."""

    url: str
    token: str
    dsn: str
    pid: int | None
    daemon_dsn: str = ""


class DaemonFile(Struct):
    """What `ledgerd dev` writes into its data directory once it serves; whole or not there."""

    ws_url: str
    owner_dsn: str
    daemon_dsn: str
    token_file: str
    pid: int


@contextmanager
def spawned_daemon(directory: Path | None = None) -> Iterator[Daemon]:
    """Run `ledgerd dev` with a private PostgreSQL, in a directory that stays or in one that goes away at the end.

    Raises DaemonDidNotStart.
    """
    with ExitStack() as stack:
        if directory is None:
            kept = tempfile.TemporaryDirectory(prefix="ledgerd-loadtest-", ignore_cleanup_errors=True)
            directory = Path(stack.enter_context(kept))
        data = directory / "data"
        log = directory / "log"
        command = [sys.executable, "-m", "ledgerd", "dev", "--data", str(data)]
        command += ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        with log.open("wb") as output:
            # A session of its own: Ctrl-C at the terminal is for the benchmark, which then stops the daemon itself.
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and our own module
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        try:
            yield _when_ready(process, data / "daemon.json", log)
        finally:
            _stop(process)


def _when_ready(process: subprocess.Popen[bytes], file: Path, log: Path) -> Daemon:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not file.exists():
        if process.poll() is not None:
            raise DaemonDidNotStart(f"the daemon ended with status {process.returncode}:\n{_tail(log)}")
        if time.monotonic() > deadline:
            raise DaemonDidNotStart(f"the daemon was not ready within {START_TIMEOUT_S} s:\n{_tail(log)}")
        time.sleep(0.05)
    found = msgspec.json.decode(file.read_bytes(), type=DaemonFile)
    token = Path(found.token_file).read_text().strip()
    return Daemon(found.ws_url, token, found.owner_dsn, found.pid, found.daemon_dsn)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
