"""Methods about money held back, and the reversal of money that moved.

What ends a hold or reverses a transaction names no accounts: they are those of the transaction it refers to. Here they
are named as the sides of that, so that the command finds the worker of the account the money leaves.
"""

from __future__ import annotations

from msgspec import UNSET

from ledgerd.engine.commands import AccountRef, Command
from ledgerd.gateway.access import own_ref
from ledgerd.gateway.call import Call
from ledgerd.gateway.methods.commands import Build, make_command, one
from ledgerd_protocol.messages import HoldCapture, HoldPlace, HoldRelease, TransactionReverse


def hold_command(call: Call, params: HoldPlace) -> Command:
    """Money of an account held back, for a destination or the world."""
    destination = params.destination_account_id
    return make_command(
        call,
        "hold",
        params,
        debit=own_ref(call.principal, params.account_id, params.user_id),
        credit=None if destination is UNSET else AccountRef(account_id=destination),
        amount=params.amount,
        expires_in_s=params.expires_in_s,
    )


def capture_command(call: Call, params: HoldCapture) -> Command:
    """The money of a hold, or a part of it, taken."""
    hold_id = params.hold_id
    return make_command(
        call,
        "capture",
        params,
        debit=AccountRef(payer_of=hold_id),
        credit=AccountRef(receiver_of=hold_id),
        amount=params.amount,
        refers_to=hold_id,
    )


def release_command(call: Call, params: HoldRelease) -> Command:
    """The money of a hold given free."""
    return make_command(call, "release", params, debit=AccountRef(payer_of=params.hold_id), refers_to=params.hold_id)


def reversal_command(call: Call, params: TransactionReverse) -> Command:
    """What a transaction moved, or a part of it, moved back: it leaves the account that received it."""
    original = params.original_transaction_id
    return make_command(
        call,
        "reversal",
        params,
        debit=AccountRef(receiver_of=original),
        credit=AccountRef(payer_of=original),
        amount=params.amount,
        refers_to=original,
    )


COMMANDS: dict[str, Build] = {
    "hold_place": hold_command,
    "hold_capture": capture_command,
    "hold_release": release_command,
    "transaction_reverse": reversal_command,
}
"""What is one command, and may stand in a batch of them."""

METHODS = {name: one(build) for name, build in COMMANDS.items()}
