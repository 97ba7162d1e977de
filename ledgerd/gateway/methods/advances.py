"""Methods about advances: funds now, paid back in payments. What collects the payments is `ledgerd.engine.collector`.

The commands answer the advance as it is afterwards, beside the transaction that was posted; sent again, the present
advance beside the stored transaction.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET

from ledgerd.engine.commands import AccountRef, Command, Outcome, Refused
from ledgerd.engine.views import advance_view, visible
from ledgerd.gateway.access import invalid, not_found, own_ref, seen_account
from ledgerd.gateway.call import Call, Handler, Money, Plan, Read
from ledgerd.gateway.methods.commands import make_command, outcome_result
from ledgerd.gateway.methods.pages import page_of
from ledgerd.gateway.methods.sizes import ADVANCE_BYTES_MAX, EVENTS_SHOWN_MAX, PAYMENTS_LISTED_MAX, PAYMENTS_SHOWN_MAX
from ledgerd_protocol.errors import ErrorCode
from ledgerd_protocol.messages import AdvanceGet, AdvanceList, AdvanceRepay, AdvanceRequest
from ledgerd_protocol.money import to_text
from ledgerd_protocol.results import Advance, Page, Transaction

LISTED_MAX = 200
"""Advances read for one page, whatever limit was asked for: each comes with its payments."""


# -- commands ---------------------------------------------------------------------------------------------------------


def advance_request(call: Call, params: AdvanceRequest) -> Plan:
    """Answer `advance_request`. Money from the world to an account, and the schedule, in one transaction."""
    config = call.desk.config
    if params.installments > config.advance_installments_max:
        raise invalid("/installments", f"At most {config.advance_installments_max}.")
    if params.interval_days > config.advance_interval_days_max:
        raise invalid("/interval_days", f"At most {config.advance_interval_days_max}.")
    command = make_command(
        call,
        "advance",
        params,
        credit=own_ref(call.principal, params.account_id, params.user_id),
        amount=params.amount,
        installments=params.installments,
        interval_days=params.interval_days,
    )
    return _plan(command, command.transaction_id)


def advance_repay(call: Call, params: AdvanceRepay) -> Plan:
    """Answer `advance_repay`. Money from the account that had the advance, whoever asks for it."""
    command = make_command(
        call,
        "advance_payment",
        params,
        debit=AccountRef(receiver_of=params.advance_id),
        amount=params.amount,
        refers_to=params.advance_id,
    )
    return _plan(command, params.advance_id)


def _plan(command: Command, advance_id: str) -> Plan:
    transaction: list[Transaction] = []

    def conclude(outcomes: list[Outcome]) -> None:
        transaction[:] = [outcome_result(command, _explained(command, outcomes[0]))]

    async def advance_after(call: Call) -> Advance:
        state = await call.desk.books.advance(advance_id, payments_max=PAYMENTS_LISTED_MAX, events_max=0)
        if state is None:
            raise not_found("advance")
        return advance_view(state, transaction=transaction[0])

    return Plan([command], conclude, afterwards=advance_after)


def _explained(command: Command, outcome: Outcome) -> Outcome:
    """A refusal of the amount says which amounts there are; others are left as they are."""
    if not isinstance(outcome, Refused) or outcome.code is not ErrorCode.AMOUNT_OUT_OF_RANGE:
        return outcome
    data: dict[str, Any] = dict(outcome.data or {})
    facts, amount, payments = command.credit_facts, command.amount_minor, command.installments
    if "remaining" in data:
        left = to_text(data["remaining"], outcome.scale)
        return msgspec.structs.replace(outcome, detail=f"The advance asks for {left} more and not for as much as this.")
    if payments is not None and facts is not None and amount is not None and 0 < amount < payments:
        smallest = to_text(payments, facts.scale)
        detail = f"Too small to divide: {payments} payments take at least {smallest} {facts.currency}."
        return msgspec.structs.replace(outcome, data={**data, "smallest": smallest}, detail=detail)
    return outcome


# -- reads ------------------------------------------------------------------------------------------------------------


async def advance_get(call: Call, params: AdvanceGet) -> Advance:
    """Answer `advance_get`."""
    books = call.desk.books
    state = await books.advance(params.advance_id, payments_max=PAYMENTS_SHOWN_MAX, events_max=EVENTS_SHOWN_MAX)
    if state is None or not visible(call.principal, state):
        raise not_found("advance")
    return advance_view(state, events=True)


async def advance_list(call: Call, params: AdvanceList) -> Page:
    """Answer `advance_list`: an account's advances, the newest first. New ones never appear while paging."""
    books = call.desk.books
    facts = await seen_account(call, own_ref(call.principal, params.account_id, params.user_id), params.currency)
    status = None if params.status is UNSET else params.status
    return await page_of(
        call,
        "advance_list",
        [facts.account_id, status],
        params.cursor,
        limit=min(params.limit, LISTED_MAX),
        read=lambda before, limit: books.advances(
            facts.account_id,
            running=None if status is None else status == "active",
            before=None if before is None else (before[0], before[1]),
            limit=limit,
            payments_max=PAYMENTS_LISTED_MAX,
        ),
        view=advance_view,
        key=lambda row: [row.created_at, row.advance_id],
    )


METHODS: dict[str, Handler] = {
    "advance_request": Money(advance_request),
    "advance_get": Read(advance_get, ADVANCE_BYTES_MAX),
    "advance_list": Read(advance_list, None),
    "advance_repay": Money(advance_repay),
}
