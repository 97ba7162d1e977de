"""The report: all transactions and refused attempts that the caller may see, of at most the last five days.

All its pages show the books as they were when the first one was read: the cursor carries what had been committed by
then, so nothing appears later, not even what a slow transaction had stamped with an earlier time. Only the status of
what is shown is the present one.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from msgspec import UNSET

from ledgerd.engine.commands import Principal
from ledgerd.engine.states import FailedCommand, ReportPlace, ReportScope, ReportStretch
from ledgerd.engine.views import report_item
from ledgerd.gateway.access import invalid, own_ref, seen_account
from ledgerd.gateway.call import Call, Read
from ledgerd.gateway.clock import now_text, text_of, utc_text
from ledgerd.gateway.methods.pages import fitting, whose
from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.messages import REPORT_CURSOR_MAX, TransactionReport
from ledgerd_protocol.results import ReportPage

WIDTH_MAX = timedelta(days=5)
CLOCKS_DIFFER = timedelta(minutes=1)
"""A report of the last five days by the clock of the client is one by ours."""

ACCOUNTS_MAX = 256
"""Accounts of one user that one report goes through: one per currency, and there are fewer than two hundred."""

_AROUND_ITEMS_BYTES = REPORT_CURSOR_MAX + 256
"""The members of a page beside its items."""


async def transaction_report(call: Call, params: TransactionReport) -> ReportPage:
    """Answer `transaction_report`."""
    principal, desk = call.principal, call.desk
    created_from = None if params.created_from is UNSET else utc_text(params.created_from, "/created_from")
    created_before = None if params.created_before is UNSET else utc_text(params.created_before, "/created_before")
    if params.cursor is UNSET:
        begins = _begin(created_from, created_before)
    scope = await _scope(call, params)
    status = None if params.status is UNSET else params.status
    filters: list[Any] = [scope.attempts_of, status, created_from, created_before, *whose(principal)]
    snapshot, total, after, as_of = None, None, None, now_text()
    if params.cursor is not UNSET:
        position = desk.cursors.read("transaction_report", filters, params.cursor)
        begins, snapshot, total, at, item_id, failed, as_of = position
        after = ReportPlace(at, item_id, failed)
    found = await desk.books.report(
        scope,
        created_from=begins,
        created_before=created_before,
        after=after,
        snapshot=snapshot,
        status=status,
        limit=params.limit + 1,
        count=params.with_total and after is None,
    )
    if after is None:
        snapshot, total = found.snapshot, found.total
    items, done = fitting(
        call,
        found.items,
        limit=params.limit,
        view=lambda item: report_item(item, principal),
        around_bytes=_AROUND_ITEMS_BYTES,
    )
    place = _ended(found, done)
    cursor = None
    if place is not None:
        position = [begins, snapshot, total, place.created_at, place.item_id, place.failed, as_of]
        cursor = desk.cursors.write("transaction_report", filters, position)
        if len(cursor) > REPORT_CURSOR_MAX:
            raise LedgerError(ErrorCode.OVERLOADED, "Too many transactions are open in the database to page a report.")
    return ReportPage(
        items=items,
        next_cursor=cursor,
        as_of=as_of,
        total_items=total,
        total_pages=None if total is None else -(-total // params.limit),
    )


def _ended(found: ReportStretch, done: int) -> ReportPlace | None:
    """Where a page ends that shows the first items; None if nothing follows."""
    if done == len(found.items):
        return None if found.edge is None else ReportPlace(found.edge, None)
    last = found.items[done - 1]
    if isinstance(last, FailedCommand):
        return ReportPlace(last.created_at, last.attempt_id, failed=True)
    return ReportPlace(last.created_at, last.transaction_id)


def _begin(created_from: str | None, created_before: str | None) -> str:
    """When the report begins. Raises LedgerError ``invalid_params`` if that is not within the last five days."""
    now = datetime.now(UTC)
    before = None if created_before is None else datetime.fromisoformat(created_before)
    if created_from is None:
        earliest = max(now, before or now) - WIDTH_MAX
        if before is not None and before < earliest:
            raise invalid("/created_before", "A report goes back five days at most, and this is earlier.")
        return text_of(earliest.timestamp())
    begins = datetime.fromisoformat(created_from)
    if begins < now - WIDTH_MAX - CLOCKS_DIFFER:
        raise invalid("/created_from", "A report goes back five days at most.")
    if before is not None and before < begins:
        raise invalid("/created_before", "The report would end before it begins.")
    if before is not None and before - begins > WIDTH_MAX:
        raise invalid("/created_before", "A report is about five days at most.")
    return created_from


# -- what the caller may see ------------------------------------------------------------------------------------------


async def _scope(call: Call, params: TransactionReport) -> ReportScope:
    """What is reported: one account, or everything, or all accounts of the caller's user.

    Raises LedgerError ``not_found``, ``currency_mismatch`` or ``invalid_params``.
    """
    principal = call.principal
    named = any(value is not UNSET for value in (params.account_id, params.user_id, params.currency))
    accounts: tuple[int, ...] | None = None
    attempts_of = None
    if named or principal.account_id is not None:
        facts = await seen_account(call, own_ref(principal, params.account_id, params.user_id), params.currency)
        attempts_of = facts.account_id
        accounts = (attempts_of,)
    elif not principal.sees_all:
        accounts = await _own_accounts(call, principal)
    return ReportScope(
        accounts=accounts,
        all_attempts=principal.sees_all,
        token_id=principal.token_id,
        user_id=principal.user_id,
        attempts_of=attempts_of,
    )


async def _own_accounts(call: Call, principal: Principal) -> tuple[int, ...]:
    if principal.user_id is None:
        return ()
    states = await call.desk.books.accounts(principal.user_id, 0, ACCOUNTS_MAX + 1)
    if len(states) > ACCOUNTS_MAX:
        raise invalid("/account_id", f"Name one: the user has more than {ACCOUNTS_MAX} accounts.")
    return tuple(state.account_id for state in states)


METHODS = {"transaction_report": Read(transaction_report, None)}
