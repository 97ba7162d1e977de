"""The command that audits a database: a line per check, and where it does not hold."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from ledgerd.exits import Exit, Failed, database_errors
from ledgerd.terminal import write, write_json

if TYPE_CHECKING:
    from ledgerd.storage.verify import Difference, Report, Verdict


def run_verify(dsn: str, *, json: bool) -> None:
    """Audit a database and tell. Raises Failed: with exit code 1 if anything does not hold."""
    from ledgerd.storage.verify import LedgerUnfit, verify

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("verifying"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        # Lines that are written meanwhile go above the bar, to where they would go anyway.
        redirect_stdout=sys.stdout.isatty(),
    )
    with bar, database_errors():
        task = bar.add_task("verifying", total=1.0)
        try:
            report = verify(
                dsn,
                on_progress=lambda share: bar.update(task, completed=share),
                on_verdict=lambda verdict: None if json else _tell(verdict),
            )
        except LedgerUnfit as error:
            raise Failed(str(error)) from error
    if json:
        write_json(_as_json(report))
    else:
        write(
            f"looked at {report.entries:,} entries of {report.accounts:,} accounts and {report.advances:,} advances, "
            f"as they were at {report.as_of.isoformat(timespec='seconds')}"
        )
    if report.broken:
        found = sum(verdict.differences for verdict in report.broken)
        names = ", ".join(verdict.check.name for verdict in report.broken)
        raise Failed(f"{found:,} difference{'s' * (found > 1)}: {names}", Exit.REFUSED)


def _tell(verdict: Verdict) -> None:
    check = verdict.check
    if not verdict.differences:
        write(f"ok        {check.name}: {check.says}")
        return
    word = "warning" if check.is_warning else "BROKEN"
    write(f"{word:9} {check.name}: {check.says}; {verdict.differences:,} found where not")
    for difference in verdict.shown:
        write(f"          {_where(difference)}{difference.detail}")
    if verdict.differences > len(verdict.shown):
        write(f"          and {verdict.differences - len(verdict.shown):,} more")


def _where(difference: Difference) -> str:
    ids = {
        "account": difference.account_id,
        "transaction": difference.transaction_id,
        "advance": difference.advance_id,
    }
    return "".join(f"{name} {value}: " for name, value in ids.items() if value is not None)


def _as_json(report: Report) -> dict[str, object]:
    return {
        "ok": not report.broken,
        "as_of": report.as_of.isoformat(),
        "accounts": report.accounts,
        "entries": report.entries,
        "advances": report.advances,
        "checks": [
            {
                "name": verdict.check.name,
                "says": verdict.check.says,
                "warning": verdict.check.is_warning,
                "differences": verdict.differences,
                "shown": verdict.shown,
            }
            for verdict in report.verdicts
        ],
    }
