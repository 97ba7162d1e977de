"""What a run has found, for people: on the screen, and as the page that is kept of the newest long one."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

from msgspec import Struct
from rich import box
from rich.console import Console
from rich.table import Table

from ledgerd_loadtest.chaos.ledger_checks import SETTLE
from ledgerd_loadtest.chaos.run import Findings
from ledgerd_loadtest.report import machine

_LOST = ("acknowledged is there", "accounts add up", "transactions balance")
_DOUBLED = ("done once", "holds end once", "advances are paid")


class Summary(Struct, frozen=True):
    """The figures that everybody asks for."""

    calls: int
    acknowledged: int
    refused: int
    unknown: int
    resolved: int
    transactions: int
    events: int
    faults: dict[str, int]
    lost: int
    doubled: int


def summary(findings: Findings) -> Summary:
    """Count."""
    history, checks = findings.history, findings.checks
    outcomes = Counter(operation.outcome for operation in history.operations)
    unresolved = len(checks["unknown is resolved"])
    unknown = {
        operation.params.get("transaction_id") or operation.params.get("batch_id")
        for operation in history.operations
        if operation.outcome == "unknown"
    } - {None}
    money = [each for each in history.operations if "transaction_id" in each.params or "batch_id" in each.params]
    return Summary(
        calls=len(history.operations),
        acknowledged=sum(each.outcome == "ok" and each.workload != SETTLE for each in money),
        refused=outcomes["refused"],
        unknown=len(unknown),
        resolved=len(unknown) - unresolved,
        transactions=len(history.transactions),
        events=sum(len(told.changes) for told in history.told),
        faults=dict(sorted(Counter(fault.kind for fault in history.faults).items())),
        lost=sum(len(checks[name]) for name in _LOST),
        doubled=sum(len(checks[name]) for name in _DOUBLED),
    )


def rows(findings: Findings) -> list[tuple[str, str]]:
    """What happened, line by line, without the faults."""
    found = summary(findings)
    return [
        ("calls", f"{found.calls:,}"),
        ("commands acknowledged", f"{found.acknowledged:,}"),
        ("calls refused", f"{found.refused:,}"),
        ("commands whose outcome was unknown for a while", f"{found.unknown:,}"),
        ("of these resolved by their id", f"{found.resolved:,}"),
        ("transactions in the ledger", f"{found.transactions:,}"),
        ("events told to subscribers", f"{found.events:,}"),
        ("faults injected", f"{sum(found.faults.values()):,}"),
        ("lost", str(found.lost)),
        ("doubled", str(found.doubled)),
        ("deadlocks", str(findings.history.signs.deadlocks)),
        ("fence hits", str(findings.history.signs.fence_hits)),
    ]


def show(findings: Findings, seed: int, console: Console) -> None:
    """Tables and the verdict."""
    for title, lines in (
        ("what happened", rows(findings)),
        ("faults", [(kind, str(count)) for kind, count in summary(findings).faults.items()]),
    ):
        table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("")
        table.add_column("", justify="right")
        for line in lines:
            table.add_row(*line)
        console.print(table)
    for kind, reason in findings.skipped.items():
        console.print(f"not tried here: {kind}: {reason}", style="yellow", highlight=False)
    if findings.problems:
        console.print(f"[bold red]Wrong.[/bold red] Repeat the choices with --seed {seed}:")
        for problem in findings.problems:
            console.print(f"  {problem}", markup=False, highlight=False)
    else:
        console.print(f"[green]right:[/green] all {len(findings.checks)} checks found nothing")


def as_markdown(findings: Findings, command: str, seed: int) -> str:
    """The page that is kept."""
    found, here = summary(findings), machine()
    lines = [
        "# Chaos: the newest long run",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, `{command}` (seed {seed}), Python {here['python']}, {here['cores']} cores.",
        "",
        "Several daemons on one PostgreSQL; all their connections go through proxies that break them. What each",
        "check means is said in `ledgerd_loadtest/chaos`.",
        "",
        "| what happened | |",
        "|---|---:|",
        *(f"| {name} | {value} |" for name, value in rows(findings)),
        "",
        "| fault | times |",
        "|---|---:|",
        *(f"| {kind} | {count} |" for kind, count in found.faults.items()),
        *(f"| {kind}: not tried, {reason} | 0 |" for kind, reason in findings.skipped.items()),
        "",
        "| check | found |",
        "|---|---|",
        *(f"| {name} | {'; '.join(problems) or 'nothing'} |" for name, problems in findings.checks.items()),
        "",
    ]
    return "\n".join(lines)
