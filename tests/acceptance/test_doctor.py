"""`ledgerd doctor` tells a person what is wrong with a database, what to do, and who holds which account's lock."""

from __future__ import annotations

import asyncio
import os
import pty
import subprocess
from collections.abc import Iterator
from typing import Any

import asyncpg
import msgspec
import pytest

from ledgerd.storage import checks
from ledgerd.storage.embedded import Cluster, temporary_cluster
from ledgerd.storage.migrations import migrate
from tests.acceptance.conftest import command, environment
from tests.acceptance.owner import fetch, value
from tests.storage.pooler import needs_pgbouncer, pgbouncer


def levels(stdout: str) -> dict[str, str]:
    """Level by check, of the lines."""
    known = {"connection", *(check.name for check in checks.CHECKS)}
    words = [line.split(maxsplit=2)[:2] for line in stdout.splitlines()]
    return {name.rstrip(":"): level for level, name in words if name.rstrip(":") in known}


@pytest.fixture(scope="module")
def quiet() -> Iterator[Cluster]:
    """A cluster of this module alone, in which nothing happens by itself, and that lets not everybody in."""
    with temporary_cluster() as cluster:
        migrate(cluster.dsn)
        rules = cluster.socket_dir / "pg_hba.conf"
        written = rules.read_text()
        rules.write_text(f"local fenced all reject\nlocal asks all scram-sha-256\n{written}")
        for statement in (
            "ALTER SYSTEM SET autovacuum = off",
            "SELECT pg_reload_conf()",
            "CREATE DATABASE fenced",
            "CREATE DATABASE asks",
            "CREATE DATABASE empty",
            "CREATE ROLE stranger LOGIN",
            "CREATE ROLE watcher LOGIN IN ROLE ledgerd_daemon, pg_read_all_stats",
        ):
            fetch(cluster.dsn, statement)
        while value(cluster.dsn, "SHOW autovacuum") != "off":
            pass
        yield cluster


def test_a_sound_database_with_a_daemon_on_it_is_told_check_by_check(serve, cluster, ledgerd):
    serve()
    # Daemons of the test before may still be leaving.
    while value(cluster.dsn, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ledgerd'") > 5:
        pass
    done = ledgerd("doctor", LEDGERD_DSN=cluster.daemon_dsn)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert levels(done.stdout) == dict.fromkeys(["connection", *(check.name for check in checks.CHECKS)], "ok")
    lines = done.stdout.splitlines()
    (about,) = [line for line in lines if line.startswith("ledger ")]
    epoch, deployment = fetch(cluster.dsn, "SELECT epoch, deployment FROM ledgerd.settings")[0]
    assert f"epoch {epoch}; deployment {deployment}; " in about
    # Other tests of this process may have left some.
    holds = value(cluster.dsn, "SELECT count(*) FROM ledgerd.holds")
    advances = value(cluster.dsn, "SELECT count(*) FROM ledgerd.advances WHERE outstanding > 0")
    assert f"; pending holds {holds}, 0 overdue; running advances {advances}, 0 due" in about
    assert [line.startswith("daemon   5 connections by ledgerd, this machine, since ") for line in lines].count(
        True
    ) == 1
    assert lines[-1] == "note     nobody holds an account's lock, or waits for one"


def test_warnings_alone_end_well_and_json_says_the_same(quiet, ledgerd):
    done = ledgerd("doctor", "--json", "--dsn", quiet.dsn)
    assert done.returncode == 0, done.stderr
    told = msgspec.json.decode(done.stdout)
    assert told["ok"] is True
    (role,) = [check for check in told["checks"] if check["level"] == "warn"]
    assert (role["name"], role["says"]) == ("role", "the role may do no more than that")
    assert "superuser" in role["found"]
    assert "CREATE ROLE" in role["advice"]
    assert told["ledger"]["database"] == "ledgerd"


def test_it_changes_nothing(quiet, ledgerd):
    """Not a single transaction gets a number, and nothing is put in place of anything."""
    asked = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text"
    before = value(quiet.dsn, asked)
    for dsn in (quiet.daemon_dsn, quiet.dsn):
        assert ledgerd("doctor", "--dsn", dsn).returncode == 0
    assert value(quiet.dsn, asked) == before


@pytest.mark.parametrize(
    ("role", "holder", "advice"),
    [
        ("ledgerd", ("?", "?", "?"), True),
        ("watcher", ("this machine", "idle in transaction", "since 2"), False),
        ("postgres", ("this machine", "idle in transaction", "since 2"), False),
    ],
)
def test_who_holds_and_who_waits_for_an_accounts_lock_is_told(quiet, ledgerd, role, holder, advice):
    async def work() -> tuple[Any, Any, int, int]:
        by_owner, by_daemon = await asyncpg.connect(quiet.dsn), await asyncpg.connect(quiet.daemon_dsn)
        looking = await asyncpg.connect(quiet.dsn)
        try:
            deployment = await by_owner.fetchval("SELECT deployment FROM ledgerd.settings")
            lock = f"SELECT pg_advisory_xact_lock({deployment << 48 | 7})"
            await by_owner.execute(f"BEGIN; SET application_name = 'by hand'; {lock}")
            waiting = asyncio.create_task(by_daemon.execute(lock))
            pids = by_owner.get_server_pid(), by_daemon.get_server_pid()
            while not await looking.fetchval("SELECT 1 FROM pg_locks WHERE pid = $1 AND NOT granted", pids[1]):
                pass
            dsn = quiet.dsn_of("ledgerd", role)
            done = await asyncio.to_thread(ledgerd, "doctor", "--dsn", dsn)
            as_json = await asyncio.to_thread(ledgerd, "doctor", "--json", "--dsn", dsn)
            await by_owner.execute("ROLLBACK")
            await waiting
            return done, as_json, *pids
        finally:
            for connection in (by_owner, by_daemon, looking):
                await connection.close()

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        done, as_json, holding, waiting = runner.run(work())
    assert done.returncode == 0, done.stderr
    first, second = [line for line in done.stdout.splitlines() if line.startswith("lock ")]
    address, state, since = holder
    assert first.startswith(f"lock     account 7 held by process {holding} (postgres, by hand, {address}), {state}, ")
    assert since in first
    assert second.startswith(
        f"lock     account 7 wanted by process {waiting} (ledgerd, no name, this machine), active, "
    )
    assert second.endswith(f", behind process {holding}")
    assert ("GRANT pg_read_all_stats TO ledgerd" in done.stdout) is advice
    locks = msgspec.json.decode(as_json.stdout)["locks"]
    assert [(lock["account_id"], lock["granted"], lock["blocked_by"]) for lock in locks] == [
        (7, True, []),
        (7, False, [holding]),
    ]


def test_at_a_terminal_it_is_a_table(quiet):
    ours, theirs = pty.openpty()
    env = environment(TERM="xterm", COLUMNS="200")
    process = subprocess.Popen(command("doctor", "--dsn", quiet.dsn), stdout=theirs, stderr=subprocess.PIPE, env=env)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65_536):
            shown += piece
    except OSError:  # how a terminal says that nobody writes any more
        pass
    finally:
        os.close(ours)
        process.communicate(timeout=60)
    assert process.returncode == 0
    for words in ("what to do", "lock_table", "superuser", "deployment"):
        assert words in shown.decode()


# -- databases that no daemon would serve ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("database", "role", "check", "says"),
    [
        ("empty", "ledgerd", "schema", "ledgerd migrate --apply"),
        ("ledgerd", "stranger", "privileges", "GRANT ledgerd_daemon TO stranger"),
        ("nowhere", "ledgerd", "connection", "correct the database's name"),
        ("ledgerd", "nobody", "connection", "CREATE ROLE ... LOGIN IN ROLE ledgerd_daemon"),
        ("fenced", "ledgerd", "connection", "pg_hba.conf and reload"),
        ("asks", "ledgerd", "connection", "correct the password"),
    ],
)
def test_what_keeps_a_daemon_from_serving_is_told_with_what_to_do(quiet, ledgerd, database, role, check, says):
    dsn = quiet.dsn_of(database, role).replace("@", ":wrong-word@")
    done = ledgerd("doctor", "--dsn", dsn)
    assert done.returncode == 1, done.stdout + done.stderr
    assert levels(done.stdout)[check] == "refuse"
    assert says in done.stdout
    assert done.stderr == f"ledgerd: a daemon would not serve this database: {check}\n"
    assert "wrong-word" not in done.stdout + done.stderr
    as_json = ledgerd("doctor", "--json", "--dsn", dsn)
    assert as_json.returncode == 1
    assert msgspec.json.decode(as_json.stdout)["ok"] is False
    # The daemon itself says the same, and ends.
    served = ledgerd("serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", LEDGERD_DSN=dsn)
    assert served.returncode == 1
    assert says in served.stderr


@pytest.mark.parametrize(
    ("dsn", "code", "says"),
    [
        ("", 2, "LEDGERD_DSN"),
        ("postgresql://nobody@127.0.0.1:1/nothing", 3, "nobody listens there"),
        ("postgresql://nobody@/nothing?host=/nowhere", 3, "there is no such socket"),
        ("http://not.a.dsn/", 1, "correct the DSN"),
    ],
)
def test_a_database_that_cannot_be_reached_is_told_with_what_to_look_at(ledgerd, dsn, code, says):
    done = ledgerd("doctor", *(("--dsn", dsn) if dsn else ()))
    assert done.returncode == code
    assert says in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if dsn:
        as_json = ledgerd("doctor", "--json", "--dsn", dsn)
        assert as_json.returncode == code
        (connection,) = msgspec.json.decode(as_json.stdout)["checks"]
        assert connection["name"] == "connection"
        assert says in connection["advice"]


@pytest.mark.parametrize(
    ("statement", "undo", "says"),
    [
        (
            "INSERT INTO ledgerd.migrations (number, name, checksum) VALUES (9999, 'new', 'x')",
            "DELETE FROM ledgerd.migrations WHERE number = 9999",
            ("the database is newer than this ledgerd", "upgrade ledgerd on this machine"),
        ),
        (
            (
                "CREATE TABLE public.kept AS SELECT * FROM ledgerd.migrations WHERE number > 11; "
                "DELETE FROM ledgerd.migrations WHERE number > 11"
            ),
            "INSERT INTO ledgerd.migrations SELECT * FROM public.kept; DROP TABLE public.kept",
            ("the database is older than this ledgerd", "0012_post", "ledgerd migrate --apply"),
        ),
    ],
    ids=["newer", "older"],
)
def test_a_daemon_and_a_database_of_two_releases_say_which_of_them_to_upgrade(quiet, ledgerd, statement, undo, says):
    for one in statement.split("; "):
        fetch(quiet.dsn, one)
    try:
        done = ledgerd("doctor", "--dsn", quiet.daemon_dsn)
        served = ledgerd("serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", LEDGERD_DSN=quiet.daemon_dsn)
    finally:
        for one in undo.split("; "):
            fetch(quiet.dsn, one)
    assert (done.returncode, served.returncode) == (1, 1)
    for words in says:
        assert words in done.stdout
        assert words in served.stderr


@needs_pgbouncer
@pytest.mark.parametrize(
    ("mode", "code", "level"), [("session", 0, "info"), ("transaction", 1, "refuse"), ("statement", 1, "refuse")]
)
def test_a_pooler_is_told_by_its_mode(quiet, ledgerd, mode, code, level):
    with pgbouncer(quiet, f"pool_mode = {mode}") as through:
        done = ledgerd("doctor", "--dsn", f"postgresql://ledgerd@/ledgerd?{through}")
    assert done.returncode == code, done.stdout + done.stderr
    assert levels(done.stdout)["pooler"] == level
