"""The command that looks at a database before, or while, daemons serve it: a row per check, and who holds what."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ledgerd.exits import Exit, Failed
from ledgerd.terminal import stdout, write, write_json

if TYPE_CHECKING:
    from ledgerd.config import Config
    from ledgerd.storage.diagnosis import AccountLock, Daemons, Diagnosis, Pending, Summary

_STYLES = {"ok": "green", "info": "cyan", "warn": "yellow", "wait": "red", "refuse": "bold red", "skipped": "dim"}

_MANY = 10_000
"""Counts from here up are told as so many or more."""


def run_doctor(config: Config, *, json: bool) -> None:
    """Look, and tell. Raises Failed: with exit code 1 if a daemon would not serve, 3 if nobody answers."""
    from ledgerd.storage.diagnosis import diagnose

    diagnosis = diagnose(config)
    console = stdout()
    if json:
        write_json(_as_json(diagnosis))
    elif console.is_terminal:
        _show(diagnosis, console)
    else:
        _tell(diagnosis, write)
    if not diagnosis.reached:
        raise Failed(diagnosis.findings[0].sentence, Exit.CANNOT_CONNECT)
    if not diagnosis.is_fit:
        named = ", ".join(finding.check for finding in diagnosis.findings if finding.prevents)
        raise Failed(f"a daemon would not serve this database: {named}", Exit.REFUSED)


# -- for a program that reads lines ------------------------------------------------------------------------------------


def _tell(diagnosis: Diagnosis, say: Callable[[str], None]) -> None:
    for finding in diagnosis.findings:
        say(f"{finding.level.value:8} {finding.check}: {finding.sentence}")
    if diagnosis.summary is None:
        return
    say(f"{'ledger':8} {'; '.join(f'{name} {value}' for name, value in _members(diagnosis.summary))}")
    for daemons in diagnosis.daemons:
        say(f"{'daemon':8} {daemons.connections} connections by {', '.join(_row_of(daemons)[1:])}")
    for lock in diagnosis.locks or []:
        account, has, pid, role, program, address, state, since, blocked_by = _row_of_lock(lock)
        behind = f", behind process {blocked_by}" if blocked_by else ""
        say(
            f"{'lock':8} account {account} {has} process {pid} ({role}, {program}, {address}), {state}, "
            f"since {since}{behind}"
        )
    for note in _notes(diagnosis):
        say(f"{'note':8} {note}")


# -- for a person at a terminal ----------------------------------------------------------------------------------------


def _show(diagnosis: Diagnosis, console: Console) -> None:
    checks = Table("check", "", "found", "what to do", expand=False)
    for finding in diagnosis.findings:
        level = Text(finding.level.value, style=_STYLES[finding.level.value])
        checks.add_row(finding.check, level, Text(finding.what), Text(finding.advice))
    console.print(checks)
    if diagnosis.summary is None:
        return
    ledger = Table("ledger", "")
    for name, value in _members(diagnosis.summary):
        ledger.add_row(name, Text(value))
    console.print(ledger)
    if diagnosis.daemons:
        daemons = Table("connections of daemons", "role", "address", "since")
        for some in diagnosis.daemons:
            daemons.add_row(*map(Text, _row_of(some)))
        console.print(daemons)
    if diagnosis.locks:
        locks = Table("account", "", "process", "role", "program", "address", "state", "since", "behind")
        for lock in diagnosis.locks:
            locks.add_row(*map(Text, _row_of_lock(lock)), style="yellow" if not lock.granted else "")
        console.print(locks)
    for note in _notes(diagnosis):
        console.print(Text(note))


# -- in words ----------------------------------------------------------------------------------------------------------


def _members(summary: Summary) -> list[tuple[str, str]]:
    members = [
        ("database", summary.database),
        ("server", f"PostgreSQL {summary.server}"),
        ("role", summary.role),
        ("migration", "none" if summary.migration is None else str(summary.migration)),
    ]
    if summary.epoch is not None:
        members += [("epoch", summary.epoch), ("deployment", str(summary.deployment))]
    if summary.pending is not None:
        members += _members_pending(summary.pending)
    return [*members, ("connections per daemon", str(summary.connections_per_daemon))]


def _members_pending(pending: Pending) -> list[tuple[str, str]]:
    return [
        ("pending holds", f"{_count(pending.holds)}, {_count(pending.overdue_holds)} overdue"),
        ("running advances", f"{_count(pending.advances)}, {_count(pending.due_advances)} due"),
    ]


def _count(number: int) -> str:
    return f"{number:,}" + (" or more" if number >= _MANY else "")


def _row_of(daemons: Daemons) -> tuple[str, str, str, str]:
    return str(daemons.connections), daemons.role, daemons.address or "this machine", f"since {_time(daemons.since)}"


def _row_of_lock(lock: AccountLock) -> tuple[str, ...]:
    if lock.pid is None:
        who: tuple[str, ...] = ("none", "a prepared transaction", "pg_prepared_xacts", "", "prepared")
    else:
        # Without a client's address it is one on the server's own machine, unless this role may not see it.
        address = lock.address or ("?" if lock.is_hidden else "this machine")
        who = (str(lock.pid), lock.role or "?", lock.application_name or "no name", address, lock.state or "?")
    return (
        str(lock.account_id),
        "held by" if lock.granted else "wanted by",
        *who,
        _time(lock.since),
        ", ".join(map(str, lock.blocked_by)),
    )


def _time(moment: datetime | None) -> str:
    return "?" if moment is None else moment.isoformat(sep=" ", timespec="seconds")


def _notes(diagnosis: Diagnosis) -> list[str]:
    from ledgerd.storage.diagnosis import LOCKS_SHOWN_MAX

    notes = []
    assert diagnosis.summary is not None
    if not diagnosis.daemons:
        notes.append("no daemon is connected to this database")
    if diagnosis.locks is None:
        notes.append("who holds which account's lock cannot be told before the ledger can be read")
    elif not diagnosis.locks:
        notes.append("nobody holds an account's lock, or waits for one")
    elif len(diagnosis.locks) == LOCKS_SHOWN_MAX:
        notes.append(f"these are the first {LOCKS_SHOWN_MAX} locks, those that somebody waits for before all others")
    hidden = any(lock.is_hidden for lock in diagnosis.locks or []) or any(d.since is None for d in diagnosis.daemons)
    if hidden:
        role = diagnosis.summary.role
        notes.append(
            f"what is marked ? belongs to other roles and is hidden from {role}: GRANT pg_read_all_stats TO {role}, or "
            "look with the owner's DSN"
        )
    return notes


def _as_json(diagnosis: Diagnosis) -> dict[str, object]:
    from ledgerd.storage.diagnosis import says

    return {
        "ok": diagnosis.is_fit,
        "checks": [
            {
                "name": finding.check,
                "says": says(finding.check),
                "level": finding.level.value,
                "found": finding.what,
                "advice": finding.advice,
            }
            for finding in diagnosis.findings
        ],
        "ledger": diagnosis.summary,
        "daemons": diagnosis.daemons,
        "locks": diagnosis.locks,
        "notes": [] if diagnosis.summary is None else _notes(diagnosis),
    }
