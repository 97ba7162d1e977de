"""What a fan-out run has found, for people and for machines."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from ledgerd_loadtest.fanout import Findings, Plan
from ledgerd_loadtest.measure import Target
from ledgerd_loadtest.report import machine


def as_json(findings: Findings, plan: Plan) -> bytes:
    """Everything, with the value of every round."""
    targets = [
        {**msgspec.to_builtins(target), "value": target.value, "reached": target.reached} for target in findings.targets
    ]
    document = {
        "machine": machine(),
        "plan": plan,
        "figures": findings.figures,
        "targets": targets,
        "pushes": findings.pushes,
        "problems": findings.problems,
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def show(findings: Findings, console: Console) -> None:
    """Tables, and whether every event was right."""
    table = Table(title="medians over the rounds", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("figure", "median", "lowest - highest"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for name, values in findings.figures.items():
        table.add_row(name, f"{statistics.median(values):,.2f}", f"{min(values):,.2f} - {max(values):,.2f}")
    console.print(table)
    console.print(targets_table(findings.targets))
    if findings.problems:
        console.print("[bold red]Wrong:[/bold red]")
        for problem in findings.problems:
            console.print(f"  {problem}", markup=False)
    else:
        console.print(f"{findings.pushes:,} events came once and in order")


def targets_table(targets: Sequence[Target]) -> Table:
    """What was reached, and what was not."""
    table = Table(title="against the targets, medians over the rounds", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("figure", "median", "target", ""):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for target in targets:
        bound = f"{'>=' if target.least else '<='} {target.bound:g}"
        reached = "[green]reached[/green]" if target.reached else "[red]missed[/red]"
        table.add_row(target.name, f"{target.value:,.2f}", bound, reached)
    return table
