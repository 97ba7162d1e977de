"""One subscription: where it stands, what may be pushed to it, and how it reads on when it fell behind.

Theory of operation. A subscription keeps a *position* per followed account: the last version it delivered. It is in one
of three states:

- *live*: a committed change is pushed at once if it is the next version and the sink takes it. That is all a live
  subscription does; it has no task.
- *behind*: something was not the next version (another daemon committed between), or the sink had no room. One task
  waits for room and reads on from the table, page by page, until every position has reached the newest version known;
  then the subscription is live again, with no await between the comparison and the change of state.
- *closed*: nothing is pushed any more.

A new subscription begins behind: it is registered first, then its task reads the snapshot, so whatever is committed in
between is known by its version. Joining a snapshot, resuming, a lost hint, a slow reader and a second daemon are one
and the same case.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import trio
from msgspec import UNSET, Struct

from ledgerd.engine.commands import Principal, Record, Side
from ledgerd.engine.history import SharedHistory
from ledgerd.engine.monitors import Monitors
from ledgerd.engine.ports import Feed
from ledgerd.engine.rendering import Rendering
from ledgerd.engine.states import AccountState
from ledgerd.engine.views import account_start
from ledgerd_protocol.codec import encode_event, event_frame
from ledgerd_protocol.events import AccountAdded, AccountStart, Closed, Event, Heartbeat, Live, Start
from ledgerd_protocol.messages import Since

PAGE = 200
"""Records read at once for one account. Whatever does not fit into the sink is read again, so a page is what a slow
subscriber costs in memory, and only while it is being pushed."""

MERGE_RECORDS = 1_000
MERGE_PAGE_MIN = 16
"""What a subscription to transactions reads at once, over all its accounts, and at least for each of them."""

FRUITLESS_WAIT_S = 0.1
"""Before reading again when a version that should be there was not: the reader may be a moment behind the writer."""


class Sink(Protocol):
    """Where frames go: one connection's outbox."""

    def push(self, frame: bytes) -> bool:
        """Take a frame; False means that there was no room for it, and it was not taken."""

    async def room(self) -> None:
        """Return when there is room again. Raises trio.ClosedResourceError when the connection is gone."""


class Source(Protocol):
    """What a subscription that is behind reads from: the hub's side."""

    feed: Feed
    history: SharedHistory
    heads: dict[int, int]
    """The newest version known of every followed account."""

    def learn(self, account_id: int, version: int) -> bool:
        """Take note that a version exists, whoever has not got it; whether that was news."""

    def epoch(self) -> str:
        """The data's present epoch. Raises StorageUnavailable before the first connection."""


class Terms(Struct, frozen=True):
    """What was asked for. ``user_id`` is the user whose new accounts are followed as they are opened."""

    subscription_id: str
    principal: Principal
    user_id: int | None
    since: Since | None
    heartbeat_s: float | None
    resume_max: int
    frame_bytes_max: int


class Subscription(ABC):
    """What all kinds of subscription share. ``accounts`` are those followed, ``positions`` what was delivered."""

    def __init__(self, sink: Sink, terms: Terms, accounts: Iterable[int]) -> None:
        self.id = terms.subscription_id
        self.accounts = dict.fromkeys(accounts)
        self.positions: dict[int, int] = {}
        self.user_id = terms.user_id
        self.heartbeat_s = terms.heartbeat_s
        self.heard_at = 0.0
        self.epoch: str | None = None
        self.live = False
        self.closed = False
        self.scope = trio.CancelScope()  # of the task, while behind
        self._sink = sink
        self._terms = terms
        self._started = False
        self._said_live = False

    def ids(self) -> dict[str, Any]:
        """What a log line about the subscription names it by: ids of subscriptions count per connection."""
        return {"subscription": self.id, **self._terms.principal.ids()}

    # -- pushing; nothing here waits -----------------------------------------------------------------------------

    def beat(self, now: float) -> float:
        """Push a heartbeat if nothing was pushed for long; when to look again, in trio time.

        A sink without room is not silent, and gets none. Before its start a subscription has nothing to say.
        """
        assert self.heartbeat_s is not None
        if not self._started:
            self.heard_at = now
        elif self.heard_at + self.heartbeat_s <= now:
            self._push_event(self._heartbeat())
            self.heard_at = now
        return self.heard_at + self.heartbeat_s

    def _heartbeat(self) -> Heartbeat:
        return Heartbeat(versions=self.positions)

    def say_closed(self, code: str) -> bool:
        """Push the last event; the hub has marked the subscription closed already. False: there was no room."""
        return self._sink.push(self._frame(Closed(code=code)))

    def _push(self, frame: bytes) -> bool:
        if self.closed or not self._sink.push(frame):
            return False
        if self.heartbeat_s is not None:
            self.heard_at = trio.current_time()
        return True

    def _frame(self, event: Event) -> bytes:
        return event_frame(self.id, encode_event(event))

    def _push_event(self, event: Event) -> bool:
        return self._push(self._frame(event))

    async def _surely(self, frame: bytes) -> None:
        """Push the frame, however long it takes until there is room. Raises ClosedResourceError."""
        while not self.closed and not self._push(frame):
            await self._sink.room()

    # -- catching up; the only place where a subscription waits --------------------------------------------------

    async def room(self) -> None:
        """Return when the sink has room. Raises ClosedResourceError."""
        await self._sink.room()

    @abstractmethod
    async def catch_up(self, source: Source) -> None:
        """Deliver what is missing and go live. May be called again after any error: a position is never lost.

        Raises StorageUnavailable, and ClosedResourceError when the sink is gone.
        """


class AccountsSubscription(Subscription):
    """What those share that follow certain accounts, and perhaps new ones of a user."""

    def __init__(self, sink: Sink, terms: Terms, accounts: Iterable[int]) -> None:
        super().__init__(sink, terms, accounts)
        self._newcomers: deque[AccountState] = deque()

    @abstractmethod
    def offer(self, shown: Rendering, side: Side) -> bool:
        """A change of a followed account was committed. False: it was not delivered, and the subscription is behind."""

    def announce(self, state: AccountState) -> bool:
        """The followed user has a new account. False as for `offer`."""
        self.accounts[state.account_id] = None
        self._newcomers.append(state)
        return not self.live or self._introduce()

    def _introduce(self) -> bool:
        """Push account_added for those that wait for it, as far as there is room."""
        while self._newcomers:
            state = self._newcomers[0]
            # One that was opened before the snapshot was read is in it.
            if state.account_id not in self.positions:
                if not self._push_event(AccountAdded(account=account_start(state))):
                    return False
                self.positions[state.account_id] = state.version
            self._newcomers.popleft()
        return True

    async def catch_up(self, source: Source) -> None:
        """See Subscription."""
        while not self.closed:
            if not self._started:
                await self._start(source)
            elif not self._introduce():
                await self._sink.room()
            elif behind := self._behind(source):
                await self._read_on(source, behind)
            elif self._go_live():
                return
            else:
                await self._sink.room()

    def _behind(self, source: Source) -> list[int]:
        heads = source.heads
        return [account for account, position in self.positions.items() if position < heads[account]]

    def _go_live(self) -> bool:
        if not self._said_live and not self._push_event(Live()):
            return False
        self._said_live = self.live = True
        return True

    @abstractmethod
    async def _read_on(self, source: Source, behind: list[int]) -> None:
        """Deliver some of what the accounts ``behind`` miss, and return early when there is no room for more."""

    async def _start(self, source: Source) -> None:
        """Read where the accounts stand, judge which of them resume, and say so."""
        epoch = source.epoch()
        states = await source.feed.account_states(list(self.accounts)) if self.accounts else []
        if source.epoch() != epoch:
            return  # the versions may be of either: judge again
        self.epoch = epoch
        positions: dict[int, int] = {}
        starts: list[AccountStart] = []
        for state in states:
            account = state.account_id
            source.learn(account, state.version)
            asked, reason = self._resume_from(state, epoch)
            positions[account] = state.version if asked is None else asked
            starts.append(account_start(state, resumed=asked is not None, reason=reason))
        for frame in self._start_frames(epoch, "accounts", starts):
            await self._surely(frame)
        self.positions = positions
        self._started = True

    def _resume_from(self, state: AccountState, epoch: str) -> tuple[int | None, str | None]:
        """The version to go on from, or None and why a snapshot it must be; None and None if no resume was asked."""
        since = self._terms.since
        asked = None if since is None or since.versions is UNSET else since.versions.get(state.account_id)
        if since is None or asked is None:
            return None, None
        if since.epoch != epoch:
            return None, "epoch_changed"
        if asked > state.version:
            return None, "version_ahead"
        if state.version - asked > self._terms.resume_max:
            return None, "too_far_behind"
        return asked, None

    def _start_frames(self, epoch: str, member: str, starts: list[Any], *, more: bool = False) -> Iterator[bytes]:
        """Where those in ``member`` stand: one start event, or as many as keep every frame within the limit."""
        members: dict[str, Any] = {"accounts": [], member: starts}
        frame = self._frame(Start(epoch=epoch, more=True if more else UNSET, **members))
        if len(frame) <= self._terms.frame_bytes_max or len(starts) < 2:
            yield frame
            return
        half = len(starts) // 2
        yield from self._start_frames(epoch, member, starts[:half], more=True)
        yield from self._start_frames(epoch, member, starts[half:], more=more)


class BalanceStream(AccountsSubscription):
    """Every version of every followed account, once, in order, each one higher than the last."""

    def offer(self, shown: Rendering, side: Side) -> bool:
        """See AccountsSubscription."""
        if not self.live:
            return True
        account, version = side.account_id, side.version
        position = self.positions[account]
        if version <= position:
            return True
        if version == position + 1 and self._push(shown.update(side, self.id)):
            self.positions[account] = version
            return True
        return False

    async def _read_on(self, source: Source, behind: list[int]) -> None:
        fruitful = False
        for account in behind:
            for record in await source.history.read(account, self.positions[account], PAGE):
                side = _side_of(record, account)
                assert side.version == self.positions[account] + 1, "the feed left a hole"
                if not self._push(Rendering(record).update(side, self.id)):
                    await self._sink.room()
                    return
                self.positions[account] = side.version
                fruitful = True
        if not fruitful:
            await trio.sleep(FRUITLESS_WAIT_S)


class MonitorStream(AccountsSubscription):
    """Every crossing of every monitor on the followed accounts, once; versions without one pass in silence.

    It follows the accounts as a stream of balances does, but where no monitor looks there is nothing to read.
    """

    def __init__(self, sink: Sink, terms: Terms, accounts: Iterable[int], monitors: Monitors) -> None:
        super().__init__(sink, terms, accounts)
        self._monitors = monitors
        # A version that crosses several, while the sink has not taken them all: the version, and the last one taken.
        self._told: dict[int, tuple[int, int]] = {}

    def offer(self, shown: Rendering, side: Side) -> bool:
        """See AccountsSubscription."""
        if not self.live:
            return True
        account, version = side.account_id, side.version
        position = self.positions[account]
        if version <= position:
            return True
        if version > position + 1:
            looks_from = self._monitors.looks_from(account)
            if looks_from is not None and looks_from < version:
                return False
        return self._show(shown, side)

    def _show(self, shown: Rendering, side: Side) -> bool:
        account, version = side.account_id, side.version
        crossed = self._monitors.crossed_by(side)
        if crossed:
            of_version, told = self._told.get(account, (0, 0))
            if of_version == version:
                crossed = [monitor for monitor in crossed if monitor.monitor_id > told]
            for left, monitor in zip(range(len(crossed) - 1, -1, -1), crossed, strict=True):
                if not self._push(shown.monitor(side, monitor, self.id, more=left > 0)):
                    return False
                self._told[account] = (version, monitor.monitor_id)
            self._told.pop(account, None)
        self.positions[account] = version
        return True

    async def _read_on(self, source: Source, behind: list[int]) -> None:
        fruitful = False
        for account in behind:
            head, looks_from = source.heads[account], self._monitors.looks_from(account)
            if looks_from is None or looks_from > head:
                self.positions[account] = head
                fruitful = True
                continue
            self.positions[account] = max(self.positions[account], looks_from - 1)
            for record in await source.history.read(account, self.positions[account], PAGE):
                side = _side_of(record, account)
                assert side.version == self.positions[account] + 1, "the feed left a hole"
                if not self._show(Rendering(record), side):
                    await self._sink.room()
                    return
                fruitful = True
        if not fruitful:
            await trio.sleep(FRUITLESS_WAIT_S)


class LatestBalances(AccountsSubscription):
    """The newest balance of every followed account. While the sink has no room, newer replaces older."""

    def __init__(self, sink: Sink, terms: Terms, accounts: Iterable[int]) -> None:
        super().__init__(sink, terms, accounts)
        self._newest: dict[int, tuple[Record, Side]] = {}  # by account, while behind

    def offer(self, shown: Rendering, side: Side) -> bool:
        """See AccountsSubscription."""
        account = side.account_id
        if not self.live:
            self._newest[account] = (shown.record, side)
            return True
        if self._show(shown, side):
            return True
        self._newest[account] = (shown.record, side)
        return False

    def _show(self, shown: Rendering, side: Side) -> bool:
        skipped = side.version - self.positions[side.account_id] - 1
        if skipped >= 0:
            if not self._push(shown.update(side, self.id, skipped)):
                return False
            self.positions[side.account_id] = side.version
        return True

    async def _read_on(self, source: Source, behind: list[int]) -> None:
        fruitful = False
        for account in behind:
            head = source.heads[account]
            newest = self._newest.pop(account, None)
            if newest is None or newest[1].version < head:
                # Another daemon made it: the one record that has the present balance is enough.
                records = await source.history.read(account, head - 1, 1)
                if not records:
                    continue
                newest = (records[0], _side_of(records[0], account))
            if not self._show(Rendering(newest[0]), newest[1]):
                self._newest.setdefault(account, newest)
                await self._sink.room()
                return
            fruitful = True
        if not fruitful:
            await trio.sleep(FRUITLESS_WAIT_S)


class TransactionStream(AccountsSubscription):
    """Every transaction on a followed account, once, in an order that respects all the accounts' versions."""

    def offer(self, shown: Rendering, side: Side) -> bool:  # noqa: ARG002 - it looks at all sides
        """See AccountsSubscription. Called once per followed side; the second call finds the transaction delivered."""
        if not self.live:
            return True
        step = self._step(shown.record)
        return step == 0 or (step == 1 and self._deliver(shown))

    def _step(self, record: Record) -> int:
        """0: delivered already. 1: it comes next. More: an earlier transaction of one of its accounts is missing."""
        step = 0
        for side in record.sides:
            position = self.positions.get(side.account_id)
            if position is not None:
                step = max(step, side.version - position)
        return step

    def _deliver(self, shown: Rendering) -> bool:
        if not self._push(shown.transaction(self._terms.principal, self.id)):
            return False
        for side in shown.record.sides:
            position = self.positions.get(side.account_id)
            if position is not None and position < side.version:
                self.positions[side.account_id] = side.version
        return True

    async def _read_on(self, source: Source, behind: list[int]) -> None:
        """Merge the accounts' histories.

        Versions are given under locks, so among the next records of all accounts that are behind, the one committed
        first comes next in every account it touches: each round delivers at least that one, if it was read.
        """
        limit = max(MERGE_PAGE_MIN, MERGE_RECORDS // len(behind))
        lines = [deque(await source.history.read(account, self.positions[account], limit)) for account in behind]
        if self._newcomers:
            return  # to be introduced first: what was read may be about them too
        before = dict(self.positions)
        moved = True
        while moved:
            moved = False
            for line in lines:
                while line and (step := self._step(line[0])) <= 1:
                    if step == 1 and not self._deliver(Rendering(line[0])):
                        await self._sink.room()
                        return
                    line.popleft()
                    moved = True
        # What a record that is left waits for exists, although nobody may have said so yet: its versions prove it.
        sides = [side for line in lines if line for side in line[0].sides if side.account_id in self.positions]
        news = [source.learn(side.account_id, side.version) for side in sides]
        if self.positions == before and not any(news):
            await trio.sleep(FRUITLESS_WAIT_S)


def _side_of(record: Record, account_id: int) -> Side:
    """The side of the record that changed this account."""
    return next(side for side in record.sides if side.account_id == account_id)
