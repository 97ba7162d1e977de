"""The soak test: everything is broken for a while, at random, and then everything must be there exactly once.

The course of a run:

1. A private PostgreSQL, several daemons, accounts at version 0, and subscribers in processes of their own.
2. A calm stretch: how long an event takes through another daemon than the one that posted it.
3. Faults for the given time: daemons killed, connections to the database terminated, subscribers that leave and come
   back or do not read; money moves on through all daemons.
4. The daemons start again without hints, and another calm stretch measures polling alone.
5. Everything catches up, and the verdict compares answers, feeds and the ledger's own lists.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
import trio
from msgspec import Struct, field
from uuid_utils import uuid7

from ledgerd_loadtest.audit import minor
from ledgerd_loadtest.baseline import BaselineFailed, terminate_backends
from ledgerd_loadtest.commands import CURRENCY
from ledgerd_loadtest.house import House, ServedDaemon
from ledgerd_loadtest.measure import percentile
from ledgerd_loadtest.swarm_orders import (
    Disturb,
    Finish,
    Follower,
    FromSwarm,
    LineReader,
    Order,
    Progress,
    Report,
    Sample,
    StandingBy,
    line_of,
)
from ledgerd_loadtest.transfers import Payments, Reply, patient_clients
from ledgerd_loadtest.witness import (
    Account,
    Counts,
    changes_of,
    feed_problems,
    ledger_problems,
    limited,
    truth_of,
)
from ledgerd_protocol.client import Client

FUNDS = "1000000.00"
SUBSCRIBERS_PER_PROCESS = 250
SLUGGISH_SHARE = 0.2
CONNECTION_S = 20.0
"""Mean life of a subscriber's connection while there are faults."""

SAMPLES = 200_000
"""About how many events are timed, of all that are delivered."""

CATCH_UP_S = 90.0
"""From the last transfer until everybody must have been told: the longest spell of not reading fits easily."""

START_S = 120.0
SPARE_S = 600.0
"""For everything but the stretches themselves; a run that takes longer has failed."""

TELL_S = 10.0
DEAD_S = (0.0, 2.0)
IN_FLIGHT_S = (0.0, 0.02)
"""From a burst of transfers to the fault that meets it."""

ALL_SHARE = 0.1
FAULTS = ("kill",) * 3 + ("listener",) * 2 + ("lane",) * 3 + ("any",)

NOTIFY, FAULTY, POLL = "hints", "faults", "polling"


class Plan(Struct, frozen=True):
    """How large a run is, and its dice. Rates per second over all daemons; ``fault_s`` is the mean time between two."""

    daemons: int
    subscribers: int
    accounts: int
    follow: int
    minutes: float
    calm_s: float
    rate: float
    fault_s: float
    seed: int

    @property
    def transfers_expected(self) -> int:
        """About how many transfers there will be."""
        return round(self.rate * (60 * self.minutes + 2 * self.calm_s))

    @property
    def sample_stride(self) -> int:
        """One of so many events is timed."""
        followers_per_account = self.subscribers * min(self.follow, self.accounts) / self.accounts
        return max(1, round(2 * self.transfers_expected * followers_per_account / SAMPLES))


class Latency(Struct, frozen=True):
    """From the reply at one daemon to the event at a subscriber of another, in seconds."""

    events: int
    p50_s: float
    p99_s: float
    max_s: float


class Findings(Struct):
    """What a run has found. ``problems`` is empty if the verdict is good."""

    counts: Counts = field(default_factory=Counts)
    faults: dict[str, int] = field(default_factory=dict)
    sent: int = 0
    acknowledged: int = 0
    refused: int = 0
    unknown: int = 0
    replayed: int = 0
    asked_again: int = 0
    changes: int = 0
    catch_up_s: float = 0.0
    latencies: dict[str, Latency] = field(default_factory=dict)
    resident_mib: dict[str, list[float]] = field(default_factory=dict)
    errors_logged: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class SoakFailed(Exception):
    """The run could not be carried to its end, so that there is no verdict."""


async def soak(house: House, plan: Plan, tell: Callable[[str], None]) -> Findings:
    """Carry out a run in an empty house. Raises SoakFailed, DaemonDidNotStart, the client's errors, OSError."""
    with trio.move_on_after(SPARE_S + 60 * plan.minutes + 2 * plan.calm_s):
        async with AsyncExitStack() as stack:
            return await _Run(house, plan, tell).carry_out(stack)
    raise SoakFailed("the run did not come to its end in time")


# -- subscribers -------------------------------------------------------------------------------------------------------


class _SwarmProcess:
    """One process of subscribers. `listen` must run while it is to be heard."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._to = process.stdin
        self._lines = LineReader(process.stdout)
        self._reports: list[Report] = []
        self._reported = trio.Event()
        self.live = trio.Event()
        self.progress = Progress(Counts(), 0, 0)

    async def say(self, message: Struct) -> None:
        """Give an order. Raises SoakFailed if the process has ended."""
        try:
            await self._to.send_all(line_of(message))
        except trio.BrokenResourceError as error:
            raise SoakFailed("a process of subscribers has ended") from error

    async def listen(self) -> None:
        """Hear everything it says. Raises SoakFailed when the process ends."""
        while line := await self._lines.next():
            match msgspec.json.decode(line, type=FromSwarm):
                case StandingBy():
                    self.live.set()
                case Progress() as progress:
                    self.progress = progress
                case Report() as report:
                    self._reports.append(report)
                    self._reported.set()
        raise SoakFailed(f"a process of subscribers ended with status {await self._process.wait()}")

    async def report(self) -> Report:
        """What it reports at the end."""
        await self._reported.wait()
        return self._reports[0]


@asynccontextmanager
async def _swarm_process(order: Order) -> AsyncIterator[_SwarmProcess]:
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "ledgerd_loadtest.swarm"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        swarm = _SwarmProcess(process)
        await swarm.say(order)
        yield swarm
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


def followers(plan: Plan, accounts: Sequence[int]) -> list[Follower]:
    """Who follows what: random accounts each, and so that every account is followed as often as any other."""
    dice = random.Random(f"{plan.seed} followers")
    pool: list[int] = []
    found = []
    for number in range(plan.subscribers):
        chosen: list[int] = []
        while len(chosen) < min(plan.follow, len(accounts)):
            pool = pool or dice.sample(accounts, len(accounts))
            chosen += [account for account in (pool.pop(),) if account not in chosen]
        found.append(Follower(number, sorted(chosen), dice.random() < SLUGGISH_SHARE))
    return found


# -- the run -----------------------------------------------------------------------------------------------------------


class _Run:
    """One run, in the order in which things happen."""

    def __init__(self, house: House, plan: Plan, tell: Callable[[str], None]) -> None:
        self._house = house
        self._plan = plan
        self._tell = tell
        self._findings = Findings()
        self._dice = random.Random(f"{plan.seed} transfers")
        self._funded: dict[str, int] = {}
        self._swarms: list[_SwarmProcess] = []
        self._dying: set[int] = set()

    async def carry_out(self, stack: AsyncExitStack) -> Findings:
        """From the empty house to the verdict."""
        plan = self._plan
        resume_max = str(max(10_000, 2 * plan.transfers_expected))
        daemons = [self._house.add_daemon({"resume_max": resume_max}) for _ in range(plan.daemons)]
        await self._start_daemons(feed="notify")
        urls = [daemon.url for daemon in daemons]
        self._clients = await patient_clients(stack, urls, self._house.keeper.token)
        accounts = await self._open_accounts()
        await self._open_swarms(stack, urls, followers(plan, accounts))
        self._payments = Payments(self._clients, accounts, self._dice)
        async with trio.open_nursery() as nursery:
            for swarm in self._swarms:
                nursery.start_soon(swarm.listen)
            await self._all_live()
            await self._fund(accounts)
            nursery.start_soon(self._tell_progress)
            nursery.start_soon(self._mind_daemons)
            self._tell(f"calm, with hints: {plan.calm_s:g} s")
            await self._payments.run(plan.rate, plan.calm_s, NOTIFY)
            self._note_memory()
            self._tell(f"faults: {plan.minutes:g} min")
            await self._faulty_stretch()
            self._tell("the daemons start again, without hints")
            await self._restart_polling()
            self._tell(f"calm, with polling: {plan.calm_s:g} s")
            await self._payments.run(plan.rate, plan.calm_s, POLL)
            self._tell("catching up")
            reports = await self._finish(accounts)
            self._note_memory()
            nursery.cancel_scope.cancel()
        self._tell("verdict")
        await self._judge(accounts, reports)
        return self._findings

    # -- setting up ------------------------------------------------------------------------------------------------

    async def _start_daemons(self, feed: str) -> None:
        for daemon in self._house.daemons:
            daemon.start(feed=feed)
        for daemon in self._house.daemons:
            await daemon.ready()

    async def _open_accounts(self) -> list[int]:
        accounts = []
        for number in range(1, self._plan.accounts + 1):
            made = await self._clients[0].call("user_register", name=f"soak {number}", currency=CURRENCY)
            accounts.append(made.account.account_id)
        return accounts

    async def _open_swarms(self, stack: AsyncExitStack, urls: list[str], everybody: list[Follower]) -> None:
        plan = self._plan
        count = -(-plan.subscribers // SUBSCRIBERS_PER_PROCESS)
        for share in range(count):
            token = self._house.keeper.token
            order = Order(urls, token, everybody[share::count], plan.seed, CONNECTION_S, plan.sample_stride)
            self._swarms.append(await stack.enter_async_context(_swarm_process(order)))

    async def _all_live(self) -> None:
        with trio.move_on_after(START_S) as patience:
            for swarm in self._swarms:
                await swarm.live.wait()
        if patience.cancelled_caught:
            raise SoakFailed(f"not all subscribers were live within {START_S:g} s")
        self._tell(f"{self._plan.subscribers} subscribers are live in {len(self._swarms)} processes")

    async def _fund(self, accounts: list[int]) -> None:
        """Only now: every subscriber sees every account from version 1 on."""
        for account in accounts:
            name = str(uuid7())
            await self._clients[0].credit(transaction_id=name, account_id=account, amount=FUNDS, currency=CURRENCY)
            self._funded[name] = minor(FUNDS)

    # -- stretches -------------------------------------------------------------------------------------------------

    async def _faulty_stretch(self) -> None:
        for swarm in self._swarms:
            await swarm.say(Disturb(on=True))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cause_faults)
            await self._payments.run(self._plan.rate, 60 * self._plan.minutes, FAULTY)
            nursery.cancel_scope.cancel()
        for swarm in self._swarms:
            await swarm.say(Disturb(on=False))

    async def _cause_faults(self) -> None:
        dice = random.Random(f"{self._plan.seed} faults")
        bag: list[str] = []
        while True:
            await trio.sleep(dice.expovariate(1 / self._plan.fault_s))
            bag = bag or dice.sample(FAULTS, len(FAULTS))
            kind = bag.pop()
            everybody = dice.random() < ALL_SHARE
            self._payments.hurry()
            await trio.sleep(dice.uniform(*IN_FLIGHT_S))
            if kind == "kill":
                chosen = self._house.daemons if everybody else [dice.choice(self._house.daemons)]
                with trio.CancelScope(shield=True):  # whatever was killed is started again
                    await self._kill(chosen, dice.uniform(*DEAD_S))
            else:
                await self._terminate(kind, 1_000 if everybody else 1)

    async def _kill(self, chosen: Sequence[ServedDaemon], dead_s: float) -> None:
        for daemon in chosen:
            self._dying.add(daemon.number)
            daemon.kill()
            self._count_fault("daemon killed", 1)
        await trio.sleep(dead_s)
        for daemon in chosen:
            daemon.start()
        for daemon in chosen:
            await daemon.ready()
            self._dying.discard(daemon.number)

    async def _terminate(self, kind: str, count: int) -> None:
        try:
            ended = await trio.to_thread.run_sync(terminate_backends, self._house.keeper.dsn, kind, count)
        except BaselineFailed as error:
            raise SoakFailed(str(error)) from error
        self._count_fault(f"connection terminated ({kind})", ended)

    async def _restart_polling(self) -> None:
        for daemon in self._house.daemons:
            self._dying.add(daemon.number)
            if status := await daemon.stop():
                self._findings.problems.append(f"daemon {daemon.number} ended with {status} after SIGTERM")
        await self._start_daemons(feed="poll")
        self._dying.clear()
        # What was missed meanwhile is no measure of polling.
        await trio.sleep(min(5.0, self._plan.calm_s))

    async def _mind_daemons(self) -> None:
        """A daemon that ends without being told to has failed, whatever the feeds say."""
        noted: set[int] = set()
        while True:
            await trio.sleep(0.5)
            for daemon in self._house.daemons:
                gone = daemon.ended is not None and daemon.number not in self._dying | noted
                if gone:
                    noted.add(daemon.number)
                    self._findings.problems.append(f"daemon {daemon.number} ended by itself with {daemon.ended}")

    async def _tell_progress(self) -> None:
        while True:
            await trio.sleep(TELL_S)
            counts = Counts()
            live = problems = 0
            for swarm in self._swarms:
                counts.merge(swarm.progress.counts)
                live += swarm.progress.live
                problems += swarm.progress.problems
            self._tell(
                f"  {self._payments.acknowledged} of {len(self._payments.sent)} transfers acknowledged, "
                f"{counts.events} events, {live} live, {counts.losses} losses, {problems} problems"
            )

    def _count_fault(self, name: str, count: int) -> None:
        self._findings.faults[name] = self._findings.faults.get(name, 0) + count

    def _note_memory(self) -> None:
        for daemon in self._house.daemons:
            try:
                mib = daemon.resident_kib / 1024
            except (OSError, ValueError):
                continue
            self._findings.resident_mib.setdefault(f"daemon {daemon.number}", []).append(round(mib, 1))

    # -- the end ---------------------------------------------------------------------------------------------------

    async def _finish(self, accounts: Sequence[int]) -> list[Report]:
        started = trio.current_time()
        versions = {number: (await self._clients[0].balance(account_id=number)).version for number in accounts}
        for swarm in self._swarms:
            await swarm.say(Finish(versions, CATCH_UP_S))
        reports = [await swarm.report() for swarm in self._swarms]
        self._findings.catch_up_s = trio.current_time() - started
        return reports

    async def _judge(self, accounts: Sequence[int], reports: Sequence[Report]) -> None:
        findings, payments = self._findings, self._payments
        ledger = {number: await _account(self._clients[0], number) for number in accounts}
        truth = {number: truth_of(account) for number, account in ledger.items()}
        findings.problems += limited(payments.refused)
        findings.problems += limited(ledger_problems(ledger, payments.sent, self._funded))
        told = [each for report in reports for each in report.told]
        followed = {follower.number: follower.accounts for follower in followers(self._plan, accounts)}
        if sorted(followed) != sorted(each.number for each in told):
            findings.problems.append("not every subscriber has reported")
        for report in reports:
            findings.counts.merge(report.counts)
        said = [f"subscriber {each.number}: {problem}" for each in told for problem in each.problems]
        for each in told:
            said += feed_problems(f"subscriber {each.number}", each.standings, followed[each.number], truth)
        findings.problems += limited(said)
        findings.sent, findings.acknowledged = len(payments.sent), payments.acknowledged
        findings.refused, findings.unknown = len(payments.refused), payments.unknown
        findings.replayed, findings.asked_again = payments.replayed, payments.asked_again
        findings.changes = sum(account.version for account in ledger.values())
        samples = [sample for report in reports for sample in report.samples]
        findings.latencies = latencies(samples, payments.replies)
        findings.errors_logged = [line for daemon in self._house.daemons for line in daemon.errors()]


async def _account(client: Client, number: int) -> Account:
    """An account as the ledger has it: its balance and its list of transactions."""
    items: list[Any] = []
    cursor: dict[str, str] = {}
    while True:
        page = await client.call("transaction_list", account_id=number, order="oldest_first", limit=1000, **cursor)
        items += page.items
        if page.next_cursor is None:
            break
        cursor = {"cursor": page.next_cursor}
    balance = await client.balance(account_id=number)
    return Account(balance.version, minor(balance.balance), changes_of(number, items))


def latencies(samples: Sequence[Sample], replies: dict[str, Reply]) -> dict[str, Latency]:
    """How long events took through another daemon than the one that answered the transfer, by phase.

    An event that arrives before the reply does counts as it is, with a negative time.
    """
    found: defaultdict[str, list[float]] = defaultdict(list)
    for sample in samples:
        reply = replies.get(sample.transaction_id)
        if reply is not None and reply.daemon != sample.daemon:
            found[reply.phase].append(sample.arrived_at - reply.at)
    return {
        phase: Latency(len(values), percentile(values, 0.50), percentile(values, 0.99), values[-1])
        for phase, values in ((phase, sorted(values)) for phase, values in found.items())
    }
