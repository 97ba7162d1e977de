"""How a connection ends."""

from __future__ import annotations

from msgspec import Struct


class Close(Struct, frozen=True):
    """The close code and reason.

    ``urgent``: what is in the outbox is not waited for. ``by_peer``: the other side has closed or is gone, there is
    nobody to send a close frame to. ``hang_up``: its answer to the close frame is not waited for, nor what it still
    sends read: that is what somebody who floods the daemon is closed for.
    """

    code: int
    reason: str
    urgent: bool = False
    by_peer: bool = False
    hang_up: bool = False


PEER_IS_GONE = Close(1006, "the peer is gone", by_peer=True)
