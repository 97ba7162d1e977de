"""Following everything: all transactions of all daemons on the database, in the order in which they were committed.

Theory of operation. Nobody could push what other daemons commit in the right place between what our own lanes commit,
so nobody pushes: a subscription to everything always reads, from a *place* in the order of commits that only moves
forward. What was committed here, a hint from elsewhere and the interval of polling are the same to it: news, and it
reads on at once. A slow reader reads less often, and nothing is kept for it but the page it is taking. What somebody
else leaves uncommitted delays nothing of what is committed.

All that stand at the same place at the same time are served by one reading, whose events are encoded once.
"""

from __future__ import annotations

import trio
from msgspec import UNSET, Struct

from ledgerd.engine.commands import Side
from ledgerd.engine.history import SharedReadings
from ledgerd.engine.monitors import Monitors
from ledgerd.engine.news import News
from ledgerd.engine.ports import Feed
from ledgerd.engine.rendering import Rendering
from ledgerd.engine.states import Place
from ledgerd.engine.subscription import Sink, Source, Subscription, Terms
from ledgerd_protocol.events import Heartbeat, Live, Start

PAGE = 200
"""Transactions read at once, and more where one call made them. A page that is being pushed is what a subscriber costs
in memory."""

PAUSE_S = 0.01
"""Between two readings of one subscriber. What is committed meanwhile comes with the second: under load a reading
serves many transactions, and after a silence the first one waits for nothing."""


class Page(Struct, frozen=True):
    """What was read from a place. ``news`` is the count of news when the reading began."""

    shown: list[Rendering]
    end: Place
    more: bool
    news: int


class Tail:
    """The end of the order of commits, as one daemon sees it."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._readings = SharedReadings(self._fetch)
        self.news = News()
        """Something was committed, here or elsewhere, or may have been."""

    async def read(self, place: Place) -> Page:
        """What was committed after the place. Raises StorageUnavailable."""
        return await self._readings.read(place)

    async def _fetch(self, place: Place) -> Page:
        news = self.news.count
        stretch = await self._feed.committed_since(place, PAGE)
        # The position of all of them is that before the first: who resumes there may see some again, and misses none.
        shown = [Rendering(record, place.position) for record in stretch.records]
        return Page(shown, stretch.end, stretch.more, news)


class Everything(Subscription):
    """Every change of every account, whichever daemon committed it, for operators.

    ``here`` is the place where it begins unless it resumes, and ``epoch`` the data's when that was read.
    """

    def __init__(
        self, sink: Sink, terms: Terms, channel: str, tail: Tail, here: Place, epoch: str, monitors: Monitors
    ) -> None:
        super().__init__(sink, terms, ())
        self._channel = channel
        self._tail = tail
        self._monitors = monitors
        self._here, self._here_epoch = here, epoch
        self._place = here

    async def catch_up(self, source: Source) -> None:
        """See Subscription; this one returns only when it is closed."""
        while not self.closed:
            if not self._started:
                await self._start(source)
                continue
            page = await self._tail.read(self._place)
            if source.epoch() == self.epoch:
                await self._deliver(page)
                self._place = page.end
                if page.more:
                    continue
                if not self._said_live:
                    await self._surely(self._frame(Live()))
                    self._said_live = self.live = True
            # Else the hub is about to close it.
            await trio.sleep(PAUSE_S)
            await self._tail.news.more_than(page.news)

    async def _deliver(self, page: Page) -> None:
        for shown in page.shown:
            if self._channel == "transactions":
                await self._surely(shown.transaction(self._terms.principal, self.id))
                continue
            for side in shown.record.sides:
                if self._channel == "monitors":
                    await self._deliver_crossings(shown, side)
                else:
                    await self._surely(shown.update(side, self.id))

    async def _deliver_crossings(self, shown: Rendering, side: Side) -> None:
        crossed = self._monitors.crossed_by(side)
        for left, monitor in zip(range(len(crossed) - 1, -1, -1), crossed, strict=True):
            await self._surely(shown.monitor(side, monitor, self.id, more=left > 0))

    def _heartbeat(self) -> Heartbeat:
        # All before the place of the page that is being delivered has been.
        return Heartbeat(versions={}, position=self._place.position)

    async def _start(self, source: Source) -> None:
        epoch = source.epoch()
        if self._here_epoch != epoch:
            self._here, self._here_epoch = await source.feed.here(), epoch
        place, reason = await self._resume_at(source, epoch)
        if source.epoch() != epoch:
            return  # the place may be of either: judge again
        self.epoch = epoch
        self._place = place or self._here
        start = Start(epoch=epoch, accounts=[], position=self._place.position, reason=reason or UNSET)
        await self._surely(self._frame(start))
        self._started = True

    async def _resume_at(self, source: Source, epoch: str) -> tuple[Place | None, str | None]:
        """Where the client stopped, or None and why it must begin here; None and None if no resume was asked."""
        since = self._terms.since
        if since is None or since.position is UNSET:
            return None, None
        if since.epoch != epoch:
            return None, "epoch_changed"
        place = await source.feed.place(since.position)
        return place, None if place is not None else "position_unknown"
