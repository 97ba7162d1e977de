"""A ledger of an older schema, with data in it, is restored, migrated and served; nothing of it is lost."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from ledgerd.storage import migrations
from ledgerd.storage.embedded import DAEMON_ROLE, DATABASE, Cluster
from ledgerd.storage.queries import QUERIES
from ledgerd_protocol.client import open_client
from tests.acceptance.owner import fetch, value
from tests.servers import Machines, Server, machines, run

POST_THEN = f"SELECT codes FROM ledgerd.post({', '.join(f'${number}' for number in range(1, 16))})"
"""The kernel as migration 0003 has it."""

KEPT = {
    "users": "user_id, name, email, status, created_at",
    "accounts": "account_id, user_id, currency, balance, held, overdraft_limit, version, status, created_at",
    "transactions": "transaction_id, kind, status, amount, debit_account, credit_account, debit_version, debit_balance,"
    " credit_version, credit_balance, token_id, created_at, reference, reason, metadata, batch_id, batch_index",
    "attempts": "attempt_id, transaction_id, kind, debit_account, credit_account, amount, code, token_id, created_at",
    "tokens": "token_id, user_id, scopes, label, created_at",
}
"""Columns that every schema from 0005 on has."""


@pytest.fixture
def place() -> Iterator[Machines]:
    with machines() as found:
        yield found


@pytest.fixture
def server(place: Machines) -> Server:
    made = place.cluster("server")
    made.execute(f"CREATE ROLE ledgerd_daemon NOLOGIN; CREATE ROLE {DAEMON_ROLE} LOGIN IN ROLE ledgerd_daemon")
    for name in ("before", DATABASE):
        made.execute(f"CREATE DATABASE {name}")
    return made


@pytest.fixture
def cluster(server: Server) -> Cluster:
    """Where `serve` serves from."""
    return Cluster(data_dir=server.data, socket_dir=server.sockets, pid=0)


def migrate_up_to(dsn: str, last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the schema that a release had which ended with this migration."""
    known = [migration for migration in migrations.all_migrations() if migration.number <= last]
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "all_migrations", lambda: known)
        migrations.migrate(dsn)


class Then:
    """What clients of that release did. Commands are (kind, debited account, credited account, amount, members)."""

    def __init__(self, dsn: str, schema: int) -> None:
        self.dsn = dsn
        self.schema = schema
        self.accounts = [
            value(
                dsn,
                "SELECT account_id FROM ledgerd.register_user($1, $2, NULL, 'USD', 2, $3, '{user}', NULL)",
                f"User {number}",
                f"user{number}@bank.test",
                uuid.uuid4().bytes * 2,
            )
            for number in range(3)
        ]
        self.token = value(
            dsn, "SELECT ledgerd.create_token($1, NULL, NULL, '{operator}', NULL, 'then')", uuid.uuid4().bytes * 2
        )

    def post(self, *commands: tuple[str, int | None, int | None, int | None], batch: bool = False) -> list[str]:
        """One call; the ids of its commands."""
        count = len(commands)
        ids = [str(uuid.uuid4()) for _ in commands]
        kinds, debited, credited, amounts = (list(column) for column in zip(*commands, strict=True))
        attempts = [str(uuid.uuid4()) for _ in commands]
        nothing = [None] * count
        numbers: list[Any] = [0 if batch else None] * count
        batch_ids = [str(uuid.uuid4())] * count if batch else nothing
        arguments: list[Any] = [False, attempts, [self.token] * count, kinds, ids, debited, credited, amounts, nothing]
        arguments += [nothing, ["then"] * count, nothing, ['{"n":1.0}'] * count]
        if self.schema == 5:
            found = fetch(self.dsn, POST_THEN, *arguments, numbers, batch_ids)
        else:
            found = fetch(self.dsn, QUERIES["post"], *arguments, nothing, nothing, numbers, batch_ids, None, None)
        assert found
        return ids


def what_is_kept(dsn: str) -> dict[str, list[tuple[Any, ...]]]:
    found = {table: fetch(dsn, f"SELECT {columns} FROM ledgerd.{table} ORDER BY 1") for table, columns in KEPT.items()}
    found["tokens"] = [row for row in found["tokens"] if row[0] > 0]  # 0 is the daemon itself, since migration 0006
    return found


@pytest.mark.parametrize("schema", [5, 12])
async def test_a_restored_ledger_of_an_older_schema_is_migrated_and_nothing_is_lost(
    place, server, serve, ledgerd, monkeypatch, tmp_path, schema
):
    old = server.dsn("before")
    migrate_up_to(old, schema, monkeypatch)
    then = Then(old, schema)
    ann, bob, eve = then.accounts
    for _ in range(30):
        (credit, *_) = then.post(("credit", None, ann, 10_000), ("credit", None, bob, 500))
        then.post(("transfer", ann, bob, 700), ("transfer", bob, eve, 100), batch=True)
        then.post(("debit", eve, None, 10**9), ("cancel", bob, None, None), ("debit", ann, None, 1))
    then.post(("limit", ann, None, 5_000))
    token_file = tmp_path / "operator.token"
    ledgerd("token", "create", "operator", "--out", str(token_file), "--dsn", old)
    before = what_is_kept(old)
    assert len(before["transactions"]) == 6 * 30 + 1
    assert len(before["attempts"]) == 30

    dump = place.folder("dumps") / "then"
    run("pg_dump", "-Fc", "-d", old, "-f", str(dump))
    run("pg_restore", "--exit-on-error", "-d", server.dsn(), str(dump))
    owner = ("--dsn", server.dsn())

    refused = ledgerd("serve", "--http", "127.0.0.1:0", "--listen", "127.0.0.1:0", LEDGERD_DSN=server.daemon_dsn)
    assert refused.returncode == 1
    assert "ledgerd migrate --apply" in refused.stderr
    assert ledgerd("verify", "--dsn", server.daemon_dsn).returncode == 1

    missing = [each.name for each in migrations.all_migrations() if each.number > schema]
    planned = ledgerd("migrate", *owner).stdout.splitlines()
    assert planned[:-1] == [f"would apply {name}" for name in missing]
    assert ledgerd("migrate", "--apply", *owner).returncode == 0
    assert what_is_kept(server.dsn()) == before
    checked = ledgerd("verify", "--dsn", server.daemon_dsn)
    assert checked.returncode == 0, checked.stdout

    daemon = serve(LEDGERD_DSN=server.daemon_dsn)
    events = [json.loads(line)["event"] for line in daemon.said]
    assert "identity_changed" not in events, "it was never served before: nobody has seen anything of it"
    async with open_client(daemon.url, token=daemon.token) as client:
        assert (await client.call("transaction_get", transaction_id=credit)).metadata
        again = await client.credit(
            transaction_id=credit,
            account_id=ann,
            amount="100.00",
            reference="then",
            metadata={"n": 1.0},
        )
        assert again.replayed
        after = await client.credit(account_id=ann, amount="0.01")
        account = next(row for row in before["accounts"] if row[0] == ann)
        assert after.entries[0].version == account[6] + 1
    assert ledgerd("verify", "--dsn", server.daemon_dsn).returncode == 0
