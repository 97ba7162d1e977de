"""Methods that move money: each plans a command, nothing here waits or touches a balance.

Authorisation looks at the account the money leaves, after `direction` is applied: that side is ``debit`` in a command
of kind debit, transfer, limit and cancel; a credit has only the side it reaches.
"""

from __future__ import annotations

from ledgerd.engine.commands import Command
from ledgerd.gateway.access import other_ref, own_ref
from ledgerd.gateway.call import Call
from ledgerd.gateway.methods.commands import Build, make_command, one
from ledgerd_protocol.messages import Credit, Debit, TransactionCancel, Transfer


def credit_command(call: Call, params: Credit) -> Command:
    """Money from the world to an account."""
    ref = own_ref(call.principal, params.account_id, params.user_id)
    return make_command(call, "credit", params, credit=ref, amount=params.amount)


def debit_command(call: Call, params: Debit) -> Command:
    """Money from an account to the world."""
    ref = own_ref(call.principal, params.account_id, params.user_id)
    return make_command(call, "debit", params, debit=ref, amount=params.amount)


def transfer_command(call: Call, params: Transfer) -> Command:
    """Money between two accounts; the side it leaves may be left out and is then the caller's own."""
    principal = call.principal
    if params.direction == "debit":
        pays = own_ref(principal, params.source_account_id, params.source_user_id, "/source_account_id")
        gets = other_ref(params.destination_account_id, params.destination_user_id, "/destination_account_id")
    else:
        pays = own_ref(principal, params.destination_account_id, params.destination_user_id, "/destination_account_id")
        gets = other_ref(params.source_account_id, params.source_user_id, "/source_account_id")
    return make_command(call, "transfer", params, debit=pays, credit=gets, amount=params.amount)


def cancel_command(call: Call, params: TransactionCancel) -> Command:
    """No money, ever, under this transaction_id."""
    ref = own_ref(call.principal, params.account_id, params.user_id)
    return make_command(call, "cancel", params, debit=ref)


COMMANDS: dict[str, Build] = {
    "credit": credit_command,
    "debit": debit_command,
    "transfer": transfer_command,
}
"""What is one command, and may stand in a batch of them."""

METHODS = {
    **{name: one(build) for name, build in COMMANDS.items()},
    "transaction_cancel": one(cancel_command),
}
