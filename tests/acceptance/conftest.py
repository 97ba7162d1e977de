"""The installed command as a process, real sockets, a real private PostgreSQL. Every process is ended by its id."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from ledgerd.storage.embedded import Cluster, temporary_cluster
from ledgerd.storage.migrations import migrate
from ledgerd_protocol.events import Start, Update
from ledgerd_protocol.feed import Feed

STOP_S = 60


class Running:
    """A daemon's process, and where it can be reached."""

    def __init__(self, process: subprocess.Popen[str], ws_url: str, said: list[str], token_file: Path) -> None:
        self.process = process
        self.url = ws_url
        self.said = said
        self.token_file = token_file

    @property
    def token(self) -> str:
        return self.token_file.read_text().strip()

    def signal(self, number: int) -> int:
        """Send a signal and wait for the end; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(STOP_S)


class Auditor:
    """Reads a feed and keeps what it said. The feed itself checks that versions are contiguous."""

    def __init__(self) -> None:
        self.updates: dict[int, list[Update]] = {}
        self.starts: list[Start] = []
        self._moved = trio.Event()

    async def run(self, feed: Feed, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        async for event in feed:
            if isinstance(event, Start):
                self.starts.append(event)
            elif isinstance(event, Update):
                self.updates.setdefault(event.account_id, []).append(event)
            self._moved.set()

    def of(self, account_id: int) -> list[Update]:
        return self.updates.get(account_id, [])

    async def until(self, account_id: int, version: int) -> None:
        while not (seen := self.updates.get(account_id)) or seen[-1].version < version:
            self._moved = trio.Event()
            await self._moved.wait()


def environment(**more: str) -> dict[str, str]:
    """This process's environment without what would change the commands."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LEDGERD_") and name != "UV"}
    return {**kept, "COLUMNS": "200", **more}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ledgerd", *arguments]


def processes_with(text: str) -> list[int]:
    """Ids of the processes whose command line has the text."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes()
        except OSError:
            continue
        if text.encode() in line:
            found.append(int(entry.parent.name))
    return found


@contextmanager
def _started(arguments: tuple[str, ...], stream: str, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process with one stream to read; whatever happens, it is not left behind."""
    with tempfile.TemporaryFile("w+") as other:
        streams: dict[str, Any] = {"stdout": other, "stderr": other, stream: subprocess.PIPE}
        process = subprocess.Popen(command(*arguments), text=True, env=env, **streams)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(STOP_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            pipe = getattr(process, stream)
            pipe.close()


def _lines_until(process: subprocess.Popen[str], stream: str, found: Callable[[str], bool]) -> list[str]:
    lines = []
    for line in getattr(process, stream):
        lines.append(line.rstrip("\n"))
        if found(line):
            return lines
    raise AssertionError(f"ended with {process.wait()} before it was ready: {lines}")


@pytest.fixture(scope="session")
def short_directory() -> Iterator[Path]:
    """A directory whose path leaves room for a Unix socket's name."""
    directory = Path(tempfile.mkdtemp(prefix="ledgerd-test-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def dev_on() -> Any:
    """Context manager: `ledgerd dev` on a directory."""

    @contextmanager
    def start(data: Path, *more: str, listen: str = "127.0.0.1:0") -> Iterator[Running]:
        arguments = ("dev", "--data", str(data), "--listen", listen, "--http", "127.0.0.1:0", *more)
        with _started(arguments, "stdout", environment()) as process:
            said = _lines_until(process, "stdout", lambda line: " call " in line)
            urls = re.findall(r"ws://\S+", "\n".join(said))
            yield Running(process, urls[0], said, data / "operator.token")

    return start


@pytest.fixture(scope="session")
def dev(dev_on: Any, short_directory: Path) -> Iterator[Running]:
    """One `ledgerd dev` for all tests of this worker."""
    with dev_on(short_directory / "dev") as running:
        yield running


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A migrated database without a daemon."""
    with temporary_cluster() as found:
        migrate(found.dsn)
        yield found


@pytest.fixture
def serve(cluster: Cluster, tmp_path: Path) -> Iterator[Any]:
    """Starts `ledgerd serve` on the cluster, as often as it is called; the processes end with the test.

    Settings are given as they are in the environment.
    """
    token_file = tmp_path / "operator.token"
    with ExitStack() as stack:

        def start(listen: str = "127.0.0.1:0", **settings: str) -> Running:
            arguments = ("serve", "--listen", listen, "--http", "127.0.0.1:0")
            env = environment(LEDGERD_DSN=cluster.daemon_dsn, **settings)
            process = stack.enter_context(_started(arguments, "stderr", env))
            said = _lines_until(process, "stderr", lambda line: '"event": "ready"' in line)
            url = msgspec.json.decode(said[-1])["ws"]
            if not token_file.exists():
                run_command("token", "create", "operator", "--out", str(token_file), "--dsn", cluster.dsn)
            return Running(process, url, said, token_file)

        yield start


def run_command(*arguments: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        command(*arguments),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(**more),
        check=False,
    )


@pytest.fixture(scope="session")
def ledgerd() -> Any:
    """Runs a command line and gives exit code and output."""
    return run_command


@pytest.fixture(scope="session")
def call(ledgerd: Any) -> Any:
    """Calls a method with the command, which must succeed; the decoded result."""

    def by_command(running: Running, method: str, **params: Any) -> Any:
        text = msgspec.json.encode(params).decode()
        done = ledgerd("call", method, text, "--url", running.url, "--token-file", str(running.token_file))
        assert done.returncode == 0, done.stderr
        return msgspec.json.decode(done.stdout)

    return by_command


@pytest.fixture(scope="session")
def nobody_left() -> Any:
    """Whether no process has the text in its command line."""

    def check(text: str) -> bool:
        return not processes_with(text)

    return check


@pytest.fixture(scope="session")
def new_auditor() -> type[Auditor]:
    """Makes one that knows nothing yet."""
    return Auditor


@pytest.fixture
def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def interrupt() -> int:
    """What Ctrl-C sends."""
    return signal.SIGINT
