"""The primary dies under load, its synchronous replica takes over, and nobody has to tell the daemons.

Two daemons know both hosts. Nothing that was acknowledged is missing, nothing is there twice, clients begin anew with
snapshots of the promoted data, and a primary that comes back after it was replaced is not served.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest
import trio

from ledgerd.storage import migrations
from ledgerd.storage.embedded import DAEMON_ROLE, DATABASE, Cluster
from ledgerd_protocol.client import open_client
from tests.acceptance.paying import PATIENT, assert_each_is_there_once, paying, stored
from tests.servers import Machines, Server, machines, several_hosts

BEFORE = 200
AFTER = 200

COUNT = "SELECT count(*) FROM ledgerd.transactions"
SYNCHRONOUS = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
LET_GO = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '{DAEMON_ROLE}'"


@pytest.fixture
def place() -> Iterator[Machines]:
    with machines() as found:
        yield found


@pytest.fixture
def primary(place: Machines) -> Server:
    """With a ledger, and a commit only counts when the replica has it too."""
    made = place.cluster("a")
    made.execute(f"CREATE ROLE ledgerd_daemon NOLOGIN; CREATE ROLE {DAEMON_ROLE} LOGIN IN ROLE ledgerd_daemon")
    made.execute(f"CREATE DATABASE {DATABASE}")
    migrations.migrate(made.dsn())
    return made


@pytest.fixture
def replica(place: Machines, primary: Server) -> Server:
    made = place.server("b")
    made.take_base_backup(primary)
    follow(made, primary)
    made.start()
    primary.execute("ALTER SYSTEM SET synchronous_standby_names = 'b'")
    primary.execute("SELECT pg_reload_conf()")
    while primary.execute(SYNCHRONOUS) != "1":
        pass  # the test's timeout bounds it
    return made


def follow(server: Server, primary: Server) -> None:
    """Make it a standby of the other, under the name of its directory."""
    name = server.data.parent.name
    server.configure(primary_conninfo=f"host={primary.sockets} user=postgres application_name={name}")
    (server.data / "standby.signal").touch()


@pytest.fixture
def cluster(primary: Server) -> Cluster:
    """Where `serve` makes the first token."""
    return Cluster(data_dir=primary.data, socket_dir=primary.sockets, pid=0)


async def thread(work: Callable[..., Any], *arguments: Any) -> Any:
    return await trio.to_thread.run_sync(partial(work, *arguments))


def said(daemon: Any, event: str) -> list[dict[str, Any]]:
    """What the daemon has said by now about one kind of event."""
    lines = [json.loads(line) for line in daemon.output.lines]
    return [line for line in lines if line["event"] == event]


async def until(holds: Callable[[], bool]) -> None:
    """The test's timeout bounds it."""
    while not holds():  # noqa: ASYNC110  it is another process that moves
        await trio.sleep(0.02)


async def test_a_promoted_replica_is_served_at_once_and_has_all_that_was_acknowledged(
    primary, replica, serve, ledgerd, new_auditor, capsys
):
    hosts = several_hosts([primary, replica])
    daemons = [serve(LEDGERD_DSN=hosts) for _ in range(2)]
    async with AsyncExitStack() as stack:
        client, other = [
            await stack.enter_async_context(open_client(daemon.url, token=daemon.token, retry=PATIENT))
            for daemon in daemons
        ]
        old_epoch = (await client.call("system_info")).epoch
        async with paying(daemons) as payers, trio.open_nursery() as nursery:
            feed = await stack.enter_async_context(client.subscribe("balances", account_ids=payers.accounts))
            auditor = new_auditor()
            await nursery.start(auditor.run, feed)
            await payers.more(BEFORE)
            before = list(payers.acknowledged)
            died = trio.current_time()
            await thread(primary.kill)
            await thread(replica.promote)
            promoted = trio.current_time()
            await payers.more(1)
            again = trio.current_time()
            await payers.more(AFTER)
            last = payers.accounts[-1]
            await auditor.until(last, (await client.balance(account_id=last)).version)
            nursery.cancel_scope.cancel()

        epochs = {(await each.call("system_info")).epoch for each in (client, other)}
        assert len(epochs) == 1
        assert old_epoch not in epochs
        begun = {(account.origin, account.reason) for start in auditor.starts[1:] for account in start.accounts}
        assert begun == {("snapshot", "epoch_changed")}
        changes = [
            (line["changed"], line["is_new_epoch"]) for each in daemons for line in said(each, "identity_changed")
        ]
        assert changes == [("timeline", True)], "one of them minted, the other took it over"
        assert {payment.transaction_id for payment in before} <= await stored(client, before)
        await assert_each_is_there_once(other, payers)
    assert ledgerd("verify", "--dsn", hosts).returncode == 0
    with capsys.disabled():
        print(f"\npromotion took {promoted - died:.2f} s, the first payment after it {again - promoted:.2f} s more")


async def test_the_old_primary_that_comes_back_is_not_served_by_who_saw_the_new_one(primary, replica, serve, ledgerd):
    hosts = several_hosts([primary, replica])
    daemon = serve(LEDGERD_DSN=hosts)
    async with open_client(daemon.url, token=daemon.token, retry=PATIENT) as client:
        async with paying([daemon]) as payers:
            await payers.more(20)
            await thread(primary.kill)
            await thread(replica.promote)
            await payers.more(20)

            # It comes back as it was, first in the list and open to writes; then the daemon has to connect anew.
            await thread(primary.start)
            there = primary.execute(COUNT, DATABASE)
            await thread(replica.execute, LET_GO)
            await until(lambda: bool(said(daemon, "old_primary")))
            await payers.more(20)
            assert primary.execute(COUNT, DATABASE) == there

            # Without the new one there is nobody to serve from: rather nobody than the old one.
            await thread(replica.stop)
            seen = len(said(daemon, "old_primary"))
            await until(lambda: len(said(daemon, "old_primary")) > seen)
            acknowledged = len(payers.acknowledged)
            await thread(replica.start)
            await payers.more(20)
            assert len(payers.acknowledged) >= acknowledged + 20
            assert primary.execute(COUNT, DATABASE) == there
        await assert_each_is_there_once(client, payers)
    assert ledgerd("verify", "--dsn", replica.daemon_dsn).returncode == 0


async def test_a_standby_is_never_served_and_a_daemon_waits_until_it_is_promoted(primary, replica, serve, ledgerd):
    standby_first = several_hosts([replica, primary])
    daemon = serve(LEDGERD_DSN=standby_first)
    assert ledgerd("verify", "--dsn", replica.daemon_dsn).returncode == 0, "reading is what a standby is for"

    waiting = serve(LEDGERD_DSN=replica.daemon_dsn, until='"event": "restart"')
    assert "standby" in waiting.said[-1]
    async with open_client(daemon.url, token=daemon.token, retry=PATIENT) as client:
        async with paying([daemon]) as payers:
            await payers.more(20)
            await thread(primary.kill)
            # The replica has it before anybody was told so.
            await thread(replica.promote)
            lines = await thread(waiting.output.until, lambda line: '"event": "ready"' in line)
            await payers.more(20)
        url = json.loads(lines[-1])["ws"]
        async with open_client(url, token=daemon.token) as late:
            assert (await late.call("system_info")).epoch == (await client.call("system_info")).epoch
            await assert_each_is_there_once(late, payers)
