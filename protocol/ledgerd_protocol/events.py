"""What a subscription delivers: the `result` member of a `ledger_subscription` notification.

A `stream` subscription delivers every version of an account exactly once, in order, each one higher than the last.
Clients ignore event types they do not know.
"""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from ledgerd_protocol.results import Transaction


class AccountStart(Struct, frozen=True, omit_defaults=True, rename={"origin": "from"}):
    """Where a followed account stands as the subscription begins.

    `from` is `snapshot` (these values are the state; updates follow from version + 1) or `resumed` (the updates the
    client missed follow, up to `version` and on). `reason` says why a resume became a snapshot.
    """

    account_id: int
    origin: Literal["snapshot", "resumed"]
    version: int
    balance: str
    held: str
    available: str
    currency: str
    reason: str | UnsetType = UNSET


class Start(Struct, frozen=True, omit_defaults=True, tag="start", tag_field="type"):
    """The first event of a subscription. Several follow one another when there are many accounts; `more` says so.

    With `all` there are no accounts, but a `position` to resume from. A `reason` says why it could not be resumed where
    the client stopped, and goes on from now.
    """

    epoch: str
    accounts: list[AccountStart]
    more: bool | UnsetType = UNSET
    position: str | UnsetType = UNSET
    reason: str | UnsetType = UNSET


class Live(Struct, frozen=True, tag="live", tag_field="type"):
    """What was missed has been delivered; from here events come as they are committed."""


class Update(Struct, frozen=True, omit_defaults=True, tag="update", tag_field="type"):
    """One version of one account. Amounts are decimal text in `currency`. With `all` there is a `position`: resuming
    from it may repeat some events, and misses none.
    """

    account_id: int
    version: int
    balance: str
    held: str
    available: str
    currency: str
    balance_change: str
    held_change: str
    transaction_id: str
    kind: str
    created_at: str
    skipped: int | UnsetType = UNSET
    position: str | UnsetType = UNSET


class TransactionEvent(Struct, frozen=True, omit_defaults=True, tag="transaction", tag_field="type"):
    """One transaction, once, in an order that respects the versions of every followed account.

    With `all` there is a `position`, as in `update`.
    """

    transaction: Transaction
    position: str | UnsetType = UNSET


class AccountAdded(Struct, frozen=True, tag="account_added", tag_field="type"):
    """A new account of the followed user; its updates follow from version 1."""

    account: AccountStart


class Heartbeat(Struct, frozen=True, tag="heartbeat", tag_field="type"):
    """Nothing happened for heartbeat_ms; these are the versions delivered so far, by account id."""

    versions: dict[int, int]


class Closed(Struct, frozen=True, tag="closed", tag_field="type"):
    """The daemon ended the subscription; `code` is an error's stable string."""

    code: str


Event = Start | Live | Update | TransactionEvent | AccountAdded | Heartbeat | Closed
