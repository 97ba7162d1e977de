"""The daemon's role may EXECUTE its functions and SELECT what is not secret; everybody else may nothing."""

from __future__ import annotations

from collections.abc import Iterator

import asyncpg
import pytest

from ledgerd.storage.embedded import DAEMON_ROLE
from tests.storage.bench import Bench

TABLES = (
    "settings", "currencies", "users", "accounts", "tokens", "transactions", "attempts", "migrations",
    "holds", "monitors", "advances", "advance_payments", "advance_events", "advance_queue",
)  # fmt: skip
HIDDEN = ("password_tries", "monitor_revisions")
"""Tables that functions of the owner keep for themselves."""
SEQUENCES = ("world_accounts", "users_user_id_seq", "accounts_account_id_seq", "tokens_token_id_seq")
VIEWS = ("entries", "records")

WRITES = (
    "INSERT INTO ledgerd.{table} DEFAULT VALUES",
    "UPDATE ledgerd.{table} SET {column} = DEFAULT",
    "DELETE FROM ledgerd.{table}",
    "TRUNCATE ledgerd.{table}",
    "ALTER TABLE ledgerd.{table} DISABLE TRIGGER ALL",
    "DROP TABLE ledgerd.{table}",
    "COPY ledgerd.{table} FROM STDIN",
)
ROW_LOCKS = tuple(
    f"SELECT 1 FROM ledgerd.{{table}} {strength}"
    for strength in ("FOR UPDATE", "FOR NO KEY UPDATE", "FOR SHARE", "FOR KEY SHARE")
)
TABLE_LOCKS = ("LOCK TABLE ledgerd.{table} IN ROW EXCLUSIVE MODE", "LOCK TABLE ledgerd.{table} IN EXCLUSIVE MODE")

FOR_NOBODY = (
    *(f"SELECT 1 FROM ledgerd.{name}" for name in HIDDEN),
    "SELECT ledgerd.password_try_keys('a@example.com', NULL)",
    "SELECT password_hash FROM ledgerd.users",
    "SELECT * FROM ledgerd.users",
    "SELECT token_hash FROM ledgerd.tokens",
    "SELECT * FROM ledgerd.tokens",
    "SELECT cursor_key FROM ledgerd.settings",
    "SELECT clock_offset FROM ledgerd.settings",
    "SELECT * FROM ledgerd.settings",
    "SELECT ledgerd.ensure_currency('EUR', 2)",
    "SELECT ledgerd.clock()",
    "SELECT ledgerd.begin_wallet('minor')",
    "CREATE TABLE ledgerd.mine (n integer)",
    "CREATE FUNCTION ledgerd.mine() RETURNS integer LANGUAGE sql RETURN 1",
    "CREATE OR REPLACE FUNCTION ledgerd.clock() RETURNS timestamptz LANGUAGE sql RETURN now()",
    "ALTER FUNCTION ledgerd.clock() SECURITY DEFINER",
    "CREATE TABLE public.mine (n integer)",
    "CREATE SCHEMA mine",
    "GRANT SELECT ON ledgerd.settings TO PUBLIC",
    "SET ROLE postgres",
    "CREATE ROLE another",
    "COPY ledgerd.currencies TO PROGRAM 'true'",
    "SELECT pg_read_file('PG_VERSION')",
)
FOR_THE_DAEMON_ONLY = (
    *(f"SELECT 1 FROM ledgerd.{name}" for name in (*TABLES, *VIEWS)),
    "SELECT ledgerd.open_account(1, 'USD', 2)",
    "SELECT ledgerd.revoke_tokens(1, NULL)",
    "SELECT ledgerd.create_token('x', NULL, NULL, '{operator}', NULL, NULL)",
    "SELECT * FROM ledgerd.login_material('a@example.com')",
    "SELECT ledgerd.take_password_try('a@example.com', NULL, 30)",
    "SELECT ledgerd.return_password_try('a@example.com', NULL, 30)",
    "SELECT ledgerd.open_session('x', 1, 'h', '{user}', NULL)",
    "SELECT ledgerd.change_password(1, 'h', 'g', 1)",
    "SELECT ledgerd.update_user(1, 'n', NULL)",
    "SELECT ledgerd.set_user_status(1, 'disabled')",
    "SELECT ledgerd.token_id_by_hash('x')",
    "SELECT * FROM ledgerd.begin_serving(false)",
    "SELECT * FROM ledgerd.register_user('n', NULL, NULL, 'USD', 2, 'x', '{user}', NULL)",
    "SELECT * FROM ledgerd.post(false" + ", '{}'" * 16 + ")",
    "SELECT ledgerd.moves_money('credit')",
    "SELECT ledgerd.create_wallet_users(1, '{a}', 'minor', 'USD', 2, 1)",
    "SELECT * FROM ledgerd.set_monitor(1, 'below', 0, NULL, 0, 32)",
    "SELECT * FROM ledgerd.collect_due(1)",
    "SELECT ledgerd.remove_monitor(1)",
    "SELECT * FROM ledgerd.expired_holds(interval '1 hour', 1)",
)


@pytest.fixture
def stranger(bench: Bench) -> Iterator[str]:
    """A login role that nobody has given anything."""
    name = f"stranger_{bench.database.name}"
    bench.execute(f"CREATE ROLE {name} LOGIN")
    yield name
    bench.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def allowed(bench: Bench, role: str, statements: list[str]) -> list[str]:
    """Those of the statements that are not refused for lack of privilege."""

    async def work() -> list[str]:
        connection = await asyncpg.connect(bench.database.cluster.dsn_of(bench.database.name, role))
        passed = []
        try:
            for statement in statements:
                transaction = connection.transaction()
                await transaction.start()
                try:
                    await connection.execute(statement)
                except asyncpg.InsufficientPrivilegeError:
                    pass
                except asyncpg.PostgresError as error:
                    passed.append(f"{statement}: {error!r}")
                else:
                    passed.append(statement)
                finally:
                    await transaction.rollback()
        finally:
            await connection.close()
        return passed

    return bench.run(work())


def on_every_table(bench: Bench, *templates: str) -> list[str]:
    first_column = {
        row["relname"]: row["attname"]
        for row in bench.fetch(
            "SELECT c.relname, a.attname FROM pg_class AS c INNER JOIN pg_attribute AS a ON a.attrelid = c.oid "
            "WHERE c.relnamespace = 'ledgerd'::regnamespace AND c.relkind = 'r' AND a.attnum = 1"
        )
    }
    assert set(first_column) == {*TABLES, *HIDDEN}
    return [
        template.format(table=table, column=column) for table, column in first_column.items() for template in templates
    ]


def test_the_daemon_writes_and_locks_nothing_but_through_functions(bench: Bench) -> None:
    assert allowed(bench, DAEMON_ROLE, on_every_table(bench, *WRITES, *ROW_LOCKS, *TABLE_LOCKS)) == []


def test_the_daemon_takes_no_number_from_a_sequence(bench: Bench) -> None:
    statements = [
        f"SELECT {call}"
        for name in SEQUENCES
        for call in (f"nextval('ledgerd.{name}')", f"setval('ledgerd.{name}', -1)")
    ]
    assert allowed(bench, DAEMON_ROLE, statements) == []


@pytest.mark.parametrize("statement", FOR_NOBODY)
def test_the_daemon_may_not(bench: Bench, statement: str) -> None:
    assert allowed(bench, DAEMON_ROLE, [statement]) == []


def test_the_daemon_may_do_all_that_strangers_are_tested_not_to(bench: Bench) -> None:
    """Otherwise the test of strangers could pass because of a typing error in a statement."""
    refused = set(FOR_THE_DAEMON_ONLY) - {
        statement.partition(": ")[0] for statement in allowed(bench, DAEMON_ROLE, list(FOR_THE_DAEMON_ONLY))
    }
    assert refused == set()


def test_a_stranger_may_nothing_at_all(bench: Bench, stranger: str) -> None:
    statements = [*FOR_NOBODY, *FOR_THE_DAEMON_ONLY, *on_every_table(bench, *WRITES, *ROW_LOCKS, *TABLE_LOCKS)]
    assert allowed(bench, stranger, statements) == []


def test_a_member_of_the_daemons_group_may_serve(bench: Bench, stranger: str) -> None:
    bench.execute(f"GRANT ledgerd_daemon TO {stranger}")
    statement = "SELECT epoch FROM ledgerd.begin_serving(false)"
    assert allowed(bench, stranger, [statement]) == [statement]


def test_public_has_nothing_in_the_schema(bench: Bench) -> None:
    granted = bench.fetch(
        """
        SELECT 'schema' AS kind, n.nspname::text AS name, a.privilege_type
        FROM pg_namespace AS n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) AS a
        WHERE n.nspname = 'ledgerd' AND a.grantee = 0
        UNION ALL
        SELECT 'relation', c.oid::regclass::text, a.privilege_type
        FROM pg_class AS c,
        aclexplode(
            coalesce(c.relacl, acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", c.relowner))
        ) AS a
        WHERE c.relnamespace = 'ledgerd'::regnamespace AND c.relkind IN ('r', 'v', 'm', 'S', 'p') AND a.grantee = 0
        UNION ALL
        SELECT 'column', t.attrelid::regclass::text || '.' || t.attname, a.privilege_type
        FROM pg_attribute AS t INNER JOIN pg_class AS c ON c.oid = t.attrelid, aclexplode(t.attacl) AS a
        WHERE c.relnamespace = 'ledgerd'::regnamespace AND a.grantee = 0
        UNION ALL
        SELECT 'function', p.oid::regprocedure::text, a.privilege_type
        FROM pg_proc AS p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
        WHERE p.pronamespace = 'ledgerd'::regnamespace AND a.grantee = 0
        """
    )
    assert [tuple(row) for row in granted] == []


def test_every_function_that_runs_as_the_owner_pins_its_search_path(bench: Bench) -> None:
    functions = bench.fetch(
        "SELECT oid::regprocedure::text AS name, proconfig FROM pg_proc "
        "WHERE pronamespace = 'ledgerd'::regnamespace AND prosecdef"
    )
    assert len(functions) > 5
    for function in functions:
        assert "search_path=pg_catalog, pg_temp" in (function["proconfig"] or []), function["name"]


def test_every_function_the_daemon_may_execute_runs_as_the_owner_unless_it_reads_nothing(bench: Bench) -> None:
    names = bench.fetch(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'ledgerd'::regnamespace AND NOT prosecdef "
        "AND has_function_privilege('ledgerd_daemon', oid, 'EXECUTE') AND provolatile <> 'i'"
    )
    assert [row["proname"] for row in names] == []


def test_objects_a_caller_makes_do_not_lead_the_kernel_astray(bench: Bench) -> None:
    account = bench.account(balance=10)
    bench.run(
        bench.daemon.execute(
            "CREATE TEMP TABLE accounts (account_id bigint, balance bigint); "
            "CREATE TEMP TABLE settings (deployment integer); "
            "CREATE FUNCTION pg_temp.clock() RETURNS timestamptz LANGUAGE sql RETURN 'epoch'::timestamptz; "
            "CREATE FUNCTION pg_temp.clock_timestamp() RETURNS timestamptz LANGUAGE sql RETURN 'epoch'::timestamptz; "
            "SET search_path = pg_temp, ledgerd, pg_catalog"
        )
    )
    command = bench.debit(account, 1)

    assert bench.post(command).posted
    assert bench.stored_account(account).balance == 9
    assert bench.value("SELECT bool_and(created_at > '2020-01-01') FROM ledgerd.transactions")
