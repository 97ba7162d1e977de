"""What the daemon is compared with, measured over asyncpg: plain transactions, and the ledger's kernel called directly.

Rules of this file:

- *plain* is what a careful team writes without a ledger: one transaction per transfer, six statements, both accounts
  locked in sorted order, in the schema `ledgerd_bench`, which is made here and dropped afterwards. It keeps the same
  history as the ledger does, balances and versions of both sides with the two indexes by which an account's statement
  is read: a table without them would be faster and could not answer what every ledger is asked.
- *kernel* is `ledgerd.post` with nothing in front of it: the most that any daemon could reach on this database.
- Arguments are made before the clock starts and answers are read after it has stopped, so that the client costs little.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import asyncpg
from msgspec import Struct
from uuid_utils import uuid7

from ledgerd_loadtest.audit import Harvest
from ledgerd_loadtest.commands import AMOUNT_MINOR, CURRENCY, Supply, Transfer, draw
from ledgerd_loadtest.measure import Window, percentile
from ledgerd_loadtest.processes import Gauges, is_postgres, parent

SETTINGS = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "wal_sync_method", "shared_buffers")
"""What decides how fast a commit is, and is reported with every figure."""

CONNECT_TIMEOUT_S = 10
STATEMENT_TIMEOUT_S = 30

_POST = (
    "SELECT * FROM ledgerd.post($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)"
)

_PLAIN_SCHEMA = """
DROP SCHEMA IF EXISTS ledgerd_bench CASCADE;
CREATE SCHEMA ledgerd_bench;
CREATE TABLE ledgerd_bench.accounts (
    account_id bigint PRIMARY KEY, balance bigint NOT NULL, version bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
CREATE TABLE ledgerd_bench.transfers (
    transfer_id uuid PRIMARY KEY, debit_account bigint NOT NULL, credit_account bigint NOT NULL,
    amount bigint NOT NULL CHECK (amount > 0), debit_balance bigint NOT NULL, credit_balance bigint NOT NULL,
    debit_version bigint NOT NULL, credit_version bigint NOT NULL, created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (debit_account, debit_version), UNIQUE (credit_account, credit_version)
);
"""
_PLAIN_FUNDS = 10**12
_PLAIN_LOCK = "SELECT pg_advisory_xact_lock(k) FROM unnest($1::bigint[]) AS k"
_PLAIN_READ = "SELECT account_id, balance, version FROM ledgerd_bench.accounts WHERE account_id = ANY($1::bigint[])"
_PLAIN_UPDATE = (
    "UPDATE ledgerd_bench.accounts SET balance = balance + CASE account_id WHEN $1 THEN -$3::bigint ELSE $3 END, "
    "version = version + 1 WHERE account_id IN ($1, $2)"
)
_PLAIN_INSERT = (
    "INSERT INTO ledgerd_bench.transfers (transfer_id, debit_account, credit_account, amount, debit_balance, "
    "credit_balance, debit_version, credit_version) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
)


T = TypeVar("T")


class BaselineFailed(Exception):
    """PostgreSQL refused or lost what the baseline asked of it."""


class DatabaseFacts(Struct, frozen=True):
    """The server's settings, and the process number of its postmaster if it runs on this machine."""

    settings: dict[str, str]
    postmaster_pid: int | None


# -- the database ------------------------------------------------------------------------------------------------------


def database_facts(dsn: str) -> DatabaseFacts:
    """Look at the server. Raises BaselineFailed, OSError, as everything here that takes a dsn."""

    async def look() -> DatabaseFacts:
        connection = await _connect(dsn)
        try:
            settings = {name: str(await connection.fetchval(f"SHOW {name}")) for name in SETTINGS}
            backend = connection.get_server_pid()
            return DatabaseFacts(settings, parent(backend) if is_postgres(backend) else None)
        finally:
            await connection.close()

    return _run(look())


BACKENDS = {
    "listener": "query ILIKE '%pg_notify%' OR query ILIKE 'listen%'",
    "lane": "query LIKE '%ledgerd.post(%'",
    "any": "true",
}
"""How the connections of a daemon look in pg_stat_activity, by what they last did."""


def terminate_backends(dsn: str, kind: str, count: int) -> int:
    """Let the server end up to ``count`` connections of daemons, of one kind of `BACKENDS`; how many it were."""
    chosen = f"SELECT pid FROM pg_stat_activity WHERE application_name = 'ledgerd' AND ({BACKENDS[kind]})"  # noqa: S608
    sql = f"SELECT count(pg_terminate_backend(pid)) FROM ({chosen} ORDER BY random() LIMIT $1) AS chosen"  # noqa: S608

    async def terminate() -> int:
        connection = await _connect(dsn)
        try:
            return int(await connection.fetchval(sql, count))
        finally:
            await connection.close()

    return _run(terminate())


def value(dsn: str, sql: str, *arguments: object) -> Any:
    """The first value that a statement answers, None if it answers nothing."""

    async def ask() -> Any:
        connection = await _connect(dsn)
        try:
            return await connection.fetchval(sql, *arguments)
        finally:
            connection.terminate()

    return _run(ask())


@contextmanager
def plain_schema(dsn: str, accounts: Sequence[int]) -> Iterator[None]:
    """The tables of plain transactions, with the given accounts; dropped at the end, whatever happens."""

    async def execute(sql: str, *arguments: object) -> None:
        connection = await _connect(dsn)
        try:
            await connection.execute(sql, *arguments)
        finally:
            await connection.close()

    drop = "DROP SCHEMA IF EXISTS ledgerd_bench CASCADE"
    fill = "INSERT INTO ledgerd_bench.accounts (account_id, balance) SELECT k, $2 FROM unnest($1::bigint[]) AS k"
    try:
        _run(execute(_PLAIN_SCHEMA))
        _run(execute(fill, accounts, _PLAIN_FUNDS))
        yield
    except BaseException:
        # What went wrong first is what matters; the server may be gone.
        with suppress(BaselineFailed, OSError):
            _run(execute(drop))
        raise
    _run(execute(drop))


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run asyncpg's work to its end."""
    try:
        return asyncio.run(work)
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise BaselineFailed(f"PostgreSQL: {error}") from error


async def _connect(dsn: str) -> asyncpg.Connection:
    return await asyncpg.connect(
        dsn,
        timeout=CONNECT_TIMEOUT_S,
        server_settings={
            "application_name": "ledgerd-loadtest",
            "statement_timeout": str(STATEMENT_TIMEOUT_S * 1000),
            "idle_in_transaction_session_timeout": str(STATEMENT_TIMEOUT_S * 1000),
        },
    )


# -- windows -----------------------------------------------------------------------------------------------------------


class Pace(Struct, frozen=True):
    """How long a window is, and whom to look at meanwhile."""

    warm_up_s: float
    seconds: float
    gauges: Gauges


class _Step(Struct, frozen=True):
    """What one connection does over and over: the work, and how many transfers each time posts."""

    run: Callable[[], Awaitable[None]]
    transfers: int


class _Gate:
    """Which window the workers are in."""

    def __init__(self) -> None:
        self.open = False
        self.over = False


async def _window(steps: Sequence[_Step], pace: Pace) -> Window:
    """Run every step in a loop of its own; measure after the warm-up."""
    gate, latencies, counts = _Gate(), [], []

    async def work(step: _Step) -> None:
        done = 0
        while not gate.over:
            started = time.perf_counter()
            await step.run()
            if gate.open:
                latencies.append(time.perf_counter() - started)
                done += step.transfers
        counts.append(done)

    async def clock() -> tuple[float, Any]:
        try:
            await asyncio.sleep(pace.warm_up_s)
            cpu, begun = pace.gauges.read(), time.perf_counter()
            gate.open = True
            await asyncio.sleep(pace.seconds)
            gate.open = False
            return time.perf_counter() - begun, pace.gauges.read().since(cpu)
        finally:
            gate.over = True

    gc.collect()
    gc.disable()
    try:
        async with asyncio.TaskGroup() as group:
            clocked = group.create_task(clock())
            for step in steps:
                group.create_task(work(step))
    except ExceptionGroup as group_of_errors:
        raise group_of_errors.exceptions[0] from None  # one broken connection says it all
    finally:
        gc.enable()
    seconds, used = clocked.result()
    latencies.sort()
    return Window(
        transfers=sum(counts),
        seconds=seconds,
        latency_p50_s=percentile(latencies, 0.50),
        latency_p99_s=percentile(latencies, 0.99),
        cpu=used,
        client_busy=used.client_s / seconds,
    )


# -- plain transactions ------------------------------------------------------------------------------------------------


def plain(dsn: str, accounts: Sequence[int], connections: int, pace: Pace) -> Window:
    """One transaction per transfer on each of the connections, inside `plain_schema`."""

    async def measure() -> Window:
        opened = [await _connect(dsn) for _ in range(connections)]
        try:
            return await _window([_plain_step(connection, accounts) for connection in opened], pace)
        finally:
            await _close(opened)

    return _run(measure())


def _plain_step(connection: asyncpg.Connection, accounts: Sequence[int]) -> _Step:
    dice = random.Random()

    async def run() -> None:
        transfer = draw(dice, accounts)
        payer, payee = transfer.source, transfer.destination
        await connection.execute("BEGIN")
        # Negative keys: the daemon's are positive, and all databases' sessions share one space of locks per database.
        await connection.fetch(_PLAIN_LOCK, sorted((-payer, -payee)))
        read = {row[0]: (row[1], row[2]) for row in await connection.fetch(_PLAIN_READ, [payer, payee])}
        (payer_balance, payer_version), (payee_balance, payee_version) = read[payer], read[payee]
        assert payer_balance >= AMOUNT_MINOR
        await connection.execute(_PLAIN_UPDATE, payer, payee, AMOUNT_MINOR)
        await connection.execute(
            _PLAIN_INSERT,
            transfer.transaction_id,
            payer,
            payee,
            AMOUNT_MINOR,
            payer_balance - AMOUNT_MINOR,
            payee_balance + AMOUNT_MINOR,
            payer_version + 1,
            payee_version + 1,
        )
        await connection.execute("COMMIT")

    return _Step(run, 1)


# -- the kernel --------------------------------------------------------------------------------------------------------


class KernelLoad(Struct, frozen=True):
    """Calls of ``batch`` transfers each, as the service token of this number, on so many connections.

    ``prebuilt`` is the number of calls each connection has ready before the clock starts.
    """

    token_id: int
    accounts: Sequence[int]
    connections: int
    batch: int
    prebuilt: int


class _Call(Struct, frozen=True):
    transfers: list[Transfer]
    arguments: tuple[Any, ...]


def kernel(dsn: str, load: KernelLoad, pace: Pace) -> tuple[Window, Harvest]:
    """Call the kernel in a loop on each connection."""

    async def measure() -> tuple[Window, Harvest]:
        opened = [await _connect(dsn) for _ in range(load.connections)]
        answers: list[tuple[_Call, asyncpg.Record]] = []
        try:
            steps = [_Step(await _kernel_caller(connection, load, answers), load.batch) for connection in opened]
            return await _window(steps, pace), _harvest(answers)
        finally:
            await _close(opened)

    return _run(measure())


def kernel_latencies(dsn: str, load: KernelLoad, calls: int) -> tuple[list[float], Harvest]:
    """Seconds of single calls, one after the other, on one connection; the first ``calls`` only warm up."""

    async def measure() -> tuple[list[float], Harvest]:
        connection = await _connect(dsn)
        answers: list[tuple[_Call, asyncpg.Record]] = []
        latencies = []
        try:
            call = await _kernel_caller(connection, load, answers)
            for _ in range(2 * calls):
                started = time.perf_counter()
                await call()
                latencies.append(time.perf_counter() - started)
        finally:
            await _close([connection])
        return latencies[calls:], _harvest(answers)

    return _run(measure())


async def _kernel_caller(
    connection: asyncpg.Connection, load: KernelLoad, answers: list[tuple[_Call, asyncpg.Record]]
) -> Callable[[], Awaitable[None]]:
    dice = random.Random()
    supply = Supply(lambda: _kernel_call([draw(dice, load.accounts) for _ in range(load.batch)], load), load.prebuilt)
    statement = await connection.prepare(_POST)

    async def call() -> None:
        made = supply.take()
        answers.append((made, await statement.fetchrow(*made.arguments)))

    return call


def _kernel_call(transfers: list[Transfer], load: KernelLoad) -> _Call:
    size = len(transfers)
    nothing = [None] * size
    return _Call(
        transfers,
        (
            False,
            [str(uuid7()) for _ in transfers],
            [load.token_id] * size,
            ["transfer"] * size,
            [transfer.transaction_id for transfer in transfers],
            [transfer.source for transfer in transfers],
            [transfer.destination for transfer in transfers],
            [AMOUNT_MINOR] * size,
            nothing,
            [CURRENCY] * size,
            *([nothing] * 9),
        ),
    )


def _harvest(answers: list[tuple[_Call, asyncpg.Record]]) -> Harvest:
    harvest = Harvest()
    for call, answer in answers:
        harvest.sent += len(call.transfers)
        columns = (answer["codes"], answer["debit_versions"], answer["credit_versions"])
        for transfer, code, debit_version, credit_version in zip(call.transfers, *columns, strict=True):
            if code == 0:
                harvest.note_posted(transfer, debit_version, credit_version)
            else:
                harvest.refused[f"kernel {code}"] = harvest.refused.get(f"kernel {code}", 0) + 1
    return harvest


async def _close(connections: Sequence[asyncpg.Connection]) -> None:
    for connection in connections:
        await connection.close(timeout=CONNECT_TIMEOUT_S)
