"""What a run has found, for people and for machines."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from ledgerd_loadtest.bench import Findings, Plan
from ledgerd_loadtest.measure import Cpu, Window


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpu": _first(Path("/proc/cpuinfo"), "model name"),
        "cores": os.cpu_count(),
        "memory": _first(Path("/proc/meminfo"), "MemTotal"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _first(path: Path, name: str) -> str:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"


def as_json(findings: Findings, plan: Plan) -> bytes:
    """Everything, with the value of every round."""
    document = {
        "machine": machine(),
        "plan": plan,
        "postgres": findings.settings,
        "windows": findings.windows,
        "idle_p50_s": findings.idle,
        "best_kernel": findings.best_kernel,
        "targets": [
            {**msgspec.to_builtins(target), "value": target.value, "reached": target.reached}
            for target in findings.targets
        ],
        "audit": {
            "transfers": findings.audited,
            "looked_up": findings.looked_up,
            "differences": findings.differences,
        },
        "warnings": findings.warnings,
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def show(findings: Findings, console: Console) -> None:
    """Tables and the verdict of the audit."""
    about = machine()
    console.print(f"{about['cpu']}, {about['cores']} cores, {about['memory']}, Python {about['python']}")
    console.print("PostgreSQL " + ", ".join(f"{name} {value}" for name, value in findings.settings.items()))
    console.print(_windows_table(findings))
    for name, values in findings.idle.items():
        console.print(f"idle {name}: p50 {statistics.median(values) * 1000:.2f} ms")
    console.print(_targets_table(findings))
    for warning in findings.warnings:
        console.print(f"[yellow]warning:[/yellow] {warning}")
    if findings.differences:
        console.print("[bold red]The audit found differences:[/bold red]")
        for difference in findings.differences:
            console.print(f"  {difference}", markup=False)
    else:
        console.print(
            f"audit: {findings.audited:,} transfers answered, sums, balances and versions add up, "
            f"{findings.looked_up:,} transactions looked up and found"
        )


def _windows_table(findings: Findings) -> Table:
    table = Table(
        title="transfers, medians over the rounds; CPU in microseconds per transfer",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for column in ("load", "per s", "lowest - highest", "p50 ms", "p99 ms", "client", "daemon", "PG"):
        table.add_column(column, justify="left" if column == "load" else "right", no_wrap=True)
    for name, windows in findings.windows.items():
        rates = [window.rate for window in windows]
        table.add_row(
            name,
            f"{statistics.median(rates):,.0f}",
            f"{min(rates):,.0f} - {max(rates):,.0f}",
            f"{statistics.median(window.latency_p50_s for window in windows) * 1000:.2f}",
            f"{statistics.median(window.latency_p99_s for window in windows) * 1000:.2f}",
            _per_transfer(windows, lambda cpu: cpu.client_s),
            _per_transfer(windows, lambda cpu: cpu.daemon_s),
            _per_transfer(windows, lambda cpu: cpu.postgres_s),
        )
    return table


def _per_transfer(windows: list[Window], used: Callable[[Cpu], float | None]) -> str:
    """Microseconds of CPU per transfer over all windows."""
    seconds = [value for window in windows if (value := used(window.cpu)) is not None]
    transfers = sum(window.transfers for window in windows)
    if len(seconds) < len(windows) or not transfers:
        return "-"
    return f"{sum(seconds) / transfers * 1_000_000:,.0f}"


def _targets_table(findings: Findings) -> Table:
    table = Table(title="against the targets, medians of the rounds' ratios", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("figure", "median", "lowest - highest", "target", ""):
        table.add_column(column, justify="left" if column == "figure" else "right", no_wrap=True)
    for target in findings.targets:
        table.add_row(
            target.name,
            f"{target.value:.2f}",
            f"{min(target.values):.2f} - {max(target.values):.2f}",
            f"{'>=' if target.least else '<='} {target.bound:g}",
            "[green]reached[/green]" if target.reached else "[red]missed[/red]",
        )
    return table
