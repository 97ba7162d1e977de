"""What a flood run has found, for people and for machines."""

from __future__ import annotations

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from ledgerd_loadtest.fanout_report import targets_table
from ledgerd_loadtest.flood import Findings, Plan
from ledgerd_loadtest.report import machine


def as_json(findings: Findings, plan: Plan) -> bytes:
    """Everything."""
    document = {"machine": machine(), "plan": plan, **msgspec.to_builtins(findings)}
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def show(findings: Findings, console: Console) -> None:
    """Tables, and whether everybody was served."""
    table = Table(title="those who are signed in, under attack", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in (
        "attack",
        "transfers/s",
        "ratio",
        "p99",
        "event p99",
        "entry, s",
        "MiB",
        "peak",
        "opened",
        "refused",
    ):
        table.add_column(column, justify="left" if column in ("attack", "refused") else "right")
    for attack in findings.attacks:
        refused = ", ".join(f"{name} {count:,}" for name, count in sorted(attack.refused.items()) if count)
        table.add_row(
            attack.title,
            f"{attack.calm.rate:,.0f} to {attack.flooded.rate:,.0f}",
            f"{attack.throughput:.2f}",
            f"x {attack.slowness:.2f}",
            f"x {attack.event_slowness:.2f}",
            f"{attack.flooded.entry_s:.2f}",
            f"{attack.memory_before_mib:.0f}",
            f"{attack.memory_peak_mib:.0f}",
            f"{attack.opened:,}",
            refused or "none",
        )
    console.print(table)
    if findings.targets:
        console.print(targets_table(findings.targets))
    for note in findings.notes:
        console.print(note, markup=False)
    if findings.problems:
        console.print("[bold red]Wrong:[/bold red]")
        for problem in findings.problems:
            console.print(f"  {problem}", markup=False)
    else:
        console.print("nobody who was signed in lost a connection, a reply or an event")
