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
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec
import pytest
import trio

from ledgerd.storage.embedded import Cluster, temporary_cluster
from ledgerd.storage.migrations import migrate
from ledgerd_protocol.events import Start, Update
from ledgerd_protocol.feed import Feed

STOP_S = 60

CANARY = "canary-in-the-dsn"
"""The password in every daemon's DSN. The private cluster trusts everybody, so it only has to stay out of sight."""

SECRETS = re.compile(rf"{CANARY}|lgd_[A-Za-z0-9_-]{{43}}|@example\.(?:org|com)|correct horse|battery staple")
"""What no daemon may ever say: passwords and e-mails of all these tests, and everything that is a token."""


class Output:
    """What a process says on one of its streams, read as it comes: a pipe that nobody reads would stop the process."""

    def __init__(self, pipe: IO[str]) -> None:
        self.lines: list[str] = []
        self._pipe = pipe
        self._changed = threading.Condition()
        self._over = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._pipe:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def until(self, found: Callable[[str], bool]) -> list[str]:
        """The lines up to the first of which ``found`` holds, from the beginning."""
        seen = 0
        with self._changed:
            while True:
                while seen < len(self.lines):
                    seen += 1
                    if found(self.lines[seen - 1]):
                        return self.lines[:seen]
                if self._over:
                    raise AssertionError(f"it ended before it said so: {self.lines}")
                assert self._changed.wait(STOP_S), f"it said nothing more: {self.lines}"

    def whole(self) -> str:
        """Everything, once the process has ended."""
        self._reader.join(STOP_S)
        self._pipe.close()
        return "\n".join(self.lines)


class Running:
    """A daemon's process, and where it can be reached."""

    def __init__(
        self, process: subprocess.Popen[str], ws_url: str, said: list[str], token_file: Path, output: Output
    ) -> None:
        self.process = process
        self.output = output
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
        """Started when the feed is: it tells what comes after its start, which is read after the reply."""
        async for event in feed:
            if isinstance(event, Start):
                if not self.starts:
                    task_status.started()
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
def _started(
    arguments: tuple[str, ...],
    stream: str,
    env: dict[str, str],
    before: Sequence[str] = (),
    pass_fds: Sequence[int] = (),
) -> Iterator[tuple[subprocess.Popen[str], Output]]:
    """A process with one stream to read; whatever happens, it is not left behind, and nothing secret is in what it said
    on both.
    """
    with tempfile.TemporaryFile("w+") as other:
        streams: dict[str, Any] = {"stdout": other, "stderr": other, stream: subprocess.PIPE}
        process = subprocess.Popen([*before, *command(*arguments)], text=True, env=env, pass_fds=pass_fds, **streams)
        output = Output(getattr(process, stream))
        try:
            yield process, output
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(STOP_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            other.seek(0)
            said = output.whole() + other.read()
        assert SECRETS.findall(said) == [], said


def with_canary(dsn: str) -> str:
    """The DSN with a password in it that must not be seen again."""
    user, _, rest = dsn.partition("@")
    return f"{user}:{CANARY}@{rest}"


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
        with _started(arguments, "stdout", environment()) as (process, output):
            said = output.until(lambda line: " call " in line)
            urls = re.findall(r"ws://\S+", "\n".join(said))
            yield Running(process, urls[0], said, data / "operator.token", output)

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

    Settings are given as they are in the environment. ``before`` is written before the command, which is waited for
    until it says ``until``. It logs all it can: what must not be said is looked for.
    """
    token_file = tmp_path / "operator.token"
    with ExitStack() as stack:

        def start(
            listen: str = "127.0.0.1:0",
            *,
            before: Sequence[str] = (),
            pass_fds: Sequence[int] = (),
            until: str = '"event": "ready"',
            **settings: str,
        ) -> Running:
            arguments = ("serve", "--listen", listen, "--http", "127.0.0.1:0")
            given = {"LEDGERD_DSN": with_canary(cluster.daemon_dsn), "LEDGERD_LOG_LEVEL": "debug", **settings}
            started = _started(arguments, "stderr", environment(**given), before, pass_fds)
            process, output = stack.enter_context(started)
            said = output.until(lambda line: until in line)
            url = "" if '"ws"' not in said[-1] else msgspec.json.decode(said[-1])["ws"]
            if not token_file.exists():
                run_command("token", "create", "operator", "--out", str(token_file), "--dsn", cluster.dsn)
            return Running(process, url, said, token_file, output)

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
