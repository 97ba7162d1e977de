"""The commands a person types."""

from __future__ import annotations

import random
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import trio
from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.console import Console

from ledgerd_loadtest import fanout_report, flood_report, report, soak_report
from ledgerd_loadtest.attackers import CONNECTIONS_MAX, KINDS
from ledgerd_loadtest.baseline import BaselineFailed
from ledgerd_loadtest.bench import SINGLE_CONNECTIONS, Bench, Findings, Plan
from ledgerd_loadtest.chaos import report as chaos_report
from ledgerd_loadtest.chaos.history import write as write_history
from ledgerd_loadtest.chaos.run import ChaosFailed, run_chaos
from ledgerd_loadtest.chaos.run import Plan as ChaosPlan
from ledgerd_loadtest.fanout import Fanout
from ledgerd_loadtest.fanout import Plan as FanoutPlan
from ledgerd_loadtest.flood import Flood
from ledgerd_loadtest.flood import Plan as FloodPlan
from ledgerd_loadtest.house import open_house
from ledgerd_loadtest.soak import Plan as SoakPlan
from ledgerd_loadtest.soak import SoakFailed
from ledgerd_loadtest.soak import soak as run_soak
from ledgerd_loadtest.socket_client import ConnectionFailed
from ledgerd_loadtest.target import Daemon, DaemonDidNotStart, spawned_daemon
from ledgerd_protocol.call import OutcomeUnknown
from ledgerd_protocol.connection import CannotConnect, ConnectionEnded
from ledgerd_protocol.errors import LedgerError

DIFFERENCES = 1
FAILED = 2
INTERRUPTED = 130

EXPECTED = (
    BaselineFailed,
    CannotConnect,
    ChaosFailed,
    ConnectionEnded,
    ConnectionFailed,
    DaemonDidNotStart,
    LedgerError,
    OSError,
    OutcomeUnknown,
    SoakFailed,
    ValueError,
)
"""What may come in the way of a run. Everything else is a bug and keeps its traceback."""

app = App(name="ledgerd-loadtest", help="Measure a ledgerd from outside, and audit what it answered.")


@app.command
def bench(
    *,
    spawn: bool = False,
    url: str | None = None,
    token_file: Path | None = None,
    dsn: str | None = None,
    daemon_pid: int | None = None,
    rounds: Annotated[int, Parameter(validator=Number(gte=1, lte=100))] = 5,
    seconds: Annotated[float, Parameter(validator=Number(gt=0, lte=60))] = 2.0,
    warm_up: Annotated[float, Parameter(validator=Number(gte=0, lte=60))] = 0.5,
    accounts: Annotated[int, Parameter(validator=Number(gte=SINGLE_CONNECTIONS, lte=100_000))] = 10_000,
    idle_connections: Annotated[int, Parameter(validator=Number(gte=0, lte=10_000))] = 2_000,
    generators: Annotated[int, Parameter(validator=Number(gte=1, lte=64))] = 1,
    json: Path | None = None,
) -> int:
    """Compare the daemon with plain transactions and with its own kernel, on this machine.

    Five loads are measured in turn, several rounds of each, and compared round by round:

    * plain: one transaction per transfer over asyncpg, six statements, as a careful team writes it without a ledger.
    * kernel: the ledger's function called directly, 100 transfers per call; nothing in front of it can be faster.
    * bulk: frames of 100 transfers through the daemon; the target is 0.7 of the kernel.
    * single: 64 users with 8 transfers in flight each; the target is 2.5 times plain with 16 connections.
    * idle: one client alone, one transfer at a time; the target is at most 2.5 times a direct kernel call.

    Before them, the memory that an idle connection costs the daemon; the target is at most 60 KiB. After them, an
    audit: every transfer answered, balances and versions of all accounts as the answers said, a sample looked up by id.

    The simplest way, with a daemon and a PostgreSQL of its own that go away afterwards:

        ledgerd-loadtest bench --spawn

    Against a daemon that runs on this machine already; its database keeps the accounts and transactions made here, so
    let it be one that you can throw away:

        ledgerd-loadtest bench --url ws://127.0.0.1:8710 --token-file operator-token --dsn postgresql://owner@/ledgerd

    Ends with 0, or with 1 if the audit found a difference, 2 if the measurement failed, 130 after Ctrl-C.

    Parameters
    ----------
    spawn
        Start a daemon with a private PostgreSQL for this run.
    url
        Where a running daemon listens.
    token_file
        A file with the secret of an operator's token of that daemon.
    dsn
        The connection string of the owner of that daemon's database.
    daemon_pid
        That daemon's process number: for its memory and CPU.
    rounds
        How often each load is measured.
    seconds
        How long each time.
    warm_up
        Seconds of the same load before the clock starts.
    accounts
        How many accounts the transfers go between.
    idle_connections
        How many connections the memory is measured with; 0 leaves that out.
    generators
        Processes that make the load; more if one is said to be the limit.
    json
        Write everything that was found to this file.
    """
    console = Console()
    plan = Plan(rounds, seconds, warm_up, accounts, idle_connections, generators)
    try:
        with _terminated_as_interrupted(), _daemon(spawn, url, token_file, dsn, daemon_pid) as daemon:
            findings = Bench(daemon, plan, lambda line: console.print(line, style="dim", highlight=False)).run()
    except KeyboardInterrupt:
        console.print("interrupted; what was started has been stopped")
        return INTERRUPTED
    except (BaselineFailed, ConnectionFailed, DaemonDidNotStart, LedgerError, OSError, ValueError) as error:
        console.print(f"the benchmark failed: {error}", style="red", markup=False)
        return FAILED
    return _conclude(findings, plan, console, json)


@app.command
def soak(
    *,
    daemons: Annotated[int, Parameter(validator=Number(gte=1, lte=8))] = 2,
    subscribers: Annotated[int, Parameter(validator=Number(gte=1, lte=5_000))] = 500,
    accounts: Annotated[int, Parameter(validator=Number(gte=2, lte=1_000))] = 50,
    follow: Annotated[int, Parameter(validator=Number(gte=1, lte=1_000))] = 10,
    minutes: Annotated[float, Parameter(validator=Number(gt=0, lte=1_440))] = 10.0,
    calm: Annotated[float, Parameter(validator=Number(gte=0, lte=600))] = 30.0,
    rate: Annotated[float, Parameter(validator=Number(gt=0, lte=1_000))] = 30.0,
    fault_every: Annotated[float, Parameter(validator=Number(gt=0))] = 10.0,
    seed: int | None = None,
    json: Path | None = None,
) -> int:
    """Kill daemons and break connections while money moves, and see whether every subscriber is told everything once.

    A PostgreSQL and daemons of its own are started, and are gone afterwards. Subscribers leave at random instants, come
    back through any daemon and resume; some do not read for a while. Daemons are killed (SIGKILL) and started again,
    connections to the database are terminated. In the end each subscriber must have been told each version of each
    account it follows exactly once, as the ledger itself lists them, and each acknowledged transfer must be there once.
    Before the faults, and again with polling instead of hints, it is measured how long an event takes from the reply at
    one daemon to a subscriber of another.

    Example: `ledgerd-loadtest soak --minutes 10 --json soak.json`

    Ends with 0, or with 1 if the verdict is wrong, 2 if there is none, 130 after Ctrl-C.

    Parameters
    ----------
    daemons
        How many daemons serve the one database.
    subscribers
        How many connections follow accounts.
    accounts
        How many accounts the money moves between.
    follow
        How many of them each subscriber follows.
    minutes
        How long there are faults.
    calm
        Seconds of each calm stretch, one with hints and one with polling.
    rate
        Transfers per second through all daemons together.
    fault_every
        Seconds between two faults, on average.
    seed
        Repeats the random choices of an earlier run (not the instants at which they meet).
    json
        Write everything that was found to this file.
    """
    console = Console()
    chosen = random.randrange(2**32) if seed is None else seed
    plan = SoakPlan(daemons, subscribers, accounts, follow, minutes, calm, rate, fault_every, chosen)

    def work() -> int:
        with open_house() as house:
            findings = trio.run(run_soak, house, plan, _teller(console))
        soak_report.show(findings, plan, console)
        if json is not None:
            json.write_bytes(soak_report.as_json(findings, plan))
        return DIFFERENCES if findings.problems else 0

    console.print(f"seed {chosen}", highlight=False)
    return _guarded(work, console, "the soak test")


@app.command
def fanout(
    *,
    subscribers: Annotated[int, Parameter(validator=Number(gte=1, lte=15_000))] = 1_000,
    idle: Annotated[int, Parameter(validator=Number(gte=0, lte=19_000))] = 0,
    rounds: Annotated[int, Parameter(validator=Number(gte=1, lte=100))] = 5,
    seconds: Annotated[float, Parameter(validator=Number(gt=0, lte=15))] = 4.0,
    rate: Annotated[float, Parameter(validator=Number(gt=0, lte=1_000))] = 5.0,
    json: Path | None = None,
) -> int:
    """Measure what it costs that many follow an account, on a daemon with a private PostgreSQL of its own.

    * What one push costs the daemon: transfers on an account that all follow, against as many that nobody follows; the
      target is at most 25 microseconds.
    * One connection that does not read must not slow the others, and must be able to catch up afterwards.
    * Subscriptions on accounts that do not move must not slow transfers: at most 10 percent.
    * With --idle 10000, first of all: the daemon's memory with so many idle subscribed connections; the target is at
      most 600 MiB.

    Example: `ledgerd-loadtest fanout --subscribers 1000 --idle 10000 --json fanout.json`

    Ends with 0, or with 1 if an event was missing or came twice, 2 if the measurement failed, 130 after Ctrl-C. A
    target that is missed is said and does not change that.

    Parameters
    ----------
    subscribers
        How many connections follow the account.
    idle
        How many connections the memory is measured with; 0 leaves that out.
    rounds
        How often each pair of stretches is measured.
    seconds
        How long each stretch is.
    rate
        Transfers per second on the account that is followed; each makes one push per subscriber.
    json
        Write everything that was found to this file.
    """
    console = Console()
    plan = FanoutPlan(subscribers, idle, rounds, seconds, rate)

    def work() -> int:
        with spawned_daemon() as daemon:
            findings = Fanout(daemon, plan, _teller(console)).run()
        fanout_report.show(findings, console)
        if json is not None:
            json.write_bytes(fanout_report.as_json(findings, plan))
        return DIFFERENCES if findings.problems else 0

    return _guarded(work, console, "the measurement")


@app.command
def flood(
    *,
    only: list[str] | None = None,
    processes: Annotated[int, Parameter(validator=Number(gte=1, lte=8))] = 2,
    sockets: Annotated[int, Parameter(validator=Number(gte=1, lte=CONNECTIONS_MAX))] = 3_000,
    followers: Annotated[int, Parameter(validator=Number(gte=1, lte=5_000))] = 100,
    rate: Annotated[float, Parameter(validator=Number(gt=0, lte=1_000))] = 20.0,
    seconds: Annotated[float, Parameter(validator=Number(gt=0, lte=15))] = 3.0,
    json: Path | None = None,
) -> int:
    """Attack a daemon of our own in many ways, and see how those who are signed in are served meanwhile.

    A PostgreSQL and daemons of its own are started, and are gone afterwards; everything stays on this machine's
    loopback. Before and during each attack 32 users transfer as fast as they can, a crowd follows an account, and one
    more user connects. The figures are ratios: during over before. The attackers need processors too, the same ones, so
    a ratio is less on a machine with few.

    Ways: silent, one-address, slow, hit-and-run, garbage, guess, idle, chatty, big-frames, fragments, insider (one user
    who is signed in), tls-half, tls-plain, tls-run.

    Example: `ledgerd-loadtest flood --only silent --only slow --json flood.json`

    Ends with 0, or with 1 if somebody who was signed in lost a connection, a reply or an event, 2 if the measurement
    failed, 130 after Ctrl-C. A target that is missed is said and does not change that.

    Parameters
    ----------
    only
        The ways to attack; all of them if none is given.
    processes
        How many processes attack at once.
    sockets
        How many sockets they hold together, and how many new ones they open per second.
    followers
        How many connections follow the account.
    rate
        Transfers per second on the account that is followed.
    seconds
        How long each of the four stretches of an attack is.
    json
        Write everything that was found to this file.
    """
    console = Console()
    kinds = list(only or KINDS)
    plan = FloodPlan(kinds, processes, sockets, rate, followers, seconds)

    def work() -> int:
        strangers = [kind for kind in kinds if kind not in KINDS]
        if strangers:
            raise ValueError(f"no such way to attack: {', '.join(strangers)}; there are {', '.join(KINDS)}")
        with open_house() as house:
            findings = Flood(house, plan, _teller(console)).run()
        flood_report.show(findings, console)
        if json is not None:
            json.write_bytes(flood_report.as_json(findings, plan))
        return DIFFERENCES if findings.problems else 0

    return _guarded(work, console, "the measurement")


@app.command
def chaos(
    *,
    daemons: Annotated[int, Parameter(validator=Number(gte=1, lte=8))] = 2,
    minutes: Annotated[float, Parameter(validator=Number(gt=0, lte=1_440))] = 10.0,
    fault_every: Annotated[float, Parameter(validator=Number(gt=0))] = 2.0,
    pace: Annotated[float, Parameter(validator=Number(gte=0.01, lte=10))] = 0.15,
    seed: int | None = None,
    fault: Annotated[list[str] | None, Parameter(negative="")] = None,
    workload: Annotated[list[str] | None, Parameter(negative="")] = None,
    report: Path | None = None,
    history: Path | None = None,
) -> int:
    """Break everything on purpose while money moves, and hold every answer against the ledger.

    A PostgreSQL and daemons of its own are started, and are gone afterwards. All connections, of clients to daemons and
    of daemons to the database, go through proxies that delay, throttle, reset, half-close, cut, swallow, and lose
    replies after the commit. Daemons, single backends and PostgreSQL are killed and frozen, connections are terminated
    at COMMIT, the disk is full, connections and locks run out, clocks jump.

    Meanwhile money moves as in Jepsen's suites: a bank that is counted, a hot account, ids that are sent again and
    altered, double spending, holds that expire, advances, reports, feeds. In the end everything unknown is asked about
    by its id, and the whole history is judged: what was acknowledged is there once, what was refused is not, versions
    follow real time, every subscriber was told everything, `ledgerd verify` is clean, no deadlock and no fence hit.

    Examples:

        ledgerd-loadtest chaos --minutes 30 --seed 7 --report REPORT.md
        ledgerd-loadtest chaos --minutes 1 --fault "disk full" --workload bank --workload holds

    Ends with 0, or with 1 if the verdict is wrong, 2 if there is none, 130 after Ctrl-C.

    Parameters
    ----------
    daemons
        How many daemons serve the one database.
    minutes
        How long there are faults.
    fault_every
        Seconds between two faults, on average.
    pace
        Seconds between two steps of a workload, about.
    seed
        Repeats the random choices of an earlier run (not the instants at which they meet).
    fault
        Only this kind of fault, as the report names it; may be given several times.
    workload
        Only this workload; may be given several times.
    report
        Write what was found to this file, in Markdown.
    history
        Write every call, fault, event and transaction to this file, a line of JSON each.
    """
    console = Console()
    chosen = random.randrange(2**32) if seed is None else seed
    plan = ChaosPlan(
        seed=chosen,
        seconds=60 * minutes,
        daemons=daemons,
        pace_s=pace,
        fault_s=fault_every,
        workloads=workload or (),
        faults=fault or (),
    )

    def work() -> int:
        findings = run_chaos(plan, _teller(console))
        chaos_report.show(findings, chosen, console)
        if history is not None:
            write_history(findings.history, history)
        if report is not None:
            report.write_text(
                chaos_report.as_markdown(findings, shlex.join(["ledgerd-loadtest", *sys.argv[1:]]), chosen)
            )
        return DIFFERENCES if findings.problems else 0

    console.print(f"seed {chosen}", highlight=False)
    return _guarded(work, console, "the chaos test")


def _teller(console: Console) -> Callable[[str], None]:
    return lambda line: console.print(line, style="dim", highlight=False, markup=False, soft_wrap=True)


def _guarded(work: Callable[[], int], console: Console, name: str) -> int:
    """Run to the end, or say in one sentence what was in the way."""
    try:
        with _terminated_as_interrupted():
            return work()
    except BaseException as error:
        match leaves(error)[0]:
            case KeyboardInterrupt():
                console.print("interrupted; what was started has been stopped")
                return INTERRUPTED
            case expected if isinstance(expected, EXPECTED):
                console.print(f"{name} failed: {expected}", style="red", markup=False)
                return FAILED
        raise


def leaves(error: BaseException) -> list[BaseException]:
    """What is inside nested groups; KeyboardInterrupt first."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    found = [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return sorted(found, key=lambda leaf: not isinstance(leaf, KeyboardInterrupt))


def _conclude(findings: Findings, plan: Plan, console: Console, json: Path | None) -> int:
    report.show(findings, console)
    if json is not None:
        json.write_bytes(report.as_json(findings, plan))
    return DIFFERENCES if findings.differences else 0


@contextmanager
def _daemon(
    spawn: bool, url: str | None, token_file: Path | None, dsn: str | None, daemon_pid: int | None
) -> Iterator[Daemon]:
    """The daemon to measure. Raises ValueError if it is not said which, DaemonDidNotStart, OSError."""
    given = [value is not None for value in (url, token_file, dsn)]
    if spawn and not any(given) and daemon_pid is None:
        with spawned_daemon() as daemon:
            yield daemon
    elif url is not None and token_file is not None and dsn is not None and not spawn:
        yield Daemon(url=url, token=token_file.read_text().strip(), dsn=dsn, pid=daemon_pid)
    else:
        raise ValueError("say either --spawn, or --url, --token-file and --dsn of a daemon that runs already")


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """A SIGTERM cleans up as Ctrl-C does."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def main() -> None:
    """The entry point `ledgerd-loadtest`."""
    sys.exit(app())


if __name__ == "__main__":
    main()
