"""Floods: what strangers can do to those who are signed in.

Rules of this file:

- Each attack is compared with the calm right before it, on the same daemon: a shared machine is faster in one minute
  than in the next.
- Four things are looked at in each: transfers of many users at once; a crowd that follows an account and must be shown
  every version once and in order, both on connections from before the attack; how long one more user takes to get in;
  and the daemon's memory.
- The attackers use the same processors as everybody else here, though they are nice. So part of what is lost is theirs.
"""

from __future__ import annotations

import http.client
import math
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import trio
from msgspec import Struct, field

from ledgerd_loadtest.attackers import KINDS, SECONDS_MAX, Done
from ledgerd_loadtest.attackers import Order as AttackOrder
from ledgerd_loadtest.crowd import Beat, Crowd, Pulse, beat_on
from ledgerd_loadtest.generator import Generators, Order, Reaped, Slot
from ledgerd_loadtest.house import House, ServedDaemon
from ledgerd_loadtest.idle import connections_possible
from ledgerd_loadtest.measure import Target, percentile
from ledgerd_loadtest.operator_client import Operator, OwnAccount
from ledgerd_loadtest.processes import Gauges, reset_peak, resident_peak_kib
from ledgerd_loadtest.socket_client import ConnectionFailed, SocketClient

THROUGHPUT_MIN = 0.5
"""Of the calm: on two processors that attackers, clients, daemon and PostgreSQL share."""

MEMORY_MIB_MAX = 200.0
"""Added by any attack of strangers."""

PAYERS = 32
IN_FLIGHT = 4
PREBUILT = 100

LEAD_S = 1.0
"""For the connections that transfer to be opened, before an attack begins."""

SETTLE_S = 1.5
"""From the beginning of an attack to the first look."""

CALM_DOWN_S = 1.0

ATTACKER_END_S = 10

_POLL_S = 0.02

REFUSED = re.compile(r'^ledgerd_connections_refused_total\{reason="(\w+)"\} ([0-9.e+]+)$', re.MULTILINE)


class Plan(Struct, frozen=True):
    """How much is measured. Each attack has so many ``processes``, and all of them together ``sockets``."""

    kinds: list[str]
    processes: int
    sockets: int
    rate: float
    followers: int
    seconds: float


class Look(Struct, frozen=True):
    """How those who are signed in were served in a stretch: transfers per second, and seconds.

    ``entry_s`` is how long one more took to connect and sign in.
    """

    rate: float
    latency_p99_s: float
    event_p99_s: float
    entry_s: float


class Attack(Struct):
    """One attack, and what it did."""

    kind: str
    title: str
    calm: Look
    flooded: Look
    memory_before_mib: float
    memory_peak_mib: float
    opened: int
    ended: int
    sent_mib: float
    refused: dict[str, int]

    @property
    def throughput(self) -> float:
        """Transfers under attack, as a share of those before."""
        return self.flooded.rate / self.calm.rate

    @property
    def slowness(self) -> float:
        """The p99 of transfers under attack, as a multiple of that before."""
        return self.flooded.latency_p99_s / self.calm.latency_p99_s

    @property
    def event_slowness(self) -> float:
        """The same, of events."""
        return self.flooded.event_p99_s / self.calm.event_p99_s


class Findings(Struct):
    """What a run has found. ``problems`` is empty if everybody was served, and every event was right."""

    attacks: list[Attack] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Flood:
    """One run in a house of our own. ``tell`` is given a line at every step."""

    def __init__(self, house: House, plan: Plan, tell: Callable[[str], None]) -> None:
        self._house = house
        self._plan = plan
        self._tell = tell
        self._findings = Findings()
        self._own: list[OwnAccount] = []
        self._versions: dict[int, int] = {}

    def run(self) -> Findings:
        """Attack in every way of the plan. Raises ConnectionFailed, LedgerError, OSError, DaemonDidNotStart."""
        if not connections_possible(self._plan.followers):
            raise OSError(f"this shell may not open {self._plan.followers} connections: raise `ulimit -Hn`")
        self._tell("making accounts over the wire")
        with SocketClient(self._house.keeper.url, self._house.keeper.token) as client:
            self._own = Operator(client).make_accounts(PAYERS + 2)
        for tls in (False, True):
            kinds = [kind for kind in self._plan.kinds if KINDS[kind].tls is tls]
            settings = self._settings(tls=tls) if kinds else None
            if settings is not None:
                self._attack_one_daemon(kinds, settings)
        self._judge()
        return self._findings

    def _settings(self, *, tls: bool) -> dict[str, str] | None:
        if not tls:
            return {}
        certificate = make_certificate(self._house.directory)
        if certificate is None:
            self._findings.notes.append("no openssl command here: the attacks on TLS are left out")
            return None
        return {"tls_certificate": str(certificate)}

    def _attack_one_daemon(self, kinds: list[str], settings: dict[str, str]) -> None:
        daemon = self._house.add_daemon(settings)
        daemon.start(log_level="error")
        trio.run(daemon.ready)
        url = daemon.url.replace("ws:", "wss:") if "tls_certificate" in settings else daemon.url
        token = self._house.keeper.token
        followed = self._own[-1].account_id
        with Generators(1) as generators, Crowd(url, token) as crowd:
            with SocketClient(url, token) as client:
                points = Operator(client).points([followed])
            self._versions[followed] = points[followed].version
            crowd.join([[followed]] * self._plan.followers)
            self._look(generators, crowd, daemon, url, nullcontext())  # warms up
            for kind in kinds:
                self._attack(kind, generators, crowd, daemon, url)
        if trio.run(daemon.stop) != 0:
            self._findings.problems.append("the daemon did not end as it should")
        self._findings.problems += daemon.errors()

    def _attack(self, kind: str, generators: Generators, crowd: Crowd, daemon: ServedDaemon, url: str) -> None:
        title = KINDS[kind].title
        calm = self._look(generators, crowd, daemon, url, nullcontext())
        before, refused = daemon.resident_kib / 1024, refusals(daemon)
        reset_peak(daemon.pid)
        done: list[Done] = []
        flood = attackers(self._plan, kind, daemon.port, self._own[0].token, done)
        flooded = self._look(generators, crowd, daemon, url, flood)
        peak = resident_peak_kib(daemon.pid) / 1024
        crowd.rest(CALM_DOWN_S)
        attack = Attack(
            kind,
            title,
            calm,
            flooded,
            before,
            peak,
            opened=sum(each.opened for each in done),
            ended=sum(each.ended for each in done),
            sent_mib=sum(each.sent_bytes for each in done) / 1_048_576,
            refused={name: count - refused.get(name, 0) for name, count in refusals(daemon).items()},
        )
        self._findings.attacks.append(attack)
        self._tell(f"{title}: throughput {attack.throughput:.2f}, p99 {attack.slowness:.2f}, {peak:.0f} MiB")

    def _look(
        self,
        generators: Generators,
        crowd: Crowd,
        daemon: ServedDaemon,
        url: str,
        flood: AbstractContextManager[None],
    ) -> Look:
        """Transfers, and then events, on connections that were open before the flood; and one user more."""
        token = self._house.keeper.token
        with ThreadPoolExecutor(2) as pool, SocketClient(url, token) as payer:
            transfers = pool.submit(self._transfers, generators, daemon, url)
            crowd.rest(LEAD_S)
            with flood:
                crowd.rest(SETTLE_S)
                entry = pool.submit(_entry_s, url, token)
                while not transfers.done():
                    crowd.pump(_POLL_S)
                pulse = self._pulse(crowd, payer)
                while not entry.done():
                    crowd.pump(_POLL_S)
        window, entry_s = transfers.result().window, entry.result()
        event_p99_s = percentile(sorted(pulse.latencies), 0.99)
        return Look(window.rate, window.latency_p99_s, event_p99_s, entry_s)

    def _transfers(self, generators: Generators, daemon: ServedDaemon, url: str) -> Reaped:
        own = self._own[:PAYERS]
        reaped = generators.run(
            Order(
                url=url,
                slots=[Slot(payer.token, payer.account_id) for payer in own],
                accounts=[account.account_id for account in own],
                in_flight=IN_FLIGHT,
                batch=None,
                prebuilt=PREBUILT,
                warm_up_s=LEAD_S + SETTLE_S,
                seconds=self._plan.seconds,
                gauges=Gauges(daemon.pid, None),
            )
        )
        if reaped.window.refused:
            self._findings.problems.append(f"{reaped.window.refused} transfers were refused")
        return reaped

    def _pulse(self, crowd: Crowd, client: SocketClient) -> Pulse:
        payer, payee = self._own[-1].account_id, self._own[-2].account_id
        tempo = Beat(payer, payee, payer, self._plan.rate, self._plan.seconds)
        pulse = beat_on(client, crowd, tempo, self._versions[payer])
        self._versions[payer] += pulse.transfers
        self._findings.problems += pulse.problems[:10]
        return pulse

    def _judge(self) -> None:
        strangers = [attack for attack in self._findings.attacks if attack.kind != "insider"]
        if not strangers:
            return
        shares = [attack.throughput for attack in strangers]
        added = [max(attack.memory_peak_mib - attack.memory_before_mib for attack in strangers)]
        self._findings.targets = [
            Target("transfers under attacks of strangers / before", THROUGHPUT_MIN, True, [statistics.median(shares)]),
            Target("the worst of them", THROUGHPUT_MIN, True, [min(shares)]),
            Target("MiB that an attack added at most", MEMORY_MIB_MAX, False, added),
        ]


@contextmanager
def attackers(plan: Plan, kind: str, port: int, token: str, done: list[Done]) -> Iterator[None]:
    """Attack while the block runs; what was done is added to ``done`` afterwards."""
    order = AttackOrder(
        kind=kind,
        port=port,
        sockets=max(1, plan.sockets // plan.processes),
        rate_per_s=plan.sockets / plan.processes,
        seconds=SECONDS_MAX,
        token=token,
    )
    command = [sys.executable, "-m", "ledgerd_loadtest.attackers"]
    processes = [
        subprocess.Popen(  # noqa: S603 - our own interpreter and our own module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        for _ in range(plan.processes)
    ]
    try:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(msgspec.json.encode(order) + b"\n")
            process.stdin.flush()
        yield
        for process in processes:
            said, _ = process.communicate(timeout=ATTACKER_END_S)
            done.append(msgspec.json.decode(said, type=Done))
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _entry_s(url: str, token: str) -> float:
    """Seconds to connect and sign in; infinite if that fails."""
    began = time.perf_counter()
    try:
        SocketClient(url, token).close()
    except (ConnectionFailed, OSError):
        return math.inf
    return time.perf_counter() - began


def refusals(daemon: ServedDaemon) -> dict[str, int]:
    """Connections that the daemon has refused so far, by reason. Raises OSError."""
    parts = urlsplit(daemon.http_url)
    assert parts.hostname is not None
    asking = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    try:
        asking.request("GET", "/metrics")
        text = asking.getresponse().read().decode()
    finally:
        asking.close()
    return {reason: int(float(count)) for reason, count in REFUSED.findall(text)}


def make_certificate(directory: Path) -> Path | None:
    """A certificate and its key for 127.0.0.1 in one file; None without an openssl command."""
    openssl = shutil.which("openssl")
    if openssl is None:
        return None
    file = directory / "certificate.pem"
    key = directory / "key.pem"
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=127.0.0.1", "-keyout", str(key), "-out", str(file)]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - a fixed command
    file.write_bytes(file.read_bytes() + key.read_bytes())
    return file
