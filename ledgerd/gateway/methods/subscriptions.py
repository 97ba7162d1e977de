"""Methods of the live feed. Delivery is the hub's; here is who may follow what, and how much."""

from __future__ import annotations

from msgspec import UNSET

from ledgerd.engine.commands import AccountRef, Principal
from ledgerd.engine.states import AccountState
from ledgerd.gateway.access import invalid, manages, not_found, owns, seen_user
from ledgerd.gateway.call import Call, Handler, Now, Read, Reply
from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.messages import LedgerSubscribe, LedgerUnsubscribe, Since, SubscribeOptions


async def ledger_subscribe(call: Call, params: LedgerSubscribe) -> Reply:
    """Answer `ledger_subscribe`. The reply is on its way before the hub is asked: the first event follows it."""
    caller, desk, principal, options = call.caller, call.desk, call.principal, params.options
    _check_options(principal, params)
    _check_room(call)
    # Read before the reply: what is committed after it is seen.
    here = await desk.books.here() if options.all else None
    accounts = [] if options.all or params.channel == "alerts" else await _followed(call, options)
    if len(accounts) > desk.config.accounts_per_subscription_max:
        raise LedgerError(ErrorCode.TOO_MANY_SUBSCRIPTIONS)
    _check_room(call)  # others were asked for meanwhile
    if caller.principal is not principal:
        raise LedgerError(ErrorCode.UNAUTHENTICATED)
    subscription_id = caller.next_subscription_id()

    def begin() -> None:
        caller.subscriptions[subscription_id] = desk.hub.subscribe(
            caller, subscription_id, principal, params.channel, options, accounts, here
        )

    return Reply(subscription_id, begin)


def _check_options(principal: Principal, params: LedgerSubscribe) -> None:
    options = params.options
    if options.all and not manages(principal):
        raise LedgerError(ErrorCode.PERMISSION_DENIED)
    named = (options.account_ids is not UNSET) + (options.user_id is not UNSET) + options.all
    if named > 1:
        raise invalid("/options", "Give at most one of account_ids, user_id, all.")
    if params.channel == "alerts":
        if not manages(principal):
            raise LedgerError(ErrorCode.PERMISSION_DENIED)
        if named or options.since is not UNSET:
            raise invalid("/options", "Alerts are of no account: give none of account_ids, user_id, all, since.")
    if options.mode == "latest" and params.channel != "balances":
        raise invalid("/options/mode", "Only balances can be followed with mode latest.")
    if options.all and params.channel == "advances":
        raise invalid("/options/all", "Advances are followed by their accounts.")
    since = options.since
    if since is UNSET:
        return
    if params.channel == "advances":
        _check_since_advances(since)
        return
    if since.advances is not UNSET:
        raise invalid("/options/since/advances", "Only the channel of advances is resumed from their events.")
    if options.all and since.versions:
        raise invalid("/options/since/versions", "All is resumed from a position.")
    if options.all and since.position is UNSET:
        raise invalid("/options/since/position", "Give the position of the last event.")
    if not options.all and since.position is not UNSET:
        raise invalid("/options/since/position", "Only all is resumed from a position.")
    if not options.all and since.versions is UNSET:
        raise invalid("/options/since/versions", "Give the last version of each account.")


def _check_since_advances(since: Since) -> None:
    if since.versions is not UNSET or since.position is not UNSET:
        raise invalid("/options/since", "Advances are resumed from the numbers of their events.")
    if since.advances is UNSET:
        raise invalid("/options/since/advances", "Give the last event of each advance.")


def _check_room(call: Call) -> None:
    subscriptions = call.caller.subscriptions
    for name in [name for name, subscription in subscriptions.items() if subscription.closed]:
        del subscriptions[name]
    if len(subscriptions) >= call.desk.config.subscriptions_per_connection_max:
        raise LedgerError(ErrorCode.TOO_MANY_SUBSCRIPTIONS)


async def _followed(call: Call, options: SubscribeOptions) -> list[AccountState]:
    """The accounts to follow. One that the caller may not see refuses the subscription."""
    principal, desk = call.principal, call.desk
    most = desk.config.accounts_per_subscription_max
    if options.account_ids is not UNSET:
        account_ids = sorted(set(options.account_ids))
        if len(account_ids) > most:
            raise LedgerError(ErrorCode.TOO_MANY_SUBSCRIPTIONS)
        await _check_seen(call, account_ids)
        return await desk.books.account_states(account_ids)
    if principal.account_id is not None:
        if options.user_id not in (UNSET, principal.user_id):
            raise not_found("user")
        return await desk.books.account_states([principal.account_id])
    user_id = seen_user(principal, options.user_id)
    return list(await desk.books.accounts(user_id, 0, most + 1))


async def _check_seen(call: Call, account_ids: list[int]) -> None:
    currency = call.desk.config.default_currency
    found = await call.desk.directory.find([(AccountRef(account_id=number), currency) for number in account_ids])
    if not all(owns(call.principal, facts) for facts in found):
        raise not_found("account")


def ledger_unsubscribe(call: Call, params: LedgerUnsubscribe) -> bool:
    """Answer `ledger_unsubscribe`. What the hub pushed before is in front of the answer; nothing comes after it."""
    subscription = call.caller.subscriptions.pop(params.subscription, None)
    if subscription is None or subscription.closed:
        raise LedgerError(ErrorCode.SUBSCRIPTION_NOT_FOUND)
    call.desk.hub.unsubscribe(subscription)
    return True


METHODS: dict[str, Handler] = {
    "ledger_subscribe": Read(ledger_subscribe, 64),
    "ledger_unsubscribe": Now(ledger_unsubscribe, 64),
}
