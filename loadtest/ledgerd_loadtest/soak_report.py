"""What a soak test has found, for people and for machines."""

from __future__ import annotations

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from ledgerd_loadtest.report import machine
from ledgerd_loadtest.soak import Findings, Plan

LINE_SHOWN = 300
"""Characters of a log line; the JSON file has all of it."""


def as_json(findings: Findings, plan: Plan) -> bytes:
    """Everything."""
    document = {"machine": machine(), "plan": plan, "verdict": not findings.problems, "findings": findings}
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def show(findings: Findings, plan: Plan, console: Console) -> None:
    """Tables and the verdict."""
    console.print(_counts_table(findings))
    console.print(_latency_table(findings))
    for name, values in findings.resident_mib.items():
        console.print(f"{name}: resident MiB before and after the faults: {', '.join(map(str, values))}")
    for line in findings.errors_logged:
        console.print(f"logged as an error: {line[:LINE_SHOWN]}", style="yellow", markup=False)
    if findings.problems:
        console.print(f"[bold red]Wrong.[/bold red] Repeat it with --seed {plan.seed}:")
        for problem in findings.problems:
            console.print(f"  {problem}", markup=False)
    else:
        console.print(
            f"[green]right:[/green] {plan.subscribers} subscribers were told every version once and in order, their "
            f"histories are the ledger's, {findings.acknowledged:,} transfers are there once, no money was made or lost"
        )


def _counts_table(findings: Findings) -> Table:
    counts = findings.counts
    table = Table(title="what happened", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    table.add_column("", justify="right")
    rows = [
        ("transfers sent", findings.sent),
        ("acknowledged", findings.acknowledged),
        ("refused", findings.refused),
        ("answered by the stored outcome of a lost sending", findings.replayed),
        ("outcome unknown to the caller for a while", findings.unknown),
        ("asked again by the caller", findings.asked_again),
        ("versions of accounts", findings.changes),
        *findings.faults.items(),
        ("events delivered", counts.events),
        ("connections of subscribers", counts.connections),
        ("left at a random instant", counts.disconnects),
        ("lost to a daemon that died, or not had from one that was dead", counts.losses),
        ("spells of not reading", counts.slow_spells),
        ("accounts resumed", counts.resumes),
        ("snapshots after the first", counts.snapshots),
        *((f"subscription put off: {code}", count) for code, count in counts.passing_refusals.items()),
        ("seconds to catch up at the end", round(findings.catch_up_s, 1)),
    ]
    for name, value in rows:
        table.add_row(name, f"{value:,}")
    return table


def _latency_table(findings: Findings) -> Table:
    table = Table(
        title="from the reply at one daemon to the event at a subscriber of another, ms",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for column in ("stretch", "events looked at", "p50", "p99", "max"):
        table.add_column(column, justify="left" if column == "stretch" else "right")
    for phase, latency in findings.latencies.items():
        figures = [f"{value * 1000:,.1f}" for value in (latency.p50_s, latency.p99_s, latency.max_s)]
        table.add_row(phase, f"{latency.events:,}", *figures)
    return table
