"""What a person wants to know of a database: all checks, which daemons are there, and who holds which account's lock.

Changes nothing: everything that is asked reads, and the one lock that the checks try is nobody's account. The sessions
are not READ ONLY, because then no server would be one that target_session_attrs=read-write asks for.
"""

from __future__ import annotations

import asyncio
from datetime import datetime

import asyncpg
from msgspec import Struct

from ledgerd.config import Config
from ledgerd.masking import error_text
from ledgerd.storage.checks import CHECKS as ALL_CHECKS
from ledgerd.storage.checks import PER_TRANSACTION, Finding, Level, judge
from ledgerd.storage.connection import open_session
from ledgerd.storage.facts import Facts, PooledPerTransaction, connections_needed, examine
from ledgerd.storage.failures import DATABASE_ERRORS
from ledgerd.storage.hosts import Route
from ledgerd.storage.queries import CHECKS
from ledgerd.storage.reaching import unreached

LOCKS_SHOWN_MAX = 200
PENDING_SHOWN_MAX = 10_000

TIMEOUT_S = 30.0
"""For everything that is asked once it is connected."""

_SESSION = {
    "default_transaction_isolation": "read committed",
    "lock_timeout": "5000",
    "statement_timeout": "10000",
}


class Daemons(Struct, frozen=True):
    """Connections of daemons from one address by one role; ``since`` is None if this role may not see it."""

    role: str
    address: str | None
    connections: int
    since: datetime | None


class AccountLock(Struct, frozen=True):
    """One session that has or wants an account's lock. Without a ``pid`` it is a prepared transaction.

    ``since`` is when its transaction began, or when it began to wait. ``is_hidden`` says that this role may not see
    more of it.
    """

    account_id: int
    granted: bool
    pid: int | None
    role: str | None
    application_name: str | None
    address: str | None
    state: str | None
    since: datetime | None
    blocked_by: list[int]
    is_hidden: bool


class Pending(Struct, frozen=True):
    """How much waits for its time, each counted up to `PENDING_SHOWN_MAX`."""

    holds: int
    overdue_holds: int
    advances: int
    due_advances: int


class Summary(Struct, frozen=True):
    """Which database and which ledger this is. What could not be read is None."""

    server: str
    database: str
    role: str
    migration: int | None
    epoch: str | None
    deployment: int | None
    connections_per_daemon: int
    pending: Pending | None


class Diagnosis(Struct, frozen=True):
    """All of it. Without a connection there is one finding. ``locks`` is None if the ledger could not be read."""

    findings: list[Finding]
    summary: Summary | None = None
    daemons: list[Daemons] = []
    locks: list[AccountLock] | None = None
    reached: bool = True

    @property
    def is_fit(self) -> bool:
        """Whether a daemon would serve."""
        return not any(finding.prevents for finding in self.findings)


def diagnose(config: Config) -> Diagnosis:
    """Look at the database of this configuration. Raises nothing that a database may say."""
    return asyncio.run(_diagnose(config))


async def _diagnose(config: Config) -> Diagnosis:
    connections: list[asyncpg.Connection] = []
    try:
        try:
            route = Route(config.dsn)
            for _ in range(2):
                connection = await open_session(config, "ledgerd doctor", _SESSION, route)
                connections.append(connection)
        except Exception as error:  # noqa: BLE001  the driver raises its own, the system's and ValueError for a DSN
            why = unreached(error)
            level = Level.REFUSE if why.is_final else Level.WAIT
            return Diagnosis([Finding("connection", level, why.found, why.advice)], reached=why.is_final)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await _look(config, *connections)
        except PooledPerTransaction:
            return Diagnosis([_CONNECTED, PER_TRANSACTION])
        except (*DATABASE_ERRORS, TimeoutError) as error:
            what = f"the database does not answer what every daemon asks ({error_text(error)})"
            return Diagnosis([_CONNECTED, Finding("answers", Level.REFUSE, what, "is it PostgreSQL, and is it well?")])
    finally:
        for connection in connections:
            connection.terminate()


_CONNECTED = Finding("connection", Level.OK, "the database answers")


async def _look(config: Config, first: asyncpg.Connection, second: asyncpg.Connection) -> Diagnosis:
    facts = await examine(config, first, second)
    rows = await first.fetch(CHECKS["daemons"])
    return Diagnosis(
        findings=[_CONNECTED, *judge(facts)],
        summary=await _summary(facts, first),
        daemons=[Daemons(**row) for row in rows],
        locks=await _locks(facts, first),
    )


async def _summary(facts: Facts, connection: asyncpg.Connection) -> Summary:
    server, ledger = facts.server, facts.ledger
    pending = None
    if ledger is not None:
        pending = Pending(**await connection.fetchrow(CHECKS["pending"], PENDING_SHOWN_MAX))
    return Summary(
        server=server.version,
        database=server.database,
        role=server.role,
        migration=max(facts.applied) if facts.applied else None,
        epoch=None if ledger is None else ledger.epoch,
        deployment=None if ledger is None else ledger.deployment,
        connections_per_daemon=connections_needed(facts.config),
        pending=pending,
    )


async def _locks(facts: Facts, connection: asyncpg.Connection) -> list[AccountLock] | None:
    if facts.ledger is None:
        return None
    rows = await connection.fetch(CHECKS["account_locks"], facts.ledger.deployment, LOCKS_SHOWN_MAX)
    return [AccountLock(**row) for row in rows]


def says(name: str) -> str:
    """What should be so, of a finding's check."""
    known = {check.name: check.says for check in ALL_CHECKS}
    return known.get(name, "the database can be reached, and answers")
