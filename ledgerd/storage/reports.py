"""Reports: pages of everything somebody may see that all show the books as they were at the first of them.

Theory of operation. The first page is read in one statement, together with the *snapshot* it was read in: which
transaction ids had finished. Later pages show only what that snapshot could see, so nothing that was committed since
appears, not even what a slow transaction had stamped with an earlier time. Rows with ids beyond all given so far are
from before a dump and restore, where ids began anew: they count as seen.

A page looks at the newest rows of each source (the transactions by time, or the versions of accounts; attempts) and
no further than a number of them, however few the filters let through. It then says how far it has looked.

A snapshot travels in the client's cursor, so it is written small: variable-length integers, each id as its distance to
the one before. A hundred open transactions take about two hundred bytes.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import asyncpg

from ledgerd.engine.commands import ActorInfo
from ledgerd.engine.states import FailedCommand, ReportItem, ReportPlace, ReportScope, ReportStretch
from ledgerd.storage import commit_order, rows
from ledgerd.storage.commit_order import Snapshot
from ledgerd.storage.queries import QUERIES
from ledgerd.times import time_text
from ledgerd_protocol.errors import ERROR_CODES, ErrorCode

LOOK_BEYOND = 1_001
"""Rows looked at beyond those asked for: of the time at which the last page ended there may be a whole call's."""

LOOK_FILTERED = 10_000
"""Rows of each source that a page looks at when it shows one status only."""

_FOREVER = datetime.max  # noqa: DTZ901  what asyncpg writes as infinity
_INSTANT = timedelta(microseconds=1)
_LAST_ID = "ffffffff-ffff-ffff-ffff-ffffffffffff"


async def read(
    connection: asyncpg.Connection,
    scope: ReportScope,
    *,
    created_from: str,
    created_before: str | None,
    after: ReportPlace | None,
    snapshot: bytes | None,
    status: str | None,
    limit: int,
    count: bool,
) -> ReportStretch:
    """A page of a report; see `ledgerd.engine.ports.Books.report`."""
    begins = datetime.fromisoformat(created_from)
    ends = _FOREVER if created_before is None else datetime.fromisoformat(created_before) - _INSTANT
    who = (
        None if scope.accounts is None else list(scope.accounts),
        scope.all_attempts,
        scope.token_id,
        scope.user_id,
        scope.attempts_of,
    )
    page = (
        *who,
        begins,
        *((ends, _LAST_ID, True) if after is None else _values(after)),
        None if snapshot is None else unpacked(snapshot).text,
        status,
        limit,
        limit + LOOK_BEYOND if status is None else max(limit + LOOK_BEYOND, LOOK_FILTERED),
    )
    if not count:
        return _stretch(await connection.fetch(QUERIES["report"], *page), total=None)
    # One snapshot for both, so that the number is that of the pages.
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        found = await connection.fetch(QUERIES["report"], *page)
        total = await connection.fetchval(QUERIES["report_total"], *who, begins, ends, status)
    return _stretch(found, total=total)


def _values(after: ReportPlace) -> tuple[datetime, str, bool]:
    moment = datetime.fromisoformat(after.created_at)
    if after.item_id is None:
        return moment - _INSTANT, _LAST_ID, True
    return moment, after.item_id, after.failed


def _stretch(found: list[asyncpg.Record], *, total: int | None) -> ReportStretch:
    edge = found[0]["edge"]
    return ReportStretch(
        items=[_item(row) for row in found if row["failed"] is not None],
        snapshot=packed(commit_order.parse(found[0]["now"])),
        edge=None if edge is None else time_text(edge),
        total=total,
    )


def _item(row: Any) -> ReportItem:
    return _failed(row) if row["failed"] else rows.present_record(row)


def _failed(row: Any) -> FailedCommand:
    code = row["code"]
    return FailedCommand(
        attempt_id=str(row["attempt_id"]),
        transaction_id=str(row["attempt_transaction_id"]),
        kind=row["attempt_kind"],
        # A newer daemon on the same database may refuse for reasons that this one does not know.
        code=ERROR_CODES.get(code) or ErrorCode.of_wire(code, "unknown_error", retryable=False, sentence="Refused."),
        amount=row["attempt_amount"],
        currency=row["attempt_currency"],
        scale=row["attempt_scale"],
        debit_account=_named(row["attempt_debit_account"]),
        credit_account=_named(row["attempt_credit_account"]),
        reference=row["attempt_reference"],
        reason=row["attempt_reason"],
        created_at=time_text(row["attempt_created_at"]),
        actor=ActorInfo(row["attempt_token"], row["attempt_user"], tuple(sorted(row["attempt_scopes"] or ()))),
    )


def _named(account_id: int | None) -> int | None:
    """Null is the world, 0 an account that was named and does not exist."""
    return account_id or None


# -- snapshots, small ---------------------------------------------------------------------------------------------


def packed(snapshot: Snapshot) -> bytes:
    """The snapshot in few bytes."""
    numbers = [snapshot.lowest, snapshot.next - snapshot.lowest]
    before = snapshot.lowest
    for unfinished in snapshot.unfinished:
        numbers.append(unfinished - before)
        before = unfinished
    return b"".join(map(_variable, numbers))


def unpacked(data: bytes) -> Snapshot:
    """The snapshot that `packed` was given."""
    numbers: list[int] = []
    value = shift = 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(value)
            value = shift = 0
    lowest, length, *steps = numbers
    unfinished: list[int] = []
    for step in steps:
        unfinished.append((unfinished[-1] if unfinished else lowest) + step)
    return Snapshot(lowest, lowest + length, tuple(unfinished))


def _variable(number: int) -> bytes:
    """Seven bits per byte, the lowest first; the highest bit says that there are more."""
    made = bytearray()
    while number >= 0x80:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)
