"""Events made ready to send: what a thousand subscribers are told is encoded once."""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from ledgerd.engine.commands import Principal, Record, Side
from ledgerd.engine.monitors import Monitor
from ledgerd.engine.views import monitor_event, transaction_view, update_event, visible
from ledgerd_protocol.codec import encode_event, event_frame
from ledgerd_protocol.events import TransactionEvent


class Rendering:
    """The events of one record: each encoded once, and framed once per subscription id.

    Subscription ids count per connection, so a thousand subscribers of an account mostly share one frame. Those who
    follow everything are also told a ``position`` to resume from.
    """

    __slots__ = ("_events", "_frames", "_position", "record")

    def __init__(self, record: Record, position: str | UnsetType = UNSET) -> None:
        self.record = record
        self._position = position
        self._events: dict[tuple[int, int], bytes] = {}
        self._frames: dict[tuple[int, int, str], bytes] = {}

    def update(self, side: Side, subscription_id: str, skipped: int = 0) -> bytes:
        """The frame of the change of one account."""
        key = (side.account_id, skipped, subscription_id)
        frame = self._frames.get(key)
        if frame is None:
            event = self._events.get(key[:2])
            if event is None:
                update = update_event(self.record, side, skipped=skipped, position=self._position)
                event = self._events[key[:2]] = encode_event(update)
            frame = self._frames[key] = event_frame(subscription_id, event)
        return frame

    def transaction(self, principal: Principal, subscription_id: str) -> bytes:
        """The frame of the transaction, as this principal sees it."""
        # All who see the same look the same: the sides they see, and whether they are told who acted.
        sight = 1 if "operator" in principal.scopes else 0
        for bit, side in enumerate(self.record.sides, start=1):
            if visible(principal, side):
                sight |= 1 << bit
        key = (-1, sight, subscription_id)
        frame = self._frames.get(key)
        if frame is None:
            event = self._events.get(key[:2])
            if event is None:
                shown = TransactionEvent(transaction_view(self.record, principal), self._position)
                event = self._events[key[:2]] = encode_event(shown)
            frame = self._frames[key] = event_frame(subscription_id, event)
        return frame

    def monitor(self, side: Side, monitor: Monitor, subscription_id: str, *, more: bool) -> bytes:
        """The frame of a monitor that the change of one account crosses."""
        key = (-2 - monitor.monitor_id, int(more), subscription_id)
        frame = self._frames.get(key)
        if frame is None:
            event = self._events.get(key[:2])
            if event is None:
                crossed = monitor_event(self.record, side, monitor, more=more, position=self._position)
                event = self._events[key[:2]] = encode_event(crossed)
            frame = self._frames[key] = event_frame(subscription_id, event)
        return frame
