"""`ledgerd report`: the report of the last days as a file for a spreadsheet or a program.

Rules of this file:

- A file is whole or not there: it is written beside its place, under a name that ends in `.part`, and moved there when
  the last item is in it. An error and Ctrl-C remove it, only a kill leaves it. What went to standard output stays
  there; exit code 0 says that it is all.
- CSV is for spreadsheets, which take a cell for a formula that begins with one of `=+-@`: text that others chose gets
  an apostrophe before it, as spreadsheets themselves do. NDJSON is exact.
- The report is of one moment, that of its first page. Pages are asked again after a lost connection, and the cursor
  goes on where it was, at any daemon of the database.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, Protocol

import msgspec
import trio
from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ledgerd.exits import Exit, Failed
from ledgerd.remote import HERE, Door

PAGE_ITEMS = 1000
OUTAGE_S = 600.0
"""How long a report waits for a daemon that has gone away."""

COLUMNS = (
    "created_at", "kind", "status", "amount", "currency", "debit_account_id", "credit_account_id", "transaction_id",
    "hold_id", "reverses", "reversed_amount", "reference", "reason", "error", "attempt_id", "metadata",
)  # fmt: skip
_CHOSEN_BY_OTHERS = frozenset({"reference", "reason", "metadata"})
_FORMULA = re.compile(r"[=+\-@\t\r\n＝＋－＠]")  # noqa: RUF001  the wide ones count too in some spreadsheets

Format = Literal["csv", "ndjson"]
Status = Literal["posted", "pending", "captured", "released", "expired", "failed", "cancelled"]


def report(
    *,
    from_: Annotated[str | None, Parameter(name="--from")] = None,
    before: str | None = None,
    account: int | None = None,
    status: Status | None = None,
    format: Format = "csv",  # noqa: A002  the option's name
    output: Path | None = None,
    door: Door = HERE,
) -> None:
    """Export transactions and refused commands, newest first, as CSV or NDJSON.

    A report is about the last five days, or a part of them: from a time on, and before another. It shows the ledger as
    it was when the export began, however long it takes; nothing that comes in meanwhile appears. Service and operator
    tokens see everything; a user's token sees the user's accounts.

    CSV has one row per transaction, amounts as decimal text (do not let a spreadsheet round them), and an apostrophe
    before text that would be taken for a formula. NDJSON has one JSON object per line, exactly as the protocol spells
    them, entries included.

    With --output the file appears when it is complete, and not at all if the export fails or is stopped with Ctrl-C.

    Example: `ledgerd report --from 2026-03-06 --before 2026-03-07 --output friday.csv`

    Example: `ledgerd report --status failed --format ndjson | jq -r .error | sort | uniq -c`

    Parameters
    ----------
    from_
        The first moment to include: a day (its beginning in UTC) or a time with its offset, 2026-03-06T12:00:00+01:00.
        Five days ago if left out.
    before
        The first moment not to include, written the same way. Without it the report goes up to now.
    account
        Only what belongs to the account with this number.
    status
        Only items of this status. failed means refused commands; the others are those of transactions as they are now.
    format
        csv or ndjson.
    output
        File to write; an existing one is replaced. Standard output if left out.
    """
    members = {
        "created_from": _time(from_, "--from"),
        "created_before": _time(before, "--before"),
        "account_id": account,
        "status": status,
        "limit": PAGE_ITEMS,
    }
    asked = {name: value for name, value in members.items() if value is not None}
    encode = _csv_line if format == "csv" else _json_line
    with _destination(output) as file, _progress() as progress:
        if format == "csv":
            file.write(_csv(COLUMNS))
        trio.run(_export, door, asked, encode, file, progress)


class _Page(msgspec.Struct):
    """A page whose items stay as they came."""

    items: list[msgspec.Raw]
    next_cursor: str | None
    total_items: int | None


class _Counter(Protocol):
    """Is told how far an export has got."""

    wants_total: bool

    def __call__(self, done: int, total: int | None) -> None:
        """So many items are written."""


async def _export(
    door: Door, asked: dict[str, Any], encode: Callable[[msgspec.Raw], bytes], file: BinaryIO, progress: _Counter
) -> None:
    """Write every item of a report, page by page. Raises what `Client.call_raw` raises."""
    done = 0
    members = {**asked, "with_total": progress.wants_total}
    async with door.connected(OUTAGE_S) as client:
        while True:
            page = msgspec.json.decode(await client.call_raw("transaction_report", members), type=_Page)
            file.writelines(map(encode, page.items))
            # Whoever reads a pipe should not wait for a buffer.
            file.flush()
            done += len(page.items)
            progress(done, page.total_items)
            if page.next_cursor is None:
                return
            members = {**asked, "cursor": page.next_cursor}


# -- what is asked ----------------------------------------------------------------------------------------------------


def _time(text: str | None, option: str) -> str | None:
    """The time as the protocol takes it; a day is its beginning in UTC. Raises Failed."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is not None and moment.tzinfo is None and ":" not in text:
        moment = moment.replace(tzinfo=UTC)
    if moment is None or moment.tzinfo is None:
        raise Failed(
            f"{option} {text}: write a day, 2026-03-06, or a time with its offset, 2026-03-06T12:00:00Z", Exit.USAGE
        )
    return moment.isoformat(timespec="microseconds")


# -- how an item is written -------------------------------------------------------------------------------------------


def _json_line(item: msgspec.Raw) -> bytes:
    return bytes(item) + b"\n"


def _csv_line(item: msgspec.Raw) -> bytes:
    members = msgspec.json.decode(item, type=dict[str, msgspec.Raw])
    return _csv(_cell(name, members.get(name)) for name in COLUMNS)


def _cell(name: str, raw: msgspec.Raw | None) -> str:
    """A member as text; metadata stays JSON, and null is empty."""
    text = "" if raw is None else bytes(raw).decode()
    if text == "null":
        return ""
    if text.startswith('"'):
        text = msgspec.json.decode(text, type=str)
    return f"'{text}" if name in _CHOSEN_BY_OTHERS and _FORMULA.match(text) else text


def _csv(cells: Any) -> bytes:
    """One line as RFC 4180 has it."""
    line = io.StringIO(newline="")
    csv.writer(line).writerow(cells)
    return line.getvalue().encode()


# -- where it goes ----------------------------------------------------------------------------------------------------


@contextmanager
def _destination(output: Path | None) -> Iterator[BinaryIO]:
    """Something to write to. A file is moved to its place at the end, and removed if there is no good end.

    Raises Failed.
    """
    if output is None:
        # A buffer of our own: PYTHONUNBUFFERED takes away that of standard output, and then a write may be cut short.
        with io.FileIO(sys.stdout.fileno(), "w", closefd=False) as raw, io.BufferedWriter(raw) as file:
            yield file
        return
    part = output.with_name(output.name + ".part")
    try:
        with _opened(part) as file:
            yield file
        part.replace(output)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Failed(f"{output} cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def _opened(part: Path) -> BinaryIO:
    try:
        return part.open("wb")
    except OSError as error:
        raise Failed(f"{part} cannot be written: {error.strerror}", Exit.USAGE) from error


class _Silent:
    """Nobody looks."""

    wants_total = False

    def __call__(self, done: int, total: int | None) -> None:
        """Say nothing."""


class _Bar:
    """A bar on standard error, which leaves no trace."""

    wants_total = True

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("reading", total=None)

    def __call__(self, done: int, total: int | None) -> None:
        """Draw it."""
        self._progress.update(self._task, completed=done, total=total)


@contextmanager
def _progress() -> Iterator[_Counter]:
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield _Silent()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Bar(progress)
