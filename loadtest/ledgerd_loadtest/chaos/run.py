"""One run, in the order in which things happen: open, fund, break, mend, settle, read, judge."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import trio
from msgspec import Struct, field

from ledgerd_loadtest.audit import minor
from ledgerd_loadtest.chaos.arena import Arena, open_arena
from ledgerd_loadtest.chaos.cluster import Cluster, ClusterFailed, open_cluster
from ledgerd_loadtest.chaos.desk import Desk, Line, definite, open_desk
from ledgerd_loadtest.chaos.history import (
    History,
    LedgerAccount,
    LedgerAdvance,
    LedgerTransaction,
    Operation,
)
from ledgerd_loadtest.chaos.ledger_checks import SETTLE
from ledgerd_loadtest.chaos.ledgers_clock import let_time_pass, move_clock
from ledgerd_loadtest.chaos.nemesis import Nemesis
from ledgerd_loadtest.chaos.sendings import meaning_of
from ledgerd_loadtest.chaos.signs import read_signs
from ledgerd_loadtest.chaos.subscribers import Subscriber
from ledgerd_loadtest.chaos.verdict import verdict
from ledgerd_loadtest.chaos.workloads import WORKLOADS, Stage, single
from ledgerd_loadtest.commands import CURRENCY, SCALE
from ledgerd_protocol.client import Client, open_client
from ledgerd_protocol.connection import Retry
from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.money import to_text
from ledgerd_protocol.results import Balance

LINES_PER_DAEMON = 4
FEEDS_PER_DAEMON = 2

SPARE_S = 300.0
"""For everything but the faults; a run that takes longer has failed."""

ABANDONED_S = 11.0
"""No command is carried out later than ten seconds after it arrived."""

PATIENCE_S = 60.0
"""For one thing that must happen once the faults are over."""

_TIMED = {"holds", "advances"}
"""Workloads that go by the ledger's clock."""

TELL_S = 10.0


_STEADY = Retry(first_connect_s=60.0, reconnect_s=86_400.0, call_s=60.0, delay_s_max=1.0)
"""Of the client that prepares and reads the ledger, past all proxies; nothing is told by it."""


class ChaosFailed(Exception):
    """The run could not be carried to its end, so that there is no verdict."""


class Plan(Struct, frozen=True, kw_only=True):
    """How long and how hard. ``pace_s`` is between two steps of a workload, ``fault_s`` the mean between two faults,
    ``catch_up_s`` how long subscribers may take in the end.

    ``faults`` and ``workloads`` name those that are wanted, all if empty. ``launchers`` are of each
    daemon, ``server`` of the database's server, where they differ from the usual; ``prepare`` may change the database
    of the owner's DSN before any daemon starts.
    """

    seed: int
    seconds: float
    daemons: int = 2
    pace_s: float = 0.15
    fault_s: float = 2.0
    catch_up_s: float = 60.0
    workloads: Sequence[str] = ()
    faults: Sequence[str] = ()
    launchers: Sequence[Sequence[str]] = ()
    server: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[str], None] | None = None

    @property
    def chosen(self) -> list[str]:
        """The workloads, in the order in which their accounts are opened."""
        return [name for name in WORKLOADS if not self.workloads or name in self.workloads]


class Findings(Struct):
    """What came of a run; ``checks`` has what each check found."""

    history: History
    checks: dict[str, list[str]]
    skipped: dict[str, str]

    @property
    def problems(self) -> list[str]:
        """All that is wrong, each with the name of its check."""
        return [f"{name}: {problem}" for name, found in self.checks.items() for problem in found]


def run_chaos(plan: Plan, tell: Callable[[str], None] = lambda _: None) -> Findings:
    """Carry out a run.

    Raises ChaosFailed, DaemonDidNotStart, the client's errors, OSError; ValueError for an unknown fault or workload.
    """
    with (
        open_cluster() as cluster,
        tempfile.TemporaryDirectory(prefix="ledgerd-chaos-", ignore_cleanup_errors=True) as name,
    ):
        return trio.run(_bounded, plan, cluster, Path(name), tell)


async def _bounded(plan: Plan, cluster: Cluster, directory: Path, tell: Callable[[str], None]) -> Findings:
    with trio.move_on_after(plan.seconds + SPARE_S):
        try:
            cluster.settings.update(plan.server)
            cluster.start()
            await cluster.ready()
            if plan.prepare is not None:
                await trio.to_thread.run_sync(plan.prepare, cluster.dsn)
            opened = open_arena(cluster, directory, plan.daemons, launchers=plan.launchers)
            async with opened as arena:
                return await _Run(plan, arena, tell).carry_out()
        except ClusterFailed as error:
            raise ChaosFailed(str(error)) from error
    raise ChaosFailed("the run did not come to its end in time")


class _Run:
    """The parts of one run, in order."""

    def __init__(self, plan: Plan, arena: Arena, tell: Callable[[str], None]) -> None:
        self._plan = plan
        self._arena = arena
        self._tell = tell
        self._history = History()
        self._nemesis = Nemesis(arena, self._history.faults, random.Random(f"{plan.seed} faults"))
        _refuse_unknown("fault", plan.faults, self._nemesis.kinds)
        _refuse_unknown("workload", plan.workloads, WORKLOADS)
        self._groups: dict[str, list[int]] = {}
        self._subscribers: list[Subscriber] = []

    async def carry_out(self) -> Findings:
        plan, arena, history = self._plan, self._arena, self._history
        await arena.start_daemons_again(arena.daemons)
        dice = random.Random(f"{plan.seed} lines")
        async with (
            open_client(arena.daemons[0].url, token=arena.token, retry=_STEADY) as self._steady,
            open_desk(history, arena.urls, arena.token, LINES_PER_DAEMON, dice) as desk,
            open_desk(history, arena.urls, arena.token, FEEDS_PER_DAEMON, dice) as feeds,
        ):
            await self._open_accounts()
            async with trio.open_nursery() as nursery:
                await self._subscribe(desk, feeds.lines, nursery)
                await self._fund(desk)
                await self._break_things(desk)
                self._tell("mending")
                await arena.restore()
                self._tell("settling")
                await self._settle(desk)
                await self._read_ledger()
                await self._catch_up()
                nursery.cancel_scope.cancel()
        history.told += [told for each in self._subscribers for told in each.told.values()]
        history.signs = await read_signs(arena)
        self._tell("verdict")
        return Findings(history, verdict(history), self._nemesis.skipped)

    # -- before ----------------------------------------------------------------------------------------------------

    async def _open_accounts(self) -> None:
        for name in self._plan.chosen:
            self._groups[name] = []
            for number in range(WORKLOADS[name].accounts):
                made = await self._steady.call("user_register", name=f"{name} {number}", currency=CURRENCY)
                self._groups[name].append(made.account.account_id)

    async def _subscribe(self, desk: Desk, lines: Sequence[Line], nursery: trio.Nursery) -> None:
        followed = [account for name, those in self._groups.items() if name != "wide" for account in those]
        for number, line in enumerate(lines if followed else ()):
            dice = random.Random(f"{self._plan.seed} subscriber {number}")
            subscriber = Subscriber(f"subscriber {number}", desk, line, followed, dice)
            self._subscribers.append(subscriber)
            await nursery.start(subscriber.run)

    async def _fund(self, desk: Desk) -> None:
        async with trio.open_nursery() as nursery:
            for name, accounts in self._groups.items():
                if funds := WORKLOADS[name].funds:
                    for account in accounts:
                        nursery.start_soon(desk.post, "funds", "credit", single(account, to_text(funds, SCALE)))

    # -- the faults ------------------------------------------------------------------------------------------------

    async def _break_things(self, desk: Desk) -> None:
        plan = self._plan
        with trio.move_on_after(plan.seconds):
            async with trio.open_nursery() as nursery:
                for name in plan.chosen:
                    dice = random.Random(f"{plan.seed} {name}")
                    accounts = self._groups[name]
                    stage = Stage(desk, dice, accounts, self._arena.urls, self._arena.token, plan.pace_s)
                    nursery.start_soon(WORKLOADS[name].run, stage)
                if _TIMED & set(plan.chosen):
                    nursery.start_soon(let_time_pass, self._arena.cluster.dsn)
                nursery.start_soon(self._mind_daemons)
                nursery.start_soon(self._tell_progress)
                nursery.start_soon(self._nemesis.run, plan.fault_s, plan.faults)

    async def _mind_daemons(self) -> None:
        """A daemon that ends without being told to has failed, whatever the ledger says."""
        noted: set[int] = set()
        while True:
            await trio.sleep(0.3)
            for daemon in self._arena.daemons:
                if daemon.ended is not None and daemon.number not in self._arena.dying | noted:
                    noted.add(daemon.number)
                    self._arena.ended_wrongly.append(f"daemon {daemon.number} ended by itself with {daemon.ended}")

    async def _tell_progress(self) -> None:
        while True:
            await trio.sleep(TELL_S)
            operations, faults = self._history.operations, self._history.faults
            outcomes = {name: sum(each.outcome == name for each in operations) for name in ("ok", "refused", "unknown")}
            last = f", last: {faults[-1].kind}" if faults else ""
            self._tell(f"  {len(operations)} calls {outcomes}, {len(faults)} faults{last}")

    # -- after -----------------------------------------------------------------------------------------------------

    async def _settle(self, desk: Desk) -> None:
        """Ask about everything unknown, by its id: half by sending it again, half by cancelling it."""
        if asked := doubtful(self._history.operations):
            await trio.sleep(ABANDONED_S)
            for number, operation in enumerate(asked):
                await self._settle_one(desk, operation, cancel=number % 2 == 1)
        if _TIMED & set(self._plan.chosen):
            await trio.to_thread.run_sync(move_clock, self._arena.cluster.dsn, 86_400.0 * 30)
            await self._until_due_is_done()

    async def _settle_one(self, desk: Desk, operation: Operation, *, cancel: bool) -> None:
        method, params = operation.method, operation.params
        if cancel and method in ("credit", "debit", "transfer"):
            meaning = meaning_of(method, params)
            account = meaning.debit if meaning.debit is not None else meaning.credit
            method, params = "transaction_cancel", {"transaction_id": params["transaction_id"], "account_id": account}
        with trio.move_on_after(PATIENCE_S):
            while not definite(await desk.post(SETTLE, method, params)):
                pass

    async def _until_due_is_done(self) -> None:
        """The daemons expire every hold and look at every payment: nothing is held, nothing happens any more."""
        accounts = self._groups.get("holds", [])
        with trio.move_on_after(PATIENCE_S):
            while sum([minor((await self._balance(account)).held) for account in accounts]):  # noqa: ASYNC110
                await trio.sleep(0.2)
            before: list[Any] = []
            while before != (now := [each.advance for each in await self._advances()]) or _something_due(now):
                before = now
                await trio.sleep(2.5)

    async def _read_ledger(self) -> None:
        """Everything, through the protocol. An account that is gone is read as one that nothing ever happened to."""
        client, history = self._steady, self._history
        for group, accounts in self._groups.items():
            for number in accounts:
                history.accounts[number] = account = LedgerAccount(account_id=number, group=group)
                try:
                    items, balance = await _transactions(client, number), await self._balance(number)
                except LedgerError as error:
                    if error.code is not ErrorCode.NOT_FOUND:
                        raise
                    continue
                account.version, account.balance = balance.version, minor(balance.balance)
                account.held = minor(balance.held)
                for item in items:
                    name = item["transaction_id"]
                    known = history.transactions.setdefault(name, LedgerTransaction(transaction=item))
                    known.in_lists += 1
        history.advances = await self._advances()

    async def _balance(self, account: int) -> Balance:
        return await self._steady.balance(account_id=account)

    async def _advances(self) -> list[LedgerAdvance]:
        client, found = self._steady, []
        for account in self._groups.get("advances", []):
            cursor: dict[str, str] = {}
            while True:
                page = await client.call("advance_list", account_id=account, limit=1000, **cursor)
                found += [LedgerAdvance(advance=msgspec.to_builtins(item)) for item in page.items]
                if page.next_cursor is None:
                    break
                cursor = {"cursor": page.next_cursor}
        return found

    async def _catch_up(self) -> None:
        with trio.move_on_after(self._plan.catch_up_s):
            for subscriber in self._subscribers:
                for account in self._history.accounts.values():
                    while not subscriber.reached(account.account_id, account.version):  # noqa: ASYNC110
                        await trio.sleep(0.05)


def _refuse_unknown(what: str, names: Sequence[str], known: Iterable[str]) -> None:
    """Raises ValueError for a name that nobody knows."""
    for name in set(names) - set(known):
        raise ValueError(f"there is no {what} {name!r}; there are: {', '.join(known)}")


def doubtful(operations: Sequence[Operation]) -> list[Operation]:
    """Of every command whose outcome nobody knows, one call to make again."""
    known = set()
    for each in operations:
        if each.outcome == "ok":
            known.add(_command(each))
    found = {_command(each): each for each in operations if each.outcome == "unknown" and _is_money(each)}
    return [each for command, each in found.items() if command not in known]


def _is_money(operation: Operation) -> bool:
    return "transaction_id" in operation.params or "batch_id" in operation.params


def _command(operation: Operation) -> bytes:
    return msgspec.json.encode([operation.method, operation.params])


def _something_due(advances: Sequence[dict[str, Any]]) -> bool:
    return any(payment["status"] == "due" for advance in advances for payment in advance["payments"])


async def _transactions(client: Client, account: int) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = await client.call("transaction_list", account_id=account, order="oldest_first", limit=1000, **cursor)
        items += page.items
        if page.next_cursor is None:
            return items
        cursor = {"cursor": page.next_cursor}
