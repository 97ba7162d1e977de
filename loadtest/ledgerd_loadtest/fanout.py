"""Fan-out: what followers cost, in the daemon's time and memory, and what they cost everybody else.

Rules of this file:

- A push is charged with what it adds: the same beat of transfers is sent twice, once on an account that the crowd
  follows and once on one that nobody follows, and the difference in the daemon's CPU is divided by the pushes.
- What is compared is measured in pairs, one right after the other, and every other pair is turned round.
- The memory comes first, on a daemon that has done nothing else.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import closing

import msgspec
from msgspec import Struct, field
from uuid_utils import uuid7

from ledgerd_loadtest.baseline import database_facts
from ledgerd_loadtest.commands import Transfer, batch_request
from ledgerd_loadtest.crowd import Beat, Crowd, Pulse, beat
from ledgerd_loadtest.generator import Generators, Order, Slot
from ledgerd_loadtest.idle import SETTLE_S, connections_possible
from ledgerd_loadtest.measure import Target, pair_ratios, percentile
from ledgerd_loadtest.operator_client import Operator, OwnAccount
from ledgerd_loadtest.processes import Gauges, open_files_max, resident_kib
from ledgerd_loadtest.socket_client import ConnectionFailed, SocketClient, text_frame
from ledgerd_loadtest.target import Daemon
from ledgerd_protocol.codec import Notification, decode_reply, encode_request
from ledgerd_protocol.cursor import Cursor, FeedGap
from ledgerd_protocol.feed import read_event

PUSH_US_MAX = 25.0
IDLE_MIB_MAX = 600.0
STILL_RATE_MIN = 0.9
STALLED_LATENCY_MAX = 1.25
"""How much of a difference between two stretches counts as none, on a machine that others use too."""

PAYERS = 64
IN_FLIGHT = 8
STILL_ACCOUNTS = 100
BENCH_ACCOUNTS = 1_000
PREBUILT = 200

STALL_TRANSFERS = 12_000
STALL_BYTES_MIN = 3_000_000
"""What a stalled connection must have left unread: more than the daemon and both kernels keep for it."""

_BATCH = 100
_FILES_TO_SPARE = 200
_DRAIN_S = 25.0


class Plan(Struct, frozen=True):
    """How much is measured. ``rate`` is transfers per second on the account that everybody follows."""

    subscribers: int
    idle: int
    rounds: int
    seconds: float
    rate: float


class Findings(Struct):
    """What a run has found; ``figures`` has a value for every round. ``problems`` is empty if every event was right."""

    figures: dict[str, list[float]] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)
    pushes: int = 0
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class Fanout:
    """One run against a daemon of our own. ``tell`` is given a line at every step."""

    def __init__(self, daemon: Daemon, plan: Plan, tell: Callable[[str], None]) -> None:
        assert daemon.pid is not None
        self._daemon = daemon
        self._pid = daemon.pid
        self._plan = plan
        self._tell = tell
        self._findings = Findings()
        self._gauges = Gauges(daemon.pid, database_facts(daemon.dsn).postmaster_pid)
        self._versions: dict[int, int] = {}

    def run(self) -> Findings:
        """Measure everything. Raises LedgerError, ConnectionFailed, OSError, BaselineFailed."""
        plan = self._plan
        self._check_limits(max(plan.subscribers, plan.idle))
        self._tell("making accounts over the wire")
        with SocketClient(self._daemon.url, self._daemon.token) as client:
            operator = Operator(client)
            made = operator.make_accounts(4 + STILL_ACCOUNTS + BENCH_ACCOUNTS)
            numbers = [account.account_id for account in made]
            self._versions = {number: point.version for number, point in operator.points(numbers).items()}
        self._followed, self._unfollowed, self._payee, self._flooded = numbers[:4]
        self._still = numbers[4 : 4 + STILL_ACCOUNTS]
        if plan.idle:
            self._measure_memory()
        with Crowd(self._daemon.url, self._daemon.token) as crowd:
            self._tell(f"{plan.subscribers} connections follow one account")
            crowd.join([[self._followed]] * plan.subscribers)
            self._measure_pushes(crowd)
            self._measure_stall(crowd)
        self._measure_bystanders(made[4 + STILL_ACCOUNTS :])
        return self._findings

    def _check_limits(self, connections: int) -> None:
        if not connections_possible(connections):
            raise OSError(f"this shell may not open {connections} connections: raise `ulimit -Hn`")
        allowed = open_files_max(self._pid)
        if allowed < connections + _FILES_TO_SPARE:
            raise OSError(f"the daemon may open {allowed} files only, too few for {connections} connections")

    # -- memory ----------------------------------------------------------------------------------------------------

    def _measure_memory(self) -> None:
        count = self._plan.idle
        self._tell(f"memory of {count} idle subscribed connections")
        before = resident_kib(self._pid) / 1024
        with Crowd(self._daemon.url, self._daemon.token) as crowd:
            crowd.join([[self._still[number % STILL_ACCOUNTS]] for number in range(count)])
            crowd.rest(SETTLE_S)
            whole = resident_kib(self._pid) / 1024
            cpu = self._idle_cpu(crowd)
        self._note("KiB per idle subscribed connection", (whole - before) * 1024 / count)
        self._note(f"share of a core that {count} idle connections use", cpu / self._plan.seconds)
        self._aim(f"MiB of the daemon with {count} of them", IDLE_MIB_MAX, [whole], least=False)

    def _idle_cpu(self, crowd: Crowd) -> float:
        begun = self._gauges.read()
        crowd.rest(self._plan.seconds)
        return self._gauges.read().since(begun).daemon_s or 0.0

    # -- pushes ----------------------------------------------------------------------------------------------------

    def _measure_pushes(self, crowd: Crowd) -> None:
        self._tell("what a push costs")
        costs = []
        self._beat(crowd, followed=True)  # warms up
        for number in range(self._plan.rounds):
            order = (True, False) if number % 2 else (False, True)
            used = {followed: self._beat(crowd, followed=followed) for followed in order}
            added = used[True][0] - used[False][0]
            costs.append(added / max(1, used[True][1].pushes) * 1_000_000)
            self._note("daemon CPU per transfer that nobody follows, us", _each(used[False]))
            self._note("daemon CPU per transfer that all follow, us", _each(used[True]))
            self._note("event p50 after sending, ms", _ms(used[True][1], 0.50))
            self._note("event p99 after sending, ms", _ms(used[True][1], 0.99))
        self._note("daemon CPU per second of rest, ms", self._idle_cpu(crowd) / self._plan.seconds * 1000)
        self._aim("daemon CPU per push, us", PUSH_US_MAX, costs, least=False)

    def _beat(self, crowd: Crowd, *, followed: bool) -> tuple[float, Pulse]:
        """CPU seconds of the daemon, and what came of the beat."""
        source = self._followed if followed else self._unfollowed
        tempo = Beat(source, self._payee, self._followed if followed else None, self._plan.rate, self._plan.seconds)
        begun = self._gauges.read()
        pulse = beat(crowd, self._daemon.url, self._daemon.token, tempo, self._versions[source])
        used = self._gauges.read().since(begun).daemon_s or 0.0
        self._versions[source] += pulse.transfers
        self._findings.pushes += pulse.pushes
        self._findings.problems += pulse.problems[:10]
        return used, pulse

    # -- one that does not read ------------------------------------------------------------------------------------

    def _measure_stall(self, crowd: Crowd) -> None:
        self._tell("one connection that does not read, among all the others")
        ratios: dict[float, list[float]] = {0.50: [], 0.99: []}
        for number in range(self._plan.rounds):
            pulses: dict[bool, Pulse] = {}
            for stalled in (True, False) if number % 2 else (False, True):
                pulses[stalled] = self._stalled_beat(crowd) if stalled else self._beat(crowd, followed=True)[1]
            for share, found in ratios.items():
                with_it, without = _ms(pulses[True], share), _ms(pulses[False], share)
                found.append(with_it / without)
                self._note(f"event p{share * 100:.0f} with a stalled connection, ms", with_it)
                self._note(f"event p{share * 100:.0f} without, ms", without)
        for share, found in ratios.items():
            self._aim(
                f"p{share * 100:.0f} with a stalled connection / without", STALLED_LATENCY_MAX, found, least=False
            )

    def _stalled_beat(self, crowd: Crowd) -> Pulse:
        with closing(SocketClient(self._daemon.url, self._daemon.token)) as stalled:
            follower = _Stalled(stalled, [self._followed, self._flooded])
            self._flood()
            crowd.rest(SETTLE_S)
            pulse = self._beat(crowd, followed=True)[1]
            unread = follower.catch_up({name: self._versions[name] for name in (self._followed, self._flooded)})
            if unread < STALL_BYTES_MIN:
                self._findings.problems.append(f"the stalled connection had only {unread} bytes to read")
            self._note("MB that the stalled connection read afterwards", unread / 1e6)
            return pulse

    def _flood(self) -> None:
        """More events than fit between the daemon and who does not read them."""
        with SocketClient(self._daemon.url, self._daemon.token) as client:
            for number in range(STALL_TRANSFERS // _BATCH):
                transfers = [Transfer(str(uuid7()), self._flooded, self._payee) for _ in range(_BATCH)]
                client.send(batch_request(number, transfers).frame)
                client.receive_one()
        self._versions[self._flooded] += STALL_TRANSFERS

    # -- everybody else --------------------------------------------------------------------------------------------

    def _measure_bystanders(self, own: list[OwnAccount]) -> None:
        """Single transfers while many follow accounts that do not move, and while nobody does."""
        self._tell(f"single transfers with and without {self._plan.subscribers} subscriptions on other accounts")
        rates: dict[bool, list[float]] = {True: [], False: []}
        with Generators(1) as generators:
            self._single(generators, own)  # warms up
            for number in range(self._plan.rounds):
                for followers in (True, False) if number % 2 else (False, True):
                    with Crowd(self._daemon.url, self._daemon.token) as crowd:
                        if followers:
                            count = self._plan.subscribers
                            crowd.join([[self._still[each % STILL_ACCOUNTS]] for each in range(count)])
                        crowd.rest(SETTLE_S)
                        rates[followers].append(self._single(generators, own))
        for followers, found in rates.items():
            self._findings.figures[f"transfers per s {'with' if followers else 'without'} subscriptions"] = found
        ratios = pair_ratios(rates[True], rates[False])
        self._aim("transfers with / without subscriptions on other accounts", STILL_RATE_MIN, ratios, least=True)

    def _single(self, generators: Generators, own: list[OwnAccount]) -> float:
        reaped = generators.run(
            Order(
                url=self._daemon.url,
                slots=[Slot(payer.token, payer.account_id) for payer in own[:PAYERS]],
                accounts=[account.account_id for account in own],
                in_flight=IN_FLIGHT,
                batch=None,
                prebuilt=PREBUILT,
                warm_up_s=0.5,
                seconds=self._plan.seconds,
                gauges=self._gauges,
            )
        )
        if reaped.window.refused:
            self._findings.problems.append(f"{reaped.window.refused} transfers were refused")
        return reaped.window.rate

    # -- findings --------------------------------------------------------------------------------------------------

    def _note(self, name: str, value: float) -> None:
        self._findings.figures.setdefault(name, []).append(value)

    def _aim(self, name: str, bound: float, values: list[float], *, least: bool) -> None:
        self._findings.targets.append(Target(name, bound, least, values))
        self._tell(f"  {name}: {statistics.median(values):.2f}")


class _Stalled:
    """A subscriber that stops reading once it is live, and then must be able to catch up."""

    def __init__(self, client: SocketClient, accounts: list[int]) -> None:
        self._client = client
        self._cursor = Cursor()
        self._read = 0
        options = {"account_ids": accounts}
        client.send(text_frame(encode_request(1, "ledger_subscribe", {"channel": "balances", "options": options})))
        while set(self._cursor.versions) != set(accounts):
            self._take(client.receive_one())

    def catch_up(self, versions: dict[int, int]) -> int:
        """Read up to these versions; how many bytes that were. Raises ConnectionFailed, also if one is missing."""
        begun, deadline = self._read, time.monotonic() + _DRAIN_S
        while any(self._cursor.versions[name] < version for name, version in versions.items()):
            if time.monotonic() > deadline:
                raise ConnectionFailed(f"the stalled connection did not catch up within {_DRAIN_S:g} s")
            self._take(self._client.receive_one())
        return self._read - begun

    def _take(self, message: bytes) -> None:
        self._read += len(message)
        decoded = decode_reply(message)
        if not isinstance(decoded, Notification) or decoded.method != "ledger_subscription":
            return
        event = read_event(msgspec.json.decode(decoded.params, type=dict[str, msgspec.Raw])["result"])
        try:
            if event is not None:
                self._cursor.apply(event)
        except FeedGap as gap:
            raise ConnectionFailed(f"the stalled connection: {gap}") from gap


def _each(used: tuple[float, Pulse]) -> float:
    return used[0] / max(1, used[1].transfers) * 1_000_000


def _ms(pulse: Pulse, share: float) -> float:
    return percentile(sorted(pulse.latencies), share) * 1000
