"""Whether a database can be served from: one list of checks, each with what was found and what to do about it.

A daemon looks at the start of every generation, because the next connection may lead to another server; `ledgerd
doctor` looks when asked. What is looked at is gathered in `ledgerd.storage.facts`; here nothing is asked any more, so
that the same facts always give the same findings, in the same order.

What a check may find: ``refuse`` (a daemon does not start, and waiting will not help), ``wait`` (it tries again),
``warn`` (it starts and says so), ``info``.

    server_version      refuse, warn  the server is a PostgreSQL that this release was tested with
    one_server          wait          all connections lead to the same server
    primary             wait          the server can be written to
    pooler              refuse, info  every connection has a session of its own
    advisory_locks      refuse        an account's lock keeps everybody else out until the end of the transaction
    isolation           refuse        transactions are READ COMMITTED
    encoding            refuse        the database stores every text there is
    schema              refuse        the database has the schema of this release, no older and no newer one
    privileges          refuse        the role may do all that the daemon does
    role                warn          the role may do no more than that
    currencies          refuse        currencies have the decimals that are configured
    wallet_unit         refuse        the betting wallet counts in the unit that is configured
    lock_table          refuse, warn  the server has room for the locks of all daemons at once
    connections         refuse, warn  the server has room for the connections of a daemon
    durability          warn          a crash of the server loses nothing
    synchronous_commit  warn          what is acknowledged is on disk, and at the synchronous standbys
    data_checksums      info          the server notices damaged pages
    clock               warn          the clocks of database and daemon agree
    idle_holders        warn          nobody keeps an account's lock and does nothing
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from enum import Enum
from typing import NamedTuple

from msgspec import Struct

from ledgerd import __version__
from ledgerd.config import MINOR_UNIT
from ledgerd.storage import migrations
from ledgerd.storage.facts import Facts, connections_needed
from ledgerd_protocol.money import iso_scale

VERSIONS = range(15, 19)
"""Major versions of PostgreSQL that the tests know."""

LOCKS_SHARE_MAX = 0.75
"""How much of the server's lock table may be meant for daemons; the rest is everybody else's, and past its end every
session of the server is refused."""

CLOCKS_APART_S_MAX = 2.0

NAMES_SHOWN_MAX = 6


class Level(Enum):
    """What a finding means for a daemon that starts; the value is how it is spelled."""

    OK = "ok"
    INFO = "info"
    WARN = "warn"
    WAIT = "wait"
    REFUSE = "refuse"
    SKIPPED = "skipped"  # cannot be told before something else is mended


class Found(NamedTuple):
    """What a check found, and, unless all is well, what to do."""

    level: Level
    what: str
    advice: str = ""


class Finding(Struct, frozen=True):
    """A check with what it found."""

    check: str
    level: Level
    what: str
    advice: str = ""

    @property
    def sentence(self) -> str:
        """Both in one, for a log or an error."""
        return f"{self.what}: {self.advice}" if self.advice else self.what

    @property
    def prevents(self) -> bool:
        """Whether no daemon serves with it."""
        return self.level in (Level.REFUSE, Level.WAIT)


class Check(Struct, frozen=True):
    """Something that should be so, and the levels of what else may be found."""

    name: str
    levels: tuple[Level, ...]
    says: str
    look: Callable[[Facts], Found]


# -- where the connections lead ----------------------------------------------------------------------------------------


def _server_version(facts: Facts) -> Found:
    major = facts.server.version_num // 10_000
    what = f"PostgreSQL {facts.server.version}"
    if major < VERSIONS.start:
        return Found(Level.REFUSE, what, f"ledgerd needs PostgreSQL {VERSIONS.start} or later: upgrade the server")
    if major not in VERSIONS:
        newest = VERSIONS.stop - 1
        return Found(
            Level.WARN,
            what,
            f"ledgerd {__version__} was tested with {VERSIONS.start} to {newest}: look for a newer one",
        )
    return Found(Level.OK, what)


def _one_server(facts: Facts) -> Found:
    if facts.probe.one_server:
        return Found(Level.OK, "two connections led to the same server")
    return Found(
        Level.WAIT,
        "two connections led to different servers",
        "list the hosts in the DSN (host=a,b) instead of a balancer or a name that spreads connections",
    )


def _primary(facts: Facts) -> Found:
    if not facts.server.in_recovery:
        return Found(Level.OK, "it is no standby")
    return Found(
        Level.WAIT,
        "the server is a standby and cannot be written to",
        "name the primary, or list all hosts in the DSN (host=a,b), or wait until this one is promoted",
    )


def _pooler(facts: Facts) -> Found:
    if facts.probe.shared:
        return Found(PER_TRANSACTION.level, PER_TRANSACTION.what, PER_TRANSACTION.advice)
    if facts.probe.pooled:
        return Found(
            Level.INFO, "a pooler in session mode is in between", "connecting directly saves time on every call"
        )
    return Found(Level.OK, "connections are direct")


PER_TRANSACTION = Finding(
    "pooler",
    Level.REFUSE,
    "a pooler in transaction or statement mode is in between: sessions are shared, so timeouts, prepared statements "
    "and LISTEN do not last",
    "connect directly to PostgreSQL, or through a pooler in session mode (for PgBouncer: pool_mode = session for this "
    "database)",
)


def _advisory_locks(facts: Facts) -> Found:
    if not facts.probe.excluded:
        return Found(
            Level.REFUSE,
            "advisory locks do not exclude: two connections held the same one at once, so two daemons would spend the "
            "same money",
            "use PostgreSQL itself, or a database with real advisory locks, and no proxy that answers for it",
        )
    if not facts.probe.released:
        return Found(
            Level.REFUSE,
            "an advisory lock outlived its transaction, so that accounts would stay locked",
            "use PostgreSQL itself, and no proxy that keeps transactions open",
        )
    return Found(Level.OK, "a lock kept a second connection out until the end of the transaction")


def _isolation(facts: Facts) -> Found:
    found = facts.server.isolation
    if found == "read committed":
        return Found(Level.OK, "READ COMMITTED")
    return Found(
        Level.REFUSE,
        f"transactions are {found.upper()}, not READ COMMITTED: a call would not see what it had to wait for",
        f"ALTER ROLE {facts.server.role} RESET default_transaction_isolation, and the same for the database",
    )


def _encoding(facts: Facts) -> Found:
    if facts.server.encoding == "UTF8":
        return Found(Level.OK, "UTF8")
    return Found(
        Level.REFUSE,
        f"the database is encoded in {facts.server.encoding}, which cannot store every name and reference",
        f"CREATE DATABASE {facts.server.database} ENCODING 'UTF8' TEMPLATE template0, and move to that",
    )


# -- the ledger in it --------------------------------------------------------------------------------------------------


def _schema(facts: Facts) -> Found:
    server = facts.server
    if not server.has_schema or (server.may_use_schema and not server.has_migrations):
        return Found(
            Level.REFUSE,
            f"the database {server.database} has no ledger yet",
            "run `ledgerd migrate --apply` with the owner's DSN, or correct the database's name",
        )
    if facts.applied is None:
        return _SKIPPED
    try:
        missing = migrations.pending(facts.applied)
    except migrations.MigrationMismatch as error:
        return Found(Level.REFUSE, error.found, error.advice)
    if missing:
        return Found(
            Level.REFUSE,
            f"the database is older than this ledgerd: it lacks {_names(one.name for one in missing)}, which "
            f"{__version__} needs",
            "make a backup and run `ledgerd migrate --apply` with the owner's DSN, or go on with the older ledgerd",
        )
    if server.absent:
        return Found(
            Level.REFUSE,
            f"the schema is damaged: {_names(server.absent)} of its functions and tables are gone",
            "restore it from a backup; the migrations that made them are on record as applied",
        )
    return Found(Level.OK, f"at {migrations.all_migrations()[-1].name}, as ledgerd {__version__} needs")


def _privileges(facts: Facts) -> Found:
    server = facts.server
    if not server.has_schema:
        return _SKIPPED
    if not (server.may_use_schema and server.may_read_migrations):
        return Found(
            Level.REFUSE,
            f"permission denied: the role {server.role} may not use the schema ledgerd",
            f"GRANT ledgerd_daemon TO {server.role}",
        )
    if server.not_executable:
        grant = f"GRANT EXECUTE ON FUNCTION {', '.join(_qualified(server.not_executable))} TO ledgerd_daemon"
        what = f"the role {server.role} may not EXECUTE {_names(server.not_executable)}"
        return Found(Level.REFUSE, what, f"as the owner: {grant}")
    if server.not_readable:
        grant = f"GRANT SELECT ON {', '.join(_qualified(server.not_readable))} TO ledgerd_daemon"
        return Found(
            Level.REFUSE,
            f"the role {server.role} may not SELECT from {_names(server.not_readable)}",
            f"as the owner: {grant}",
        )
    return Found(Level.OK, f"the role {server.role} may execute and read what the daemon needs")


def _role(facts: Facts) -> Found:
    server = facts.server
    if server.is_superuser:
        too_much = "is a superuser"
    elif server.owns_schema:
        too_much = "owns the ledger's schema"
    elif server.writable:
        too_much = f"can write {_names(server.writable)}"
    else:
        return Found(Level.OK, f"the role {server.role} can write no table")
    return Found(
        Level.WARN,
        f"the role {server.role} {too_much}: a mistake or a stolen password could rewrite the ledger",
        "serve with a role that is in ledgerd_daemon and has nothing else: CREATE ROLE ledgerd LOGIN PASSWORD '...' IN "
        "ROLE ledgerd_daemon",
    )


def _currencies(facts: Facts) -> Found:
    if facts.ledger is None:
        return _SKIPPED
    for currency, scale in facts.ledger.currencies.items():
        ours = facts.config.currencies.get(currency, iso_scale(currency))
        if ours is not None and ours != scale:
            return Found(
                Level.REFUSE,
                f"{currency} has {scale} decimals in this database, {ours} in this configuration",
                f"a currency's scale never changes: set currencies to {currency}={scale}",
            )
    return Found(Level.OK, f"{len(facts.ledger.currencies)} in use")


def _wallet_unit(facts: Facts) -> Found:
    if facts.ledger is None:
        return _SKIPPED
    theirs, ours = facts.ledger.wallet_unit, facts.config.wallet_unit
    if theirs not in (None, ours):
        return Found(
            Level.REFUSE,
            f"the betting wallet of this database counts in {_unit_name(theirs)}, this configuration in "
            f"{_unit_name(ours)}",
            "set wallet_unit_decimals as it was, for the unit never changes",
        )
    return Found(Level.OK, "not in use" if theirs is None else _unit_name(theirs))


def _unit_name(wallet_unit: str | None) -> str:
    return "minor units" if wallet_unit in (MINOR_UNIT, None) else f"units of {wallet_unit} decimals"


# -- room on the server ------------------------------------------------------------------------------------------------


def _lock_table(facts: Facts) -> Found:
    config, server = facts.config, facts.server
    sessions = server.connections_max + server.prepared_transactions_max
    capacity = server.locks_per_transaction * sessions
    ours = config.lanes * config.call_accounts_max
    needed = ours * facts.daemons
    of_daemons = "one daemon" if facts.daemons == 1 else f"{facts.daemons} daemons"
    numbers = (
        f"{of_daemons} may lock {needed:,} accounts at once ({config.lanes} lanes x {config.call_accounts_max:,} of a "
        f"call{'' if facts.daemons == 1 else ' each'}), the server has room for {capacity:,} locks "
        f"({server.locks_per_transaction} x {sessions:,} sessions)"
    )
    if needed <= LOCKS_SHARE_MAX * capacity:
        return Found(Level.OK, numbers)
    enough = math.ceil(needed / LOCKS_SHARE_MAX / sessions)
    advice = f"set max_locks_per_transaction = {enough} and restart PostgreSQL, or lower call_accounts_max or lanes"
    return Found(Level.REFUSE if ours > capacity else Level.WARN, numbers, advice)


def _connections(facts: Facts) -> Found:
    server, needed = facts.server, connections_needed(facts.config)
    # Whoever asks has two already; a daemon keeps them.
    limits = [
        (
            server.connections_max - server.connections_reserved,
            server.connections,
            "the server",
            "raise max_connections and restart PostgreSQL",
        ),
        (
            server.role_connections_max,
            server.role_connections,
            f"the role {server.role}",
            f"ALTER ROLE {server.role} CONNECTION LIMIT -1",
        ),
        (
            server.database_connections_max,
            server.database_connections,
            f"the database {server.database}",
            f"ALTER DATABASE {server.database} CONNECTION LIMIT -1",
        ),
    ]
    limits = [limit for limit in limits if limit[0] >= 0]
    for room, _, whose, advice in limits:
        if room < needed:
            what = f"a daemon needs {needed} connections, {whose} allows {room}"
            return Found(Level.REFUSE, what, f"{advice}, or lower lanes or readers")
    free, room, whose, advice = min((room - used + 2, room, whose, advice) for room, used, whose, advice in limits)
    what = f"a daemon needs {needed} connections, {free} of the {room} that {whose} allows are free"
    if free < needed:
        return Found(Level.WARN, what, f"{advice}, end what is not needed, or lower lanes or readers")
    return Found(Level.OK, what)


# -- what a crash would cost -------------------------------------------------------------------------------------------


def _durability(facts: Facts) -> Found:
    off = [name for name in ("fsync", "full_page_writes") if getattr(facts.server, name) == "off"]
    if not off:
        return Found(Level.OK, "fsync and full_page_writes are on")
    return Found(
        Level.WARN,
        f"{' and '.join(off)} {'is' if len(off) == 1 else 'are'} off: a crash can lose acknowledged money, or all data",
        "; ".join(f"ALTER SYSTEM SET {name} = on" for name in off) + "; SELECT pg_reload_conf()",
    )


def _synchronous_commit(facts: Facts) -> Found:
    server = facts.server
    reset = f"ALTER ROLE {server.role} SET synchronous_commit = on"
    if server.synchronous_commit == "off":
        return Found(
            Level.WARN, "synchronous_commit is off: a crash of the server loses money that was acknowledged", reset
        )
    if server.synchronous_commit == "local" and server.synchronous_standby_names:
        return Found(
            Level.WARN,
            "synchronous_commit is local, though there are synchronous standbys: a fail-over loses money that was "
            "acknowledged",
            reset,
        )
    return Found(Level.OK, f"synchronous_commit is {server.synchronous_commit}")


def _data_checksums(facts: Facts) -> Found:
    if facts.server.data_checksums == "on":
        return Found(Level.OK, "on")
    return Found(
        Level.INFO,
        "off: a page that the disk damaged is not noticed",
        "stop the server and run `pg_checksums --enable`",
    )


def _clock(facts: Facts) -> Found:
    ahead, error = facts.clock_ahead_s, facts.clock_error_s
    apart = max(abs(ahead) - error, 0)
    if apart <= CLOCKS_APART_S_MAX:
        return Found(Level.OK, f"the clocks are less than {CLOCKS_APART_S_MAX:g} s apart")
    return Found(
        Level.WARN,
        f"the database's clock is {apart:,.1f} s {'ahead of' if ahead > 0 else 'behind'} the daemon's: tokens end "
        "early or late, and times in the log do not match those of transactions",
        "run a time service (chrony, systemd-timesyncd) on both machines",
    )


def _idle_holders(facts: Facts) -> Found:
    if facts.ledger is None:
        return _SKIPPED
    holders = facts.ledger.idle_holders
    if not holders:
        seen = "" if facts.server.sees_all_sessions else ", as far as this role may see"
        return Found(Level.OK, f"none{seen}")
    told = ", ".join(
        f"process {holder.pid} ({holder.role}, {holder.application_name or 'no name'}) has kept {holder.locks} for "
        f"{holder.idle_for.total_seconds():,.0f} s"
        for holder in holders[:NAMES_SHOWN_MAX]
    )
    pids = ", ".join(f"pg_terminate_backend({holder.pid})" for holder in holders[:NAMES_SHOWN_MAX])
    return Found(
        Level.WARN,
        f"sessions hold locks of accounts and do nothing, so that everybody waits: {told}",
        f"end their transactions, or SELECT {pids}",
    )


# -- all of them -------------------------------------------------------------------------------------------------------

_SKIPPED = Found(Level.SKIPPED, "cannot be told before the above is mended")


CHECKS = (
    Check(
        "server_version",
        (Level.REFUSE, Level.WARN),
        "the server is a PostgreSQL that this release was tested with",
        _server_version,
    ),
    Check("one_server", (Level.WAIT,), "all connections lead to the same server", _one_server),
    Check("primary", (Level.WAIT,), "the server can be written to", _primary),
    Check("pooler", (Level.REFUSE, Level.INFO), "every connection has a session of its own", _pooler),
    Check(
        "advisory_locks",
        (Level.REFUSE,),
        "an account's lock keeps everybody else out until the end of the transaction",
        _advisory_locks,
    ),
    Check("isolation", (Level.REFUSE,), "transactions are READ COMMITTED", _isolation),
    Check("encoding", (Level.REFUSE,), "the database stores every text there is", _encoding),
    Check("schema", (Level.REFUSE,), "the database has the schema of this release, no older and no newer one", _schema),
    Check("privileges", (Level.REFUSE,), "the role may do all that the daemon does", _privileges),
    Check("role", (Level.WARN,), "the role may do no more than that", _role),
    Check("currencies", (Level.REFUSE,), "currencies have the decimals that are configured", _currencies),
    Check("wallet_unit", (Level.REFUSE,), "the betting wallet counts in the unit that is configured", _wallet_unit),
    Check(
        "lock_table",
        (Level.REFUSE, Level.WARN),
        "the server has room for the locks of all daemons at once",
        _lock_table,
    ),
    Check(
        "connections", (Level.REFUSE, Level.WARN), "the server has room for the connections of a daemon", _connections
    ),
    Check("durability", (Level.WARN,), "a crash of the server loses nothing", _durability),
    Check(
        "synchronous_commit",
        (Level.WARN,),
        "what is acknowledged is on disk, and at the synchronous standbys",
        _synchronous_commit,
    ),
    Check("data_checksums", (Level.INFO,), "the server notices damaged pages", _data_checksums),
    Check("clock", (Level.WARN,), "the clocks of database and daemon agree", _clock),
    Check("idle_holders", (Level.WARN,), "nobody keeps an account's lock and does nothing", _idle_holders),
)


def judge(facts: Facts) -> list[Finding]:
    """What every check found, in the order of `CHECKS`."""
    findings = []
    for check in CHECKS:
        found = check.look(facts)
        assert found.level in (Level.OK, Level.SKIPPED, *check.levels), f"{check.name} may not find {found.level}"
        findings.append(Finding(check.name, *found))
    return findings


def _names(names: Iterable[str]) -> str:
    """The first few, and how many more."""
    listed = list(names)
    shown, more = listed[:NAMES_SHOWN_MAX], len(listed) - NAMES_SHOWN_MAX
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _qualified(names: Iterable[str]) -> list[str]:
    return [f"ledgerd.{name}" for name in names]
