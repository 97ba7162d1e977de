"""Alerts: what operators must know of, as long as it is so. What is open, and the subscription that tells it.

Rules of this file:

- An alert is about something that is wrong now. It is told when it is found, told again when what it says changes, and
  forgotten when it is so no more; who subscribes late is told all that are open.
- They are this daemon's own findings, in its memory: every daemon looks for itself and tells its own subscribers.
- Nothing is kept for a slow subscriber: it holds the number of the last alert it was told, and whatever was mended
  before its turn came is never said.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import trio
from msgspec import Struct

from ledgerd.engine.subscription import Sink, Source, Subscription, Terms
from ledgerd.metrics import ALERTS
from ledgerd.times import time_text
from ledgerd_protocol.events import AlertRaised, Live, Start

OPEN_MAX = 1_000
"""Alerts that are kept. With as many open, one more would tell nobody anything new."""


class Alert(Struct, frozen=True):
    """One thing that is wrong. ``number`` counts what this daemon ever told, in order."""

    number: int
    alert: str
    advance_id: str
    detail: str
    created_at: str


class Alerts:
    """The alerts that are open, each about one advance."""

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        self._open: dict[tuple[str, str], Alert] = {}
        self._number = 0
        self._changed = trio.lowlevel.ParkingLot()

    def about(self, alert: str) -> list[str]:
        """What there are open alerts of this kind about."""
        return [subject for kind, subject in self._open if kind == alert]

    def raise_alert(self, alert: str, advance_id: str, detail: str) -> bool:
        """This is wrong. Answers whether that is news; nothing is when `OPEN_MAX` others are open."""
        known = self._open.get((alert, advance_id))
        if (known is not None and known.detail == detail) or (known is None and len(self._open) >= OPEN_MAX):
            return False
        self._number += 1
        created_at = time_text(self._now())
        self._open.pop((alert, advance_id), None)  # so that the order remains that of the numbers
        self._open[alert, advance_id] = Alert(self._number, alert, advance_id, detail, created_at)
        ALERTS.labels(alert).inc()
        self._changed.unpark_all()
        return True

    def withdraw(self, alert: str, advance_id: str) -> bool:
        """It is wrong no more; whether there was an alert."""
        return self._open.pop((alert, advance_id), None) is not None

    def next_after(self, number: int) -> Alert | None:
        """The first open alert after one that was told; None if there is none."""
        return next((alert for alert in self._open.values() if alert.number > number), None)

    async def changed(self) -> None:
        """Return when there is another alert."""
        await self._changed.park()


class AlertStream(Subscription):
    """Tells an operator every open alert, and every one that is raised from then on."""

    def __init__(self, sink: Sink, terms: Terms, alerts: Alerts) -> None:
        super().__init__(sink, terms, ())
        self._alerts = alerts
        self._told = 0

    async def catch_up(self, source: Source) -> None:
        """See Subscription; this one returns only when it is closed."""
        while not self.closed:
            if not self._started:
                self.epoch = source.epoch()
                await self._surely(self._frame(Start(epoch=self.epoch, accounts=[])))
                self._started = True
            elif not self._said_live:
                await self._surely(self._frame(Live()))
                self._said_live = self.live = True
            elif alert := self._alerts.next_after(self._told):
                told = AlertRaised(
                    alert=alert.alert, advance_id=alert.advance_id, detail=alert.detail, created_at=alert.created_at
                )
                await self._surely(self._frame(told))
                self._told = alert.number
            else:
                await self._alerts.changed()
