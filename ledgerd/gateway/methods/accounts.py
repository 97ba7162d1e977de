"""Methods about accounts and their balances.

What changes an account (its limit, its status) is a money command: it takes a version, and is answered with the account
as it is afterwards.
"""

from __future__ import annotations

import trio
from msgspec import UNSET

from ledgerd.engine.states import AccountState, BalanceState
from ledgerd.engine.views import account_view, balance_view
from ledgerd.gateway.access import currency_scale, managed_user, not_found, own_ref, seen_account, seen_user
from ledgerd.gateway.call import Call, Handler, Money, Plan, Read
from ledgerd.gateway.clock import utc_text
from ledgerd.gateway.methods.commands import make_command, plan_one
from ledgerd.gateway.methods.pages import number_in, page_of
from ledgerd.gateway.methods.sizes import ACCOUNT_BYTES_MAX
from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.messages import (
    AccountGet,
    AccountList,
    AccountOpen,
    AccountSetLimit,
    AccountStatusParams,
    BalanceGet,
)
from ledgerd_protocol.results import Account, Balance, Page

MIN_VERSION_POLL_S = 0.05
"""Between two looks at an account that has not reached the wanted version."""


async def account_open(call: Call, params: AccountOpen) -> Account:
    """Answer `account_open`."""
    principal, desk = call.principal, call.desk
    if principal.account_id is not None:
        raise LedgerError(ErrorCode.PERMISSION_DENIED, "A token of one account may not open another.")
    user_id = managed_user(principal, params.user_id)
    scale = currency_scale(call, params.currency)
    state = await desk.books.open_account(user_id=user_id, currency=params.currency, scale=scale)
    desk.hub.announce_account(state)
    return account_view(state)


async def account_get(call: Call, params: AccountGet) -> Account:
    """Answer `account_get`."""
    ref = own_ref(call.principal, params.account_id, params.user_id)
    facts = await seen_account(call, ref, params.currency)
    return account_view(await _state(call, facts.account_id))


async def _state(call: Call, account_id: int) -> AccountState:
    states = await call.desk.books.account_states([account_id])
    if not states:
        raise not_found("account")
    return states[0]


async def account_list(call: Call, params: AccountList) -> Page:
    """Answer `account_list`. Who sees everything lists everybody's by leaving user_id out."""
    principal, books = call.principal, call.desk.books
    everybody = principal.sees_all and params.user_id is UNSET
    user_id = None if everybody else seen_user(principal, params.user_id)
    return await page_of(
        call,
        "account_list",
        [user_id, principal.account_id],
        params.cursor,
        limit=params.limit,
        read=lambda after, limit: books.accounts(user_id, number_in(after), limit),
        view=lambda row: account_view(row) if principal.account_id in (None, row.account_id) else None,
        key=lambda row: [row.account_id],
    )


# -- changes of an account --------------------------------------------------------------------------------------------


def _changed(call: Call, kind: str, params: AccountSetLimit | AccountStatusParams) -> Plan:
    """The plan of a command about one account, answered with the account afterwards."""
    ref = own_ref(call.principal, params.account_id, params.user_id)
    amount = params.overdraft_limit if isinstance(params, AccountSetLimit) else UNSET
    plan = plan_one(make_command(call, kind, params, debit=ref, amount=amount))

    async def account_after(call: Call) -> Account:
        facts = await seen_account(call, ref, params.currency)
        return account_view(await _state(call, facts.account_id))

    plan.afterwards = account_after
    return plan


def _change(kind: str) -> Money:
    """The method that changes an account by a command of this kind."""

    def plan(call: Call, params: AccountSetLimit | AccountStatusParams) -> Plan:
        return _changed(call, kind, params)

    return Money(plan)


# -- balances ---------------------------------------------------------------------------------------------------------


async def balance_get(call: Call, params: BalanceGet) -> Balance:
    """Answer `balance_get`: now, at a time, after a version, or as soon as a version is reached."""
    ref = own_ref(call.principal, params.account_id, params.user_id)
    at = None if params.at is UNSET else utc_text(params.at, "/at")
    facts = await seen_account(call, ref, params.currency)
    if at is None and params.version is UNSET:
        wanted = 0 if params.min_version is UNSET else params.min_version
        return balance_view(_balance(await _reached(call, facts.account_id, wanted)))
    version = None if params.version is UNSET else params.version
    balance = await call.desk.books.balance_at(facts.account_id, version=version, at=at)
    if balance is None:
        raise not_found("balance")
    return balance_view(balance)


async def _reached(call: Call, account_id: int, version: int) -> AccountState:
    """The account, once it has the version. Raises LedgerError ``timeout`` after ``min_version_wait_s``."""
    give_up_at = trio.current_time() + call.desk.config.min_version_wait_s
    while True:
        state = await _state(call, account_id)
        if state.version >= version:
            return state
        if trio.current_time() >= give_up_at:
            raise LedgerError(ErrorCode.TIMEOUT, "The account has not reached that version yet.", version=state.version)
        await trio.sleep(MIN_VERSION_POLL_S)


def _balance(state: AccountState) -> BalanceState:
    return BalanceState(
        account_id=state.account_id,
        user_id=state.user_id,
        currency=state.currency,
        scale=state.scale,
        balance=state.balance,
        held=state.held,
        available=state.available,
        version=state.version,
        as_of=state.updated_at,
    )


METHODS: dict[str, Handler] = {
    "account_open": Read(account_open, ACCOUNT_BYTES_MAX),
    "account_get": Read(account_get, ACCOUNT_BYTES_MAX),
    "account_list": Read(account_list, None),
    "account_set_limit": _change("limit"),
    "account_freeze": _change("freeze"),
    "account_unfreeze": _change("unfreeze"),
    "account_close": _change("close"),
    "balance_get": Read(balance_get, 512),
}
