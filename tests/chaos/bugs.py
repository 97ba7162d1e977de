"""Bugs that a ledger can have, each put in by an edit that must fit exactly once, and the checks that must see it.

A bug is in the kernel (its function is replaced), in the daemon (its modules are edited as they are loaded), or in how
the server is run. Each has a workload, and perhaps faults, in which it shows within seconds.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import asyncpg
import msgspec
from msgspec import Struct, field

from ledgerd.storage import migrations
from ledgerd_loadtest.chaos.run import Plan

MUTANT = Path(__file__).with_name("mutant_daemon.py")
MIGRATIONS = Path(migrations.__file__).with_name("sql") / "migrations"

# -- workloads ---------------------------------------------------------------------------------------------------------

CONTENTION = Plan(seed=1, seconds=8, pace_s=0.02, fault_s=1e9, daemons=3, workloads=("bank", "hot"))
"""Several daemons on few accounts."""

CROWDS = Plan(seed=7, seconds=8, pace_s=0.0005, fault_s=1e9, daemons=4, workloads=("wide",))
"""Daemons that each lock nearly all accounts at once; when one lets go, several go on together."""

SAME_IDS = Plan(seed=2, seconds=10, pace_s=0.03, fault_s=1e9, workloads=("ids",))
IN_ORDER = Plan(seed=3, seconds=6, pace_s=0.05, fault_s=1e9, workloads=("orderly",))
FOLLOWED = Plan(seed=4, seconds=8, pace_s=0.05, fault_s=1e9, catch_up_s=20, workloads=("bank",))
LOST_REPLIES = Plan(
    seed=5,
    seconds=10,
    pace_s=0.05,
    fault_s=0.5,
    workloads=("bank",),
    faults=("reply dropped between daemon and database",),
)
PULLED_PLUG = Plan(
    seed=6, seconds=8, pace_s=0.03, fault_s=1.5, workloads=("bank",), faults=("PostgreSQL stopped at once",)
)


class Bug(Struct, frozen=True, kw_only=True):
    """A bug, where it shows, and at least one of which checks must see it."""

    name: str
    plan: Plan
    seen_by: frozenset[str]
    kernel: list[tuple[str, str]] = field(default_factory=list)
    sql: str = ""
    daemon: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    server: dict[str, str] = field(default_factory=dict)

    def put_in(self) -> Plan:
        """The plan with the bug in it."""
        launchers: list[list[str]] = []
        if self.daemon:
            launchers = [[sys.executable, str(MUTANT), json.dumps(self.daemon)]] * self.plan.daemons
        prepare: Callable[[str], None] | None = None
        if self.kernel or self.sql:

            def prepare(dsn: str) -> None:
                asyncio.run(_execute(dsn, f"{mutated_kernel(self.kernel)}\n{self.sql}"))

        return msgspec.structs.replace(self.plan, launchers=launchers, prepare=prepare, server=self.server)


def mutated_kernel(edits: list[tuple[str, str]]) -> str:
    """The kernel as the newest migration makes it, with the edits; a text that does not fit is an error."""
    if not edits:
        return ""
    text = next(
        found.group()
        for path in sorted(MIGRATIONS.glob("*.sql"), reverse=True)
        if (found := re.search(r"CREATE FUNCTION ledgerd\.post\(.*?^END \$\$;", path.read_text(), re.DOTALL | re.M))
    )
    for old, new in edits:
        assert text.count(old) == 1, f"the kernel has {text.count(old)} times: {old}"
        text = text.replace(old, new)
    return text.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1)


async def _execute(dsn: str, sql: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


# -- bugs --------------------------------------------------------------------------------------------------------------

_LOCK = "    PERFORM pg_advisory_xact_lock(v_lock_space | u.account_id) FROM unnest(v_accounts) AS u (account_id);\n"
_READ = """    FROM unnest(v_accounts) WITH ORDINALITY AS u (account_id, n)
    LEFT JOIN LATERAL (SELECT x.* FROM ledgerd.accounts AS x WHERE x.account_id = u.account_id LIMIT 1) AS a ON true;
    v_versions_read"""
_TAKEN = """EXISTS (
        SELECT FROM unnest(p_transaction_ids) AS u (transaction_id)
        CROSS JOIN LATERAL (
            SELECT FROM ledgerd.transactions AS x WHERE x.transaction_id = u.transaction_id LIMIT 1
        ) AS t
    )"""
_CALL = "answer = await self._statement.fetchrow(*arguments)"
_BEFORE_RERUN = "def _count_rerun("

_OPENED = """
async def _opened(lane, arguments):
    await lane._connection.execute("BEGIN")
    try:
        return await lane._statement.fetchrow(*arguments)
    except Exception:
        await lane._connection.execute("ROLLBACK")
        raise


"""
_COMMIT_LATER = """
async def _committed_later(lane, arguments):
    import asyncio, contextlib

    before = getattr(lane, "_commit", None)
    if before is not None:
        await before

    async def commit():
        await asyncio.sleep(0.03)
        with contextlib.suppress(Exception):
            await lane._connection.execute("COMMIT")

    answer = await _opened(lane, arguments)
    lane._commit = asyncio.ensure_future(commit())
    return answer


"""
_COMMIT = """    async def commit(self):
        async def work():
            import asyncio

            await asyncio.sleep(0.03)
            await self._connection.execute("COMMIT")

        await self._crossing.run(work, self._connection)

    async def _call("""

_POSTED = "outcomes = await lane.post(call.units, resent=call.lost)\n"
_PUSHED = """            for record in _committed(outcomes, lost=call.lost):
                self._publish(record)
            await lane.commit()
"""
_LOST = "        call.lost = True\n"
_RENAMED = """        import uuid_utils
        for unit in call.units:
            for command in unit.commands:
                command.transaction_id = str(uuid_utils.uuid7())
"""

BUGS = [
    Bug(
        name="lock dropped",
        plan=CONTENTION,
        seen_by=frozenset({"processes are well"}),
        kernel=[(_LOCK, "")],
    ),
    Bug(
        name="lock and read in one statement",
        plan=CONTENTION,
        seen_by=frozenset({"processes are well"}),
        kernel=[
            (_LOCK, ""),
            (
                _READ,
                _READ.replace(
                    "unnest(v_accounts) WITH ORDINALITY AS u (account_id, n)",
                    "(SELECT l.account_id, l.n, pg_advisory_xact_lock(v_lock_space | l.account_id) AS locked "
                    "FROM unnest(v_accounts) WITH ORDINALITY AS l (account_id, n) OFFSET 0) AS u",
                ),
            ),
        ],
    ),
    Bug(
        name="REPEATABLE READ",
        plan=CONTENTION,
        seen_by=frozenset({"processes are well"}),
        kernel=[("IF current_setting('transaction_isolation') <> 'read committed' THEN", "IF false THEN")],
        daemon={
            "ledgerd.storage.connection": [
                (
                    '"default_transaction_isolation": "read committed"',
                    '"default_transaction_isolation": "repeatable read"',
                )
            ],
            "ledgerd.storage.checks": [('if found == "read committed":', 'if found == "repeatable read":')],
        },
    ),
    Bug(
        name="reply before commit",
        plan=CONTENTION,
        seen_by=frozenset({"reads are true", "acknowledged is there"}),
        daemon={
            "ledgerd.storage.lane": [
                (_CALL, "answer = await _committed_later(self, arguments)"),
                (_BEFORE_RERUN, _OPENED + _COMMIT_LATER + _BEFORE_RERUN),
            ]
        },
    ),
    Bug(
        name="dedupe outside the transaction",
        plan=SAME_IDS,
        seen_by=frozenset({"acknowledged is there", "done once", "accounts add up"}),
        kernel=[
            ("    v_rows integer;\n", "    v_rows integer;\n    v_taken boolean;\n"),
            ("    -- 1. Lock.", f"    v_taken := {_TAKEN};\n    -- 1. Lock."),
            (f"IF {_TAKEN} THEN", "IF v_taken THEN"),
        ],
        sql="ALTER TABLE ledgerd.transactions DROP CONSTRAINT transactions_pkey CASCADE;"
        "CREATE INDEX ON ledgerd.transactions (transaction_id);",
    ),
    Bug(
        name="push before commit",
        plan=FOLLOWED,
        seen_by=frozenset({"reads are true"}),
        daemon={
            "ledgerd.storage.lane": [
                (_CALL, "answer = await _opened(self, arguments)"),
                (_BEFORE_RERUN, _OPENED + _BEFORE_RERUN),
                ("    async def _call(", _COMMIT),
            ],
            "ledgerd.engine.committer": [(_POSTED, _POSTED + _PUSHED)],
        },
    ),
    Bug(
        name="locks unsorted",
        plan=CROWDS,
        seen_by=frozenset({"processes are well"}),
        kernel=[
            (
                _LOCK,
                _LOCK.replace(
                    "unnest(v_accounts) AS u (account_id)",
                    "(SELECT x.id FROM unnest(v_accounts) AS x (id) ORDER BY random()) AS u (account_id)",
                ),
            )
        ],
    ),
    Bug(
        name="synchronous_commit off, and PostgreSQL stopped at once",
        plan=PULLED_PLUG,
        seen_by=frozenset({"acknowledged is there"}),
        server={"synchronous_commit": "off", "wal_writer_delay": "10s"},
    ),
    Bug(
        name="hint dropped, with polling disabled",
        plan=FOLLOWED,
        seen_by=frozenset({"feeds are complete"}),
        daemon={
            "ledgerd.engine.hints": [("await send(self._payload())", "self._payload()")],
            "ledgerd.engine.feed": [("interval_s = self._config.feed_poll_s", "interval_s = 1e9")],
        },
    ),
    Bug(
        name="sent again with a new id",
        plan=LOST_REPLIES,
        seen_by=frozenset({"acknowledged is there", "refused is not there"}),
        daemon={"ledgerd.engine.committer": [(_LOST, _LOST + _RENAMED)]},
    ),
    Bug(
        name="worker out of order",
        plan=IN_ORDER,
        seen_by=frozenset({"arrival order"}),
        daemon={
            "ledgerd.engine.user_worker": [
                ("await self._committer.commit(self._in_hand)", "await self._committer.commit(self._in_hand[::-1])")
            ]
        },
    ),
]
