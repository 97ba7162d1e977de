"""The daemon as a service manager runs it: what it tells, what it is handed, how it stops."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import msgspec
import pytest
import trio
import trio.testing
import trustme

from ledgerd_protocol.call import OutcomeUnknown
from ledgerd_protocol.client import Client, open_client
from ledgerd_protocol.connection import CannotConnect, Retry
from ledgerd_protocol.errors import LedgerError
from tests.acceptance.conftest import command, environment
from tests.service_manager import AttentiveManager, handing_over, listening

ALIVE = ["WATCHDOG=1"]
WATCHDOG_USEC = "200000"

ONCE = Retry(connect_timeout_s=60, reconnect_s=0, call_s=0)
"""One attempt at everything, as patient as somebody who waits in a queue."""

UNANSWERED = 5
"""The exit code of a daemon that left messages unanswered."""


@pytest.fixture
def manager(short_directory: Path) -> Iterator[AttentiveManager]:
    address = short_directory / "notify"
    found = AttentiveManager(str(address))
    yield found
    found.close()
    address.unlink()


def until_event(running: Any, name: str) -> Any:
    """The first log line of this event, which is waited for."""
    return msgspec.json.decode(running.output.until(lambda line: f'"event": "{name}"' in line)[-1])


def get(url: str, path: str) -> tuple[int, str]:
    """What the side door answers."""
    try:
        with urllib.request.urlopen(f"{url}{path}", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


in_thread = trio.to_thread.run_sync


# -- what it tells ----------------------------------------------------------------------------------------------------


async def test_the_manager_hears_of_every_step(serve, manager):
    daemon = serve(NOTIFY_SOCKET=manager.address, WATCHDOG_USEC=WATCHDOG_USEC)
    starting = manager.until(lambda message: "READY=1" in message)
    assert starting[-1][1] == "STATUS=serving 0 sessions, database up"
    assert all(message == ALIVE or message[0].startswith("STATUS=starting") for message in starting[:-1])
    async with open_client(daemon.url, token=daemon.token):
        await in_thread(manager.until_status, "serving 1 sessions")
    await in_thread(manager.until, ALIVE.__eq__)

    daemon.process.send_signal(signal.SIGTERM)
    manager.until(lambda message: "STOPPING=1" in message)
    manager.until_status("stopped, 0 messages left unanswered")
    assert daemon.process.wait(60) == 0


# -- what it is asked to read again -----------------------------------------------------------------------------------


async def test_a_hangup_takes_over_what_may_change_and_names_the_rest(serve, manager, tmp_path: Path):
    settings = tmp_path / "ledgerd.toml"
    settings.write_text("connections_per_user_max = 10\nlanes = 2\n")
    daemon = serve(NOTIFY_SOCKET=manager.address, LEDGERD_CONFIG=str(settings))
    manager.until(lambda message: "READY=1" in message)
    assert await newcomers(daemon, 2) == 2
    settings.write_text("connections_max = 1\nlanes = 3\n")
    daemon.process.send_signal(signal.SIGHUP)
    reloading = manager.until(lambda message: message[0] == "RELOADING=1")[-1]
    assert reloading[1].startswith("MONOTONIC_USEC=")
    manager.until(lambda message: "READY=1" in message)
    assert sorted(until_event(daemon, "reloaded")["changed"]) == ["connections_max", "connections_per_user_max"]
    assert until_event(daemon, "restart_needed")["settings"] == ["lanes"]
    assert await newcomers(daemon, 2) == 1


async def newcomers(daemon: Any, number: int) -> int:
    """How many of so many connections at a time are let in."""
    async with AsyncExitStack() as stack:
        for let_in in range(number):
            try:
                await stack.enter_async_context(open_client(daemon.url, token=daemon.token, retry=ONCE))
            except CannotConnect:
                return let_in
    return number


async def test_a_broken_file_changes_nothing_and_everybody_is_told(serve, manager, tmp_path: Path):
    settings = tmp_path / "ledgerd.toml"
    settings.write_text("connections_max = 1\n")
    daemon = serve(NOTIFY_SOCKET=manager.address, LEDGERD_CONFIG=str(settings))
    manager.until(lambda message: "READY=1" in message)
    settings.write_text("connections_max = 100\nlanse = 3\n")
    daemon.process.send_signal(signal.SIGHUP)
    manager.until(lambda message: message[0] == "RELOADING=1")
    status = manager.until(lambda message: "READY=1" in message)[-1][1]
    assert "settings not reloaded: " in status
    assert "lanse is not a setting; did you mean lanes?" in status
    assert "lanse is not a setting" in until_event(daemon, "reload_refused")["problems"][0]
    assert await newcomers(daemon, 2) == 1


def test_a_certificate_is_exchanged_without_a_restart(serve, tmp_path: Path):
    file = tmp_path / "both.pem"

    def renew() -> None:
        trustme.CA().issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(file))

    renew()
    daemon = serve(LEDGERD_TLS_CERTIFICATE=str(file))
    assert daemon.url.startswith("wss://127.0.0.1:")
    place = ("127.0.0.1", urlsplit(daemon.url).port)
    before = ssl.get_server_certificate(place)
    renew()
    assert ssl.get_server_certificate(place) == before
    daemon.process.send_signal(signal.SIGHUP)
    until_event(daemon, "reloaded")
    after = ssl.get_server_certificate(place)
    assert after != before
    file.write_text("nothing")
    daemon.process.send_signal(signal.SIGHUP)
    assert str(file) in until_event(daemon, "reload_refused")["problems"][0]
    assert ssl.get_server_certificate(place) == after


async def test_dev_reloads_too_and_stays_what_it_is(dev_on, short_directory: Path, tmp_path: Path):
    settings = tmp_path / "ledgerd.toml"
    settings.write_text("connections_max = 10\n")
    with dev_on(short_directory / "reloaded", "--config", str(settings)) as running:
        http = re.findall(r"http://\S+", "\n".join(running.said))[0]
        settings.write_text("connections_max = 1\nopen_sign_up = false\n")
        running.process.send_signal(signal.SIGHUP)
        while 'ledgerd_reloads_total{outcome="applied"} 1.0' not in (await in_thread(get, http, "/metrics"))[1]:
            pass
        async with open_client(running.url, retry=ONCE) as stranger:
            ann = {"name": "Ann", "email": "ann@example.org", "password": "correct horse"}
            assert (await stranger.call("user_register", **ann)).user.user_id
        assert await newcomers(running, 2) == 1


IN_A_SESSION = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_when_its_terminal_is_closed_it_stops_instead(cluster):
    """A terminal that goes away sends SIGHUP too, and a daemon that nobody sees any more must not go on."""
    ours, theirs = pty.openpty()
    program = command("serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_SESSION, *program],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(LEDGERD_DSN=cluster.daemon_dsn),
    )
    try:
        os.close(theirs)
        said = b""
        while b"handed_over" not in said:
            said += os.read(ours, 65_536)
        os.close(ours)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


# -- how it stops -----------------------------------------------------------------------------------------------------

SLOW = {
    "LEDGERD_LOCK_TIMEOUT_S": "50",
    "LEDGERD_STATEMENT_TIMEOUT_S": "50",
    "LEDGERD_CALL_TIMEOUT_S": "55",
    "LEDGERD_UNAVAILABLE_AFTER_S": "60",
    "LEDGERD_COMMAND_TTL_S": "200",
    "LEDGERD_DRAIN_TIMEOUT_S": "50",
}
"""A daemon that waits for a slow database rather than give up."""


class Slowness:
    """Keeps every payment waiting inside the database. Blocking: for a thread."""

    def __init__(self, dsn: str) -> None:
        self._loop = asyncio.SelectorEventLoop()
        self._connection = self._loop.run_until_complete(asyncpg.connect(dsn))
        self._loop.run_until_complete(
            self._connection.execute("BEGIN; LOCK TABLE ledgerd.transactions IN EXCLUSIVE MODE")
        )

    def wait_for_somebody(self) -> None:
        """Return when a payment waits."""
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'ledgerd.transactions'::regclass"
        while not self._loop.run_until_complete(self._connection.fetchval(waiting)):
            pass

    def end(self) -> None:
        if not self._loop.is_closed():
            self._loop.run_until_complete(self._connection.close())
            self._loop.close()


@asynccontextmanager
async def slowness(cluster: Any) -> AsyncIterator[Slowness]:
    slow = await in_thread(Slowness, cluster.dsn)
    try:
        yield slow
    finally:
        with trio.CancelScope(shield=True):
            await in_thread(slow.end)


class Payment:
    """One transfer that waits in the database, and what its client hears."""

    def __init__(self) -> None:
        self.answer: Any = None
        self.answered = trio.Event()

    async def run(self, client: Client, account: int) -> None:
        try:
            self.answer = await client.credit(account_id=account, amount="1.00", currency="USD")
        except (LedgerError, OutcomeUnknown, CannotConnect) as error:
            self.answer = error
        self.answered.set()


async def test_what_a_slow_database_has_in_hand_is_answered_before_the_daemon_leaves(serve, cluster, manager):
    daemon = serve(NOTIFY_SOCKET=manager.address, **SLOW)
    async with open_client(daemon.url, token=daemon.token, retry=ONCE) as client, trio.open_nursery() as nursery:
        account = (await client.call("user_register", name="Ann")).account.account_id
        payment = Payment()
        async with slowness(cluster) as slow:
            nursery.start_soon(payment.run, client, account)
            await in_thread(slow.wait_for_somebody)
            daemon.process.send_signal(signal.SIGTERM)
            await in_thread(manager.until_status, "draining: 1 messages in flight, 1 sessions open")
            assert daemon.process.poll() is None
            await in_thread(slow.end)
        await payment.answered.wait()
        assert payment.answer.status == "posted"
        assert await in_thread(daemon.process.wait, 60) == 0
        assert until_event(daemon, "stopped")["orphaned"] == 0


@pytest.mark.parametrize("how", ["second signal", "deadline"])
async def test_what_is_left_unanswered_is_told_and_is_the_exit_code(serve, cluster, manager, how):
    settings = {**SLOW, "LEDGERD_DRAIN_TIMEOUT_S": "3"} if how == "deadline" else SLOW
    daemon = serve(NOTIFY_SOCKET=manager.address, **settings)
    async with open_client(daemon.url, token=daemon.token, retry=ONCE) as client, trio.open_nursery() as nursery:
        account = (await client.call("user_register", name="Ann")).account.account_id
        payment = Payment()
        async with slowness(cluster) as slow:
            nursery.start_soon(payment.run, client, account)
            await in_thread(slow.wait_for_somebody)
            daemon.process.send_signal(signal.SIGTERM)
            if how == "second signal":
                await in_thread(until_event, daemon, "draining")
                daemon.process.send_signal(signal.SIGTERM)
            # The database is as slow as before: only the daemon's own hurry can end this.
            assert await in_thread(daemon.process.wait, 40) == UNANSWERED
        await payment.answered.wait()
    assert isinstance(payment.answer, OutcomeUnknown), payment.answer
    stopped = until_event(daemon, "stopped")
    assert (stopped["orphaned"], stopped["hurried"]) == (1, how == "second signal")
    assert "stopped with 1 messages unanswered" in until_event(daemon, "serving_failed")["detail"]
    manager.until_status("stopped, 1 messages left unanswered")


# -- what it is handed ------------------------------------------------------------------------------------------------


@pytest.fixture
def door() -> Iterator[socket.socket]:
    """A socket of the manager's that stays open whoever serves it."""
    with listening() as found:
        yield found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_who_connects_during_a_restart_is_served_after_it(serve, door, number):
    def start() -> Any:
        return serve("127.0.0.1:1", before=handing_over(door), pass_fds=[door.fileno()], LISTEN_FDS="1")

    daemon = start()
    assert daemon.url == f"ws://127.0.0.1:{door.getsockname()[1]}/"
    url, token = daemon.url, daemon.token
    async with open_client(url, token=token, retry=ONCE) as client:
        assert await client.call("system_ping")
    await in_thread(daemon.signal, number)

    async with trio.open_nursery() as nursery:
        answered: list[Any] = []

        async def arrive() -> None:
            async with open_client(url, token=token, retry=ONCE) as client:
                answered.append(await client.call("system_ping"))

        for _ in range(5):
            nursery.start_soon(arrive)
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert answered == []
        await in_thread(start)
    assert len(answered) == 5


def test_health_can_be_handed_over_as_well(serve, door):
    with listening() as http:
        daemon = serve(
            before=handing_over(door, http),
            pass_fds=[door.fileno(), http.fileno()],
            LISTEN_FDS="2",
            LISTEN_FDNAMES="ws:http",
        )
        url = f"http://127.0.0.1:{http.getsockname()[1]}"
        assert until_event(daemon, "ready")["http"] == url
        assert get(url, "/readyz") == (200, "ready\n")


async def test_a_unix_socket_can_be_handed_over_for_a_proxy_on_the_same_machine(serve, short_directory: Path):
    path = str(short_directory / "door")
    with listening(path=path) as sock:
        daemon = serve(before=handing_over(sock), pass_fds=[sock.fileno()], LISTEN_FDS="1")
        assert daemon.url == f"ws+unix:{path}"
        dial = partial(trio.open_unix_socket, path)
        async with open_client("ws://localhost", token=daemon.token, retry=ONCE, dial=dial) as client:
            assert await client.call("system_ping")


@pytest.mark.parametrize(
    ("name", "host", "code", "words"),
    [
        ("metrics", "127.0.0.1", 2, "is for nothing that this daemon serves"),
        ("ws", "0.0.0.0", 1, "plain WebSocket on 0.0.0.0"),
    ],
)
def test_a_socket_that_must_not_be_served_ends_it_with_a_sentence(serve, name, host, code, words):
    with listening(host) as sock:
        daemon = serve(
            before=handing_over(sock),
            pass_fds=[sock.fileno()],
            until='"serving_failed"',
            LISTEN_FDS="1",
            LISTEN_FDNAMES=name,
        )
        assert words in daemon.said[-1]
        assert daemon.process.wait(60) == code


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="systemd-socket-activate is not installed")
async def test_systemd_starts_it_when_somebody_comes_and_nobody_is_refused(serve, free_port):
    other = serve()  # only for its token
    names = ("LEDGERD_DSN", "LEDGERD_LOG_LEVEL", "LEDGERD_HTTP")
    activate = ["systemd-socket-activate", "--listen", f"127.0.0.1:{free_port}", "--fdname=ws"]
    daemon = serve(before=[*activate, *(f"--setenv={name}" for name in names)], until="Listening on")
    url = f"ws://127.0.0.1:{free_port}/"
    async with open_client(url, token=other.token, retry=ONCE) as client:
        assert await client.call("system_ping")
    ready = await in_thread(until_event, daemon, "ready")
    assert (ready["ws"], ready["handed_over"]) == (url, 1)
    assert await in_thread(daemon.signal, signal.SIGTERM) == 0
