"""The benchmark: which windows are measured, in which order, and what is compared with what.

Rules of this file:

- Everything that is compared is measured in the same run on the same database, interleaved: each round measures every
  load once, and every other round goes through them backwards.
- All loads move money between the same accounts, so that all meet the same contention, and one audit covers all.
- Memory comes first: a daemon that has worked has freed memory, into which idle connections would disappear.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from msgspec import Struct, field

from ledgerd_loadtest import baseline
from ledgerd_loadtest.audit import Harvest, Point, differences
from ledgerd_loadtest.baseline import KernelLoad, Pace, plain_schema
from ledgerd_loadtest.generator import Generators, Order, Slot
from ledgerd_loadtest.idle import connections_possible, memory_per_connection_kib, round_trips
from ledgerd_loadtest.measure import Target, Window, best, pair_ratios, percentile
from ledgerd_loadtest.operator_client import Operator, OwnAccount
from ledgerd_loadtest.processes import Gauges
from ledgerd_loadtest.socket_client import ConnectionFailed, SocketClient
from ledgerd_loadtest.target import Daemon
from ledgerd_protocol.errors import LedgerError

BATCH = 100
PLAIN_CONNECTIONS = 16
"""What single transfers over the wire are compared with."""

PLAIN_ALONE = 1
PLAIN_SWEEP = (2, 4, 8, 32)
"""Measured once, so that nobody can say that the plain way was held back by its number of connections."""

KERNEL_CONNECTIONS = (1, 2, 4)
BULK_CONNECTIONS = 4
BULK_IN_FLIGHT = 2
SINGLE_CONNECTIONS = 64
SINGLE_IN_FLIGHT = 8
IDLE_TRANSFERS = 150

BULK_OF_KERNEL_MIN = 0.7
SINGLE_OF_PLAIN_MIN = 2.5
IDLE_OF_KERNEL_MAX = 2.5
CONNECTION_KIB_MAX = 60.0

CLIENT_BUSY_MAX = 0.9
SAMPLE = 1_000
"""Transactions looked up at the end."""

_FIRST_GUESS_PER_S = 20_000
_AHEAD = 1.2


class Plan(Struct, frozen=True):
    """How much is measured."""

    rounds: int
    seconds: float
    warm_up_s: float
    accounts: int
    idle_connections: int
    generators: int


class Findings(Struct):
    """What a run has found. ``idle`` has the p50 of each round in seconds; ``differences`` is empty if all adds up."""

    settings: dict[str, str] = field(default_factory=dict)
    windows: dict[str, list[Window]] = field(default_factory=dict)
    idle: dict[str, list[float]] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)
    best_kernel: str = ""
    audited: int = 0
    looked_up: int = 0
    differences: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class Bench:
    """One run against one daemon. ``tell`` is given a line at every step."""

    def __init__(self, daemon: Daemon, plan: Plan, tell: Callable[[str], None]) -> None:
        self._daemon = daemon
        self._plan = plan
        self._tell = tell
        self._findings = Findings()
        self._harvest = Harvest()

    def run(self) -> Findings:
        """Measure, compare and audit. Raises LedgerError, ConnectionFailed, OSError, BaselineFailed."""
        facts = baseline.database_facts(self._daemon.dsn)
        self._findings.settings = facts.settings
        self._gauges = Gauges(self._daemon.pid, facts.postmaster_pid)
        self._warn_of_settings()
        self._measure_memory()
        with self._operator() as operator:
            service = operator.service_token()
            self._tell(f"making {self._plan.accounts} accounts over the wire")
            self._own = operator.make_accounts(self._plan.accounts)
            self._accounts = [account.account_id for account in self._own]
            before = operator.points(self._accounts)
        try:
            with plain_schema(self._daemon.dsn, self._accounts), Generators(self._plan.generators) as generators:
                self._rounds(generators, service.token or "", service.token_id)
        except BaseException:
            with suppress(ConnectionFailed, LedgerError, OSError), self._operator() as operator:
                operator.revoke(service)
            raise
        with self._operator() as operator:
            operator.revoke(service)
            self._tell("audit")
            self._audit(operator, before)
        self._compare()
        return self._findings

    @contextmanager
    def _operator(self) -> Iterator[Operator]:
        """A connection for one stage: nobody would answer its pings while the rounds run."""
        with SocketClient(self._daemon.url, self._daemon.token) as client:
            yield Operator(client)

    # -- before and after ------------------------------------------------------------------------------------------

    def _measure_memory(self) -> None:
        connections = self._plan.idle_connections
        if connections == 0:
            return
        if self._daemon.pid is None:
            self._warn("memory was not measured: the daemon's process number is not known (--daemon-pid)")
        elif not connections_possible(connections):
            self._warn(f"memory was not measured: this shell may not open {connections} connections (ulimit -n)")
        else:
            self._tell(f"memory of {connections} idle connections")
            daemon = self._daemon
            grown = memory_per_connection_kib(daemon.url, daemon.token, self._daemon.pid, connections)
            self._aim("KiB per idle connection", CONNECTION_KIB_MAX, [grown], least=False)

    def _audit(self, operator: Operator, before: dict[int, Point]) -> None:
        findings, harvest = self._findings, self._harvest
        findings.differences = differences(before, operator.points(self._accounts), harvest)
        step = max(1, len(harvest.sample) // SAMPLE)
        sample = harvest.sample[::step][:SAMPLE]
        findings.differences += [f"{missing} was posted and is not found" for missing in operator.missing(sample)]
        findings.audited, findings.looked_up = harvest.sent, len(sample)
        if refused := sum(harvest.refused.values()):
            self._warn(f"{refused} transfers were refused, and count as answered in the rates: {harvest.refused}")

    # -- rounds ----------------------------------------------------------------------------------------------------

    def _rounds(self, generators: Generators, service: str, token_id: int) -> None:
        for connections in PLAIN_SWEEP:
            self._plain(connections)
        steps: list[Callable[[], None]] = [
            partial(self._plain, PLAIN_ALONE),
            partial(self._plain, PLAIN_CONNECTIONS),
            partial(self._single, generators),
            *[
                lambda connections=connections: self._kernel(connections, token_id)
                for connections in KERNEL_CONNECTIONS
            ],
            partial(self._bulk, generators, service),
            partial(self._idle, token_id),
        ]
        for number in range(self._plan.rounds):
            self._tell(f"round {number + 1} of {self._plan.rounds}")
            for step in reversed(steps) if number % 2 else steps:
                step()

    def _plain(self, connections: int) -> None:
        self._keep(f"plain {connections}", baseline.plain(self._daemon.dsn, self._accounts, connections, self._pace()))

    def _kernel(self, connections: int, token_id: int) -> None:
        name = f"kernel {connections}x{BATCH}"
        load = KernelLoad(token_id, self._accounts, connections, BATCH, self._ahead(name, connections * BATCH))
        window, harvest = baseline.kernel(self._daemon.dsn, load, self._pace())
        self._harvest.merge(harvest)
        self._keep(name, window)

    def _bulk(self, generators: Generators, service: str) -> None:
        self._wire("bulk", generators, [Slot(service)] * BULK_CONNECTIONS, BULK_IN_FLIGHT, BATCH)

    def _single(self, generators: Generators) -> None:
        payers: list[OwnAccount] = self._own[:SINGLE_CONNECTIONS]
        slots = [Slot(payer.token, payer.account_id) for payer in payers]
        self._wire("single", generators, slots, SINGLE_IN_FLIGHT, None)

    def _wire(self, name: str, generators: Generators, slots: list[Slot], in_flight: int, batch: int | None) -> None:
        reaped = generators.run(
            Order(
                url=self._daemon.url,
                slots=slots,
                accounts=self._accounts,
                in_flight=in_flight,
                batch=batch,
                prebuilt=self._ahead(name, len(slots) * (batch or 1)),
                warm_up_s=self._plan.warm_up_s,
                seconds=self._plan.seconds,
                gauges=self._gauges,
            )
        )
        self._harvest.merge(reaped.harvest)
        if reaped.window.client_busy > CLIENT_BUSY_MAX:
            self._warn(
                f"{name}: the load generator used {reaped.window.client_busy:.0%} of a core and may have been the "
                f"limit; use --generators {self._plan.generators + 1}"
            )
        self._keep(name, reaped.window)

    def _idle(self, token_id: int) -> None:
        load = KernelLoad(token_id, self._accounts, connections=1, batch=1, prebuilt=2 * IDLE_TRANSFERS)
        direct, of_kernel = baseline.kernel_latencies(self._daemon.dsn, load, IDLE_TRANSFERS)
        payer = self._own[0]
        wire, of_wire = round_trips(self._daemon.url, payer.token, payer.account_id, self._accounts, IDLE_TRANSFERS)
        self._harvest.merge(of_kernel)
        self._harvest.merge(of_wire)
        for name, latencies in (("kernel call", direct), ("round trip", wire)):
            self._findings.idle.setdefault(name, []).append(percentile(sorted(latencies), 0.50))

    def _pace(self) -> Pace:
        return Pace(self._plan.warm_up_s, self._plan.seconds, self._gauges)

    def _ahead(self, name: str, transfers_at_once: int) -> int:
        """How many requests each connection should have ready, going by the last window of this name."""
        windows = self._findings.windows.get(name)
        rate = windows[-1].rate if windows else _FIRST_GUESS_PER_S
        return math.ceil(rate * (self._plan.warm_up_s + self._plan.seconds) * _AHEAD / transfers_at_once)

    # -- findings --------------------------------------------------------------------------------------------------

    def _keep(self, name: str, window: Window) -> None:
        self._findings.windows.setdefault(name, []).append(window)
        self._tell(f"  {name}: {window.rate:,.0f}/s")

    def _compare(self) -> None:
        windows, idle = self._findings.windows, self._findings.idle
        kernel = best({name: of_name for name, of_name in windows.items() if name.startswith("kernel")})
        self._findings.best_kernel = kernel
        rates = {name: [window.rate for window in of_name] for name, of_name in windows.items()}
        plain = f"plain {PLAIN_CONNECTIONS}"
        self._aim(f"bulk / {kernel}", BULK_OF_KERNEL_MIN, pair_ratios(rates["bulk"], rates[kernel]), least=True)
        self._aim(f"single / {plain}", SINGLE_OF_PLAIN_MIN, pair_ratios(rates["single"], rates[plain]), least=True)
        latencies = pair_ratios(idle["round trip"], idle["kernel call"])
        self._aim("idle round trip / kernel call", IDLE_OF_KERNEL_MAX, latencies, least=False)
        fastest = best({name: of_name for name, of_name in windows.items() if name.startswith("plain")})
        if statistics.median(rates[fastest]) > statistics.median(rates[plain]):
            self._warn(f"{fastest} was faster than {plain}: {statistics.median(rates[fastest]):,.0f} transfers/s")

    def _aim(self, name: str, bound: float, values: list[float], *, least: bool) -> None:
        self._findings.targets.append(Target(name, bound, least, values))

    def _warn_of_settings(self) -> None:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            if self._findings.settings[name] == "off":
                self._warn(f"{name} is off: acknowledged transfers may be lost in a crash, and no figure here is real")

    def _warn(self, text: str) -> None:
        if text not in self._findings.warnings:
            self._findings.warnings.append(text)
