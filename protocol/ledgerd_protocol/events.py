"""What a subscription delivers: the `result` member of a `ledger_subscription` notification.

A `stream` subscription delivers every version of an account exactly once, in order, each one higher than the last.
Clients ignore event types they do not know.
"""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from ledgerd_protocol.advances import AdvanceEventKind
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


class AdvanceStart(Struct, frozen=True, omit_defaults=True, rename={"origin": "from"}):
    """Where an advance stands as a subscription begins: `event` is the number of its last one.

    With `from` `snapshot` the next events follow from there; with `resumed` those that the client missed come first.
    """

    advance_id: str
    account_id: int
    origin: Literal["snapshot", "resumed"]
    event: int
    outstanding: str
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
    advances: list[AdvanceStart] | UnsetType = UNSET


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


class MonitorCrossed(Struct, frozen=True, omit_defaults=True, tag="monitor", tag_field="type"):
    """A change of the account's balance crossed the amount of a monitor. `balance` is that after the change.

    `more`: the same version crosses another one, which follows. With `all` there is a `position`, as in `update`.
    """

    monitor_id: int
    account_id: int
    version: int
    balance: str
    currency: str
    transaction_id: str
    created_at: str
    below: str | UnsetType = UNSET
    above: str | UnsetType = UNSET
    more: bool | UnsetType = UNSET
    position: str | UnsetType = UNSET


class AlertRaised(Struct, frozen=True, tag="alert", tag_field="type"):
    """Something is wrong, found by this daemon; told again when `detail` changes. Amounts in it are minor units.

    `alert` is `advance_mismatch`: the payments of this advance do not add up, or not to what the ledger's transactions
    say.
    """

    alert: str
    advance_id: str
    detail: str
    created_at: str


class AdvanceHappened(Struct, frozen=True, tag="advance", tag_field="type"):
    """Something happened to an advance. Events of one advance are numbered 1, 2, 3, ... in the order of commits.

    `number` is the payment's, and `outstanding` what the advance asks for after it.
    """

    advance_id: str
    account_id: int
    event: int
    what: AdvanceEventKind
    number: int | None
    amount: str
    outstanding: str
    currency: str
    reason: str | None
    transaction_id: str | None
    created_at: str


class AccountAdded(Struct, frozen=True, tag="account_added", tag_field="type"):
    """A new account of the followed user; its updates follow from version 1."""

    account: AccountStart


class Heartbeat(Struct, frozen=True, omit_defaults=True, tag="heartbeat", tag_field="type"):
    """Nothing happened for heartbeat_ms; these are the versions delivered so far, by account id.

    With `all` there are none, but a `position`, as in `update`.
    """

    versions: dict[int, int]
    position: str | UnsetType = UNSET


class Closed(Struct, frozen=True, tag="closed", tag_field="type"):
    """The daemon ended the subscription; `code` is an error's stable string."""

    code: str


class Notice(Struct, frozen=True):
    """The params of a `ledger_session` notification, which is about the connection and not part of a subscription.

    ``type`` is `expiring` (the token will, at ``expires_at``) or `going_away` (the daemon is about to stop).
    """

    type: str
    expires_at: str | UnsetType = UNSET


Event = (
    Start
    | Live
    | Update
    | TransactionEvent
    | MonitorCrossed
    | AdvanceHappened
    | AlertRaised
    | AccountAdded
    | Heartbeat
    | Closed
)
