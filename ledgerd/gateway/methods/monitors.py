"""Methods about monitors: who is told when a balance crosses an amount.

Monitors belong to the account, not to a connection. What they tell comes on the channel `monitors`.
"""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET

from ledgerd.engine.commands import AccountFacts, AccountRef
from ledgerd.engine.views import monitor_view, visible
from ledgerd.gateway.access import invalid, not_found, own_ref, seen_account, seen_user
from ledgerd.gateway.call import Call, Read
from ledgerd.gateway.methods.pages import number_in, page_of
from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.messages import MonitorList, MonitorRemove, MonitorSet
from ledgerd_protocol.money import AmountOutOfRange, AmountPrecision, amount_text, to_minor
from ledgerd_protocol.results import Monitor, Page, Removed

MONITOR_BYTES_MAX = 2_560
"""A label of 255 characters may be as many times 6 bytes."""


async def monitor_set(call: Call, params: MonitorSet) -> Monitor:
    """Answer `monitor_set`."""
    desk, principal = call.desk, call.principal
    if params.below is UNSET and params.above is UNSET:
        raise invalid("/below", "Give below or above.")
    ref = own_ref(principal, params.account_id, params.user_id)
    facts = await seen_account(call, ref, params.currency)
    direction, amount = _threshold(params, facts)
    if not desk.hub.has_room_for_monitor():
        raise LedgerError(ErrorCode.LIMIT_EXCEEDED, "The ledger has as many monitors as it may.", resource="monitor")
    state = await desk.books.set_monitor(
        account_id=facts.account_id,
        direction=direction,
        amount=amount,
        label=None if params.label is UNSET else params.label,
        token_id=principal.token_id,
        per_account_max=desk.config.monitors_per_account_max,
    )
    desk.hub.learn_monitor(state)
    return monitor_view(state)


def _threshold(params: MonitorSet, facts: AccountFacts) -> tuple[Literal["below", "above"], int]:
    """Direction and minor units of what was asked for. Zero is an amount here."""
    try:
        if params.below is not UNSET:
            return "below", to_minor(amount_text(params.below), facts.scale, zero_allowed=True)
        assert params.above is not UNSET
        return "above", to_minor(amount_text(params.above), facts.scale, zero_allowed=True)
    except AmountPrecision:
        raise LedgerError(ErrorCode.AMOUNT_PRECISION) from None
    except AmountOutOfRange:
        detail = "The amount must not be negative, and below 10^18 minor units."
        raise LedgerError(ErrorCode.AMOUNT_OUT_OF_RANGE, detail) from None


async def monitor_list(call: Call, params: MonitorList) -> Page:
    """Answer `monitor_list`. Who sees everything lists everybody's by naming neither account nor user."""
    principal, books = call.principal, call.desk.books
    account_id, user_id = await _listed(call, params)
    return await page_of(
        call,
        "monitor_list",
        [user_id, account_id],
        params.cursor,
        limit=params.limit,
        read=lambda after, limit: books.monitors(user_id, account_id, number_in(after), limit),
        view=lambda row: monitor_view(row) if visible(principal, row) else None,
        key=lambda row: [row.monitor_id],
    )


async def _listed(call: Call, params: MonitorList) -> tuple[int | None, int | None]:
    """The account, or else the user, whose monitors are listed; neither for everybody's."""
    principal = call.principal
    if params.account_id is not UNSET:
        facts = await seen_account(call, AccountRef(account_id=params.account_id), UNSET)
        return facts.account_id, None
    if principal.sees_all and params.user_id is UNSET:
        return None, None
    user_id = seen_user(principal, params.user_id)
    return principal.account_id, user_id


async def monitor_remove(call: Call, params: MonitorRemove) -> Removed:
    """Answer `monitor_remove`. A user does not remove what a service or an operator watches the account with."""
    desk, principal = call.desk, call.principal
    state = await desk.books.monitor(params.monitor_id)
    if state is None or not visible(principal, state):
        raise not_found("monitor")
    if not principal.sees_all and state.set_by != principal.user_id:
        raise LedgerError(ErrorCode.PERMISSION_DENIED, "The monitor was set by somebody else.")
    removed = await desk.books.remove_monitor(params.monitor_id)
    if removed is not None:
        desk.hub.learn_monitor(removed)
    return Removed(removed=0 if removed is None else 1)


METHODS = {
    "monitor_set": Read(monitor_set, MONITOR_BYTES_MAX),
    "monitor_list": Read(monitor_list, None),
    "monitor_remove": Read(monitor_remove, 64),
}
