"""The commands a person types."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.console import Console

from ledgerd_loadtest import report
from ledgerd_loadtest.baseline import BaselineFailed
from ledgerd_loadtest.bench import SINGLE_CONNECTIONS, Bench, Findings, Plan
from ledgerd_loadtest.socket_client import ConnectionFailed
from ledgerd_loadtest.target import Daemon, DaemonDidNotStart, spawned_daemon
from ledgerd_protocol.errors import LedgerError

DIFFERENCES = 1
FAILED = 2
INTERRUPTED = 130

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
