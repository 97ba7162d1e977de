"""Backups are taken while clients pay, and restored for real, by the commands that OPERATIONS.md names.

What was acknowledged before the backup is there; what came after it is gone, and is safely sent again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import trio

from ledgerd.storage import migrations
from ledgerd.storage.embedded import DAEMON_ROLE, DATABASE, Cluster
from ledgerd_protocol.client import open_client
from tests.acceptance.paying import PATIENT, assert_each_is_there_once, paying, start_after, stored
from tests.servers import Machines, Server, machines, run

BEFORE = 150
"""Payments that are acknowledged before a backup begins, and again after it."""

OWNER = "owner"
"""Of the ledger: no superuser."""

PRIVILEGES = """
SELECT c.relname || ' ' || a.grantee::regrole || ' ' || a.privilege_type FROM pg_class AS c, aclexplode(
    coalesce(c.relacl, acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", c.relowner))
) AS a
WHERE c.relnamespace = 'ledgerd'::regnamespace AND c.relkind IN ('r', 'v', 'S')
UNION ALL
SELECT t.attrelid::regclass || '.' || t.attname || ' ' || a.privilege_type FROM pg_attribute AS t
INNER JOIN pg_class AS c ON c.oid = t.attrelid, aclexplode(t.attacl) AS a
WHERE c.relnamespace = 'ledgerd'::regnamespace AND a.grantee = 'ledgerd_daemon'::regrole
UNION ALL
SELECT p.oid::regprocedure || ' ' || (a.grantee = 0)::text || p.prosecdef || coalesce(p.proconfig::text, '')
FROM pg_proc AS p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
WHERE p.pronamespace = 'ledgerd'::regnamespace AND a.grantee <> p.proowner
UNION ALL
SELECT 'member ' || m.member::regrole FROM pg_auth_members AS m WHERE m.roleid = 'ledgerd_daemon'::regrole
ORDER BY 1
"""
"""Who may do what in the ledger, as text."""


@pytest.fixture
def place() -> Iterator[Machines]:
    with machines() as found:
        yield found


@pytest.fixture
def primary(place: Machines) -> Server:
    """A production server: it archives its WAL, and has a migrated ledger."""
    archive = place.folder("archive")
    made = place.cluster("primary", archive_mode="on", archive_command=f"test ! -f {archive}/%f && cp %p {archive}/%f")
    make_roles(made)
    made.execute(f"CREATE ROLE {OWNER} LOGIN")
    made.execute(f"CREATE DATABASE {DATABASE} OWNER {OWNER}")
    return made


@pytest.fixture
def ledger(primary: Server) -> Server:
    migrations.migrate(primary.dsn(user=OWNER))
    return primary


@pytest.fixture
def cluster(primary: Server) -> Cluster:
    """Where `serve` serves from, unless it is told."""
    return Cluster(data_dir=primary.data, socket_dir=primary.sockets, pid=0)


def make_roles(server: Server) -> None:
    server.execute(f"CREATE ROLE ledgerd_daemon NOLOGIN; CREATE ROLE {DAEMON_ROLE} LOGIN IN ROLE ledgerd_daemon")


async def thread(work: Any, *arguments: Any, **more: Any) -> Any:
    """Run it beside the clients."""
    return await trio.to_thread.run_sync(partial(work, *arguments, **more))


def verified(ledgerd: Any, server: Server) -> list[str]:
    """The lines of `ledgerd verify`, which must find nothing wrong."""
    done = ledgerd("verify", "--dsn", server.daemon_dsn)
    assert done.returncode == 0, done.stdout + done.stderr
    return list(done.stdout.splitlines())


def changes_told(daemon: Any) -> list[tuple[str, bool]]:
    """What the daemon said of the identity of its data."""
    lines = [json.loads(line) for line in daemon.said]
    return [(line["changed"], line["is_new_epoch"]) for line in lines if line["event"] == "identity_changed"]


def since_of(balances: list[Any], epoch: str) -> dict[str, Any]:
    return {"epoch": epoch, "versions": {balance.account_id: balance.version for balance in balances}}


# -- a dump ----------------------------------------------------------------------------------------------------------


async def test_a_dump_of_a_living_ledger_in_a_fresh_cluster(place, ledger, serve, ledgerd):
    daemon = serve()
    dumps = place.folder("dumps")
    async with open_client(daemon.url, token=daemon.token) as client:
        old_epoch = (await client.call("system_info")).epoch
        async with paying([daemon]) as payers:
            await payers.more(BEFORE)
            before = list(payers.acknowledged)
            await thread(run, "pg_dumpall", "--roles-only", "-d", ledger.dsn("postgres"), "-f", str(dumps / "roles"))
            await thread(run, "pg_dump", "-Fc", "-d", ledger.dsn(user=OWNER), "-f", str(dumps / "ledger"))
            await payers.more(BEFORE)
        balances = [await client.balance(account_id=account) for account in payers.accounts]
    daemon.signal(15)

    fresh = place.cluster("fresh")
    run("psql", "-Xq", "-d", fresh.dsn("postgres"), "-f", str(dumps / "roles"))
    fresh.execute(f"CREATE DATABASE {DATABASE} OWNER {OWNER}")
    run("pg_restore", "--exit-on-error", "-d", fresh.dsn(), str(dumps / "ledger"))
    privileges = ledger.execute(PRIVILEGES, DATABASE).splitlines()
    assert f"member {DAEMON_ROLE}" in privileges
    assert fresh.execute(PRIVILEGES, DATABASE).splitlines() == privileges
    assert "nothing to do" in ledgerd("migrate", "--apply", "--dsn", fresh.dsn(user=OWNER)).stdout
    verified(ledgerd, fresh)

    restored = serve(LEDGERD_DSN=fresh.daemon_dsn)
    assert changes_told(restored) == [("cluster", True)]
    async with open_client(restored.url, token=daemon.token, retry=PATIENT) as client:
        assert (await client.call("system_info")).epoch != old_epoch
        start = await start_after(client, since_of(balances, old_epoch), payers.accounts)
        assert {(account.origin, account.reason) for account in start.accounts} == {("snapshot", "epoch_changed")}
        there = await stored(client, payers.acknowledged)
        assert {payment.transaction_id for payment in before} <= there
        assert len(there) < len(payers.acknowledged)
        await assert_each_is_there_once(client, payers)
    verified(ledgerd, fresh)


async def test_without_its_roles_a_dump_is_refused_by_pg_restore_and_nothing_is_half_there(
    place, ledger, serve, ledgerd
):
    dumps = place.folder("dumps")
    run("pg_dump", "-Fc", "-d", ledger.dsn(user=OWNER), "-f", str(dumps / "ledger"))
    fresh = place.cluster("fresh")
    fresh.execute(f"CREATE DATABASE {DATABASE}")
    restore = ("pg_restore", "--single-transaction", "-d", fresh.dsn(), str(dumps / "ledger"))
    assert f'role "{OWNER}" does not exist' in run(*restore, check=False).stdout
    fresh.execute(f"CREATE ROLE {OWNER}")
    assert 'role "ledgerd_daemon" does not exist' in run(*restore, check=False).stdout
    assert fresh.execute("SELECT to_regnamespace('ledgerd')", DATABASE) == ""
    make_roles(fresh)
    run(*restore)
    verified(ledgerd, fresh)


# -- base backup and WAL ---------------------------------------------------------------------------------------------


async def test_a_recovery_to_a_point_in_time_has_what_was_acknowledged_before_it(place, ledger, serve, ledgerd):
    daemon = serve()
    async with open_client(daemon.url, token=daemon.token) as client:
        old_epoch = (await client.call("system_info")).epoch
        async with paying([daemon]) as payers:
            await payers.more(BEFORE)
            recovered = place.server("recovered")
            await thread(recovered.take_base_backup, ledger)
            await payers.more(BEFORE)
            before = list(payers.acknowledged)
            await thread(ledger.execute, "SELECT pg_create_restore_point('noon')")
            sent_at_noon = len(payers.sent)
            await payers.more(BEFORE)
        balances = [await client.balance(account_id=account) for account in payers.accounts]
    daemon.signal(15)
    ledger.stop()  # what it has written goes to the archive

    recovered.configure(
        archive_mode="off",
        restore_command=f"cp {place.directory}/archive/%f %p",
        recovery_target_name="noon",
        recovery_target_action="promote",
    )
    (recovered.data / "recovery.signal").touch()
    recovered.start()
    # It may be replaying still: a daemon waits until there is a primary.
    restored = serve(LEDGERD_DSN=recovered.daemon_dsn)
    assert changes_told(restored) == [("timeline", True)]
    verified(ledgerd, recovered)
    async with open_client(restored.url, token=daemon.token, retry=PATIENT) as client:
        start = await start_after(client, since_of(balances, old_epoch), payers.accounts)
        assert {(account.origin, account.reason) for account in start.accounts} == {("snapshot", "epoch_changed")}
        there = await stored(client, payers.sent)
        assert {payment.transaction_id for payment in before} <= there
        assert there <= {payment.transaction_id for payment in payers.sent[:sent_at_noon]}
        await assert_each_is_there_once(client, payers)
    verified(ledgerd, recovered)


async def test_a_backup_started_without_recovery_needs_the_operator_to_say_so(place, ledger, serve, ledgerd):
    """Nothing in it says that it is old. The command tells even a daemon that is running already."""
    daemon = serve()
    async with open_client(daemon.url, token=daemon.token) as client:
        async with paying([daemon]) as payers:
            await payers.more(20)
            copy = place.server("copy")
            await thread(copy.take_base_backup, ledger)
            await payers.more(20)
        balances = [await client.balance(account_id=account) for account in payers.accounts]
        old_epoch = (await client.call("system_info")).epoch
    daemon.signal(15)
    ledger.stop()
    copy.configure(archive_mode="off")
    copy.start()

    restored = serve(LEDGERD_DSN=copy.daemon_dsn)
    assert changes_told(restored) == []
    async with open_client(restored.url, token=daemon.token, retry=PATIENT) as client:
        assert (await client.call("system_info")).epoch == old_epoch
        async with client.subscribe("balances", account_ids=payers.accounts) as feed:
            starts = [event.epoch async for event in first_starts(feed, 1)]
            said = await thread(ledgerd, "epoch", "new", "--dsn", copy.dsn(user=OWNER))
            assert said.returncode == 0
            new_epoch = said.stdout.strip()
            starts += [event.epoch async for event in first_starts(feed, 1)]
            assert starts == [old_epoch, new_epoch]
            assert ledgerd("epoch", "show", "--dsn", copy.dsn()).stdout.strip() == new_epoch
        start = await start_after(client, since_of(balances, old_epoch), payers.accounts)
        assert {account.reason for account in start.accounts} == {"epoch_changed"}
        await assert_each_is_there_once(client, payers)
    verified(ledgerd, copy)


async def first_starts(feed: Any, count: int) -> Any:
    async for event in feed:
        if type(event).__name__ == "Start":
            yield event
            count -= 1
            if count == 0:
                return
