"""The table of methods: every name of the protocol and what answers it, one module per noun."""

from __future__ import annotations

from ledgerd.gateway.call import Handler
from ledgerd.gateway.methods import (
    accounts,
    advances,
    batches,
    holds,
    money,
    monitors,
    reports,
    sessions,
    subscriptions,
    system,
    transactions,
    users,
    wallet,
)
from ledgerd_protocol.methods import METHODS

HANDLERS: dict[str, Handler] = {
    **system.METHODS,
    **sessions.METHODS,
    **users.METHODS,
    **accounts.METHODS,
    **money.METHODS,
    **holds.METHODS,
    **batches.METHODS,
    **transactions.METHODS,
    **reports.METHODS,
    **advances.METHODS,
    **monitors.METHODS,
    **wallet.METHODS,
    **subscriptions.METHODS,
}

assert HANDLERS.keys() == METHODS.keys(), "every method of the protocol has exactly one handler"
