"""Following advances: what happens to them, whichever daemon collected, repaid or requested.

Theory of operation. An advance numbers its events 1, 2, 3, ... under the lock of its account. A subscription keeps the
last number it delivered of each advance, and is live or behind exactly as one to balances is (see `subscription`): the
next number is pushed, anything else is read from the table.

News comes by reading alone, because much of what happens to an advance changes no balance. One task, there only while
somebody follows advances, reads all events that were committed after a *place* in the order of commits, at every poll
and at once when this daemon posted or collected something of an advance. The place is taken before the first follower
reads where it starts, and outlives the database's generations: what is committed in between is read, not missed. Events
of one advance may come from there in another order than their own; then the table has the ones before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import trio
from msgspec import UNSET

from ledgerd.engine.commands import Side
from ledgerd.engine.news import News
from ledgerd.engine.ports import Feed, StorageUnavailable
from ledgerd.engine.rendering import Rendering
from ledgerd.engine.states import AccountState, AdvanceEvent, AdvanceHead, Place
from ledgerd.engine.subscription import FRUITLESS_WAIT_S, AccountsSubscription, Sink, Source, Terms
from ledgerd.engine.views import advance_event, advance_start
from ledgerd.supervision import Backoff
from ledgerd_protocol.events import AdvanceStart, Heartbeat

PAGE = 500
"""Events read at once by the task that looks for news."""

EVENTS_PAGE = 100
"""Events of one advance read at once by a subscription that is behind."""

PAUSE_S = 0.02
"""Between two readings: what is committed meanwhile comes with the second."""

KINDS = frozenset({"advance", "advance_payment"})
"""Transactions that are news of an advance."""


class AdvanceNews:
    """What was committed about advances, as one daemon reads it."""

    def __init__(self, feed: Feed, epoch: Callable[[], str]) -> None:
        """``epoch`` answers with the data's present epoch, or raises StorageUnavailable."""
        self._feed = feed
        self._epoch = epoch
        self._place: Place | None = None
        self._place_epoch: str | None = None
        self.news = News()
        """Something was committed about advances, or may have been."""

    async def begin(self) -> None:
        """Miss nothing of what is committed from here on. Raises StorageUnavailable."""
        epoch = self._epoch()
        if self._place is None or self._place_epoch != epoch:
            here = await self._feed.here()
            if (self._place is None or self._place_epoch != epoch) and self._epoch() == epoch:
                self._place, self._place_epoch = here, epoch

    async def run(self, wanted: Callable[[], bool], deliver: Callable[[AdvanceEvent], None]) -> None:
        """Deliver what is committed while it is wanted, however often the database goes away meanwhile."""
        backoff = Backoff(first_s=0.05, most_s=2.0)
        while wanted():
            news = self.news.count
            try:
                more = await self._read(deliver)
            except StorageUnavailable:
                await trio.sleep(backoff.next_s())
                continue
            backoff.reset()
            if not more:
                await trio.sleep(PAUSE_S)
                await self.news.more_than(news)
        self._place = None

    async def _read(self, deliver: Callable[[AdvanceEvent], None]) -> bool:
        place = self._place
        if place is None or self._epoch() != self._place_epoch:
            return False  # nobody has begun; or the hub is about to close those who have
        stretch = await self._feed.advance_events_since(place, PAGE)
        if self._place is not place:
            return True
        for event in stretch.events:
            deliver(event)
        self._place = stretch.end
        return stretch.more


class AdvanceStream(AccountsSubscription):
    """Every event of every advance of the followed accounts, once, in the order of its number.

    Of the accounts it follows no balances, only who they are: new ones of a user are introduced as everywhere.
    """

    def __init__(self, sink: Sink, terms: Terms, accounts: Iterable[int], news: AdvanceNews) -> None:
        super().__init__(sink, terms, accounts)
        self._news = news
        self._delivered: dict[str, int] = {}
        # The account and the last known event of advances that are not delivered up to there.
        self._ahead: dict[str, tuple[int, int]] = {}
        # Accounts that were not there at the start, whose advances have not been looked for.
        self._unread: set[int] = set()

    # -- pushing; nothing here waits -----------------------------------------------------------------------------

    def offer(self, shown: Rendering, side: Side) -> bool:  # noqa: ARG002 - its advances tell themselves
        """See AccountsSubscription: a change of the balance is no event of an advance."""
        if self.live:
            self.positions[side.account_id] = max(self.positions[side.account_id], side.version)
        return True

    def offer_event(self, event: AdvanceEvent) -> bool:
        """Something happened to an advance of a followed account. False as for `offer`."""
        advance_id = event.advance_id
        delivered = self._delivered.get(advance_id, 0)
        if event.event <= delivered:
            return True
        if self.live and event.event == delivered + 1 and self._push_event(advance_event(event)):
            self._delivered[advance_id] = event.event
            return True
        _, known = self._ahead.get(advance_id, (0, 0))
        self._ahead[advance_id] = (event.account_id, max(known, event.event))
        return not self.live

    def announce(self, state: AccountState) -> bool:
        """See AccountsSubscription. The account may have had advances before it was found here."""
        self.accounts[state.account_id] = None
        self._newcomers.append(state)
        self._unread.add(state.account_id)
        return not self.live

    def _heartbeat(self) -> Heartbeat:
        return Heartbeat(versions={})

    # -- catching up ---------------------------------------------------------------------------------------------

    def _behind(self, source: Source) -> list[int]:
        for account in self.positions:
            self.positions[account] = max(self.positions[account], source.heads[account])
        self._ahead = {
            advance_id: (account, event)
            for advance_id, (account, event) in self._ahead.items()
            if event > self._delivered.get(advance_id, 0)
        }
        return sorted({account for account, _ in self._ahead.values()} | self._unread)

    async def _read_on(self, source: Source, behind: list[int]) -> None:
        unread = self._unread.intersection(behind)
        if unread:
            for head in await source.feed.advance_heads(sorted(unread), [], everything=True):
                self._ahead[head.advance_id] = (head.account_id, head.event)
            self._unread -= unread
        fruitful = bool(unread)
        for advance_id in list(self._ahead):
            for event in await source.feed.advance_events(advance_id, self._delivered.get(advance_id, 0), EVENTS_PAGE):
                assert event.event == self._delivered.get(advance_id, 0) + 1, "the feed left a hole"
                if not self._push_event(advance_event(event)):
                    await self._sink.room()
                    return
                self._delivered[advance_id] = event.event
                fruitful = True
        if not fruitful:
            await trio.sleep(FRUITLESS_WAIT_S)

    async def _start(self, source: Source) -> None:
        """Read where the advances stand, judge which of them resume, and say so."""
        epoch = source.epoch()
        await self._news.begin()
        accounts = list(self.accounts)
        states = await source.feed.account_states(accounts) if accounts else []
        heads = await source.feed.advance_heads(accounts, list(self._asked())) if accounts else []
        if source.epoch() != epoch:
            return  # what was read may be of either: judge again
        self.epoch = epoch
        delivered: dict[str, int] = {}
        starts: list[AdvanceStart] = []
        for head in heads:
            asked, reason = self._resume_advance(head, epoch)
            delivered[head.advance_id] = head.event if asked is None else asked
            starts.append(advance_start(head, resumed=asked is not None, reason=reason))
        for frame in self._start_frames(epoch, "advances", starts):
            await self._surely(frame)
        for state in states:
            source.learn(state.account_id, state.version)
            self.positions[state.account_id] = state.version
        for head in heads:
            _, known = self._ahead.get(head.advance_id, (0, 0))
            self._ahead[head.advance_id] = (head.account_id, max(known, head.event))
        self._delivered = delivered
        self._started = True

    def _asked(self) -> dict[str, int]:
        since = self._terms.since
        return {} if since is None or since.advances is UNSET else since.advances

    def _resume_advance(self, head: AdvanceHead, epoch: str) -> tuple[int | None, str | None]:
        """The event to go on from, or None and why it must be a snapshot; None and None if no resume was asked.

        A running advance that the client does not name came while it was away: from its first event on.
        """
        since = self._terms.since
        if since is None:
            return None, None
        if since.epoch != epoch:
            return None, "epoch_changed"
        asked = self._asked().get(head.advance_id, 0)
        if asked > head.event:
            return None, "version_ahead"
        if head.event - asked > self._terms.resume_max:
            return None, "too_far_behind"
        return asked, None
