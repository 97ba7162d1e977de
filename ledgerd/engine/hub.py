"""Who follows what: committed changes go out here, to everybody who follows an account they touched.

`publish` is a plain function and never waits: with nobody following it is a look-up, otherwise it hands one prepared
frame to each subscriber. What cannot be delivered at once is not kept in memory; the subscription falls behind and
reads on from the table in a task of its own (see `subscription`). Live subscriptions have no task. Those who follow
everything always have one, and are only told that there is something to read (see `everything`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import structlog
import trio
from msgspec.structs import replace

from ledgerd.config import Config
from ledgerd.engine.advances import KINDS, AdvanceNews, AdvanceStream
from ledgerd.engine.alerts import Alerts, AlertStream
from ledgerd.engine.commands import Principal, Record
from ledgerd.engine.everything import Everything, Tail
from ledgerd.engine.history import SharedHistory
from ledgerd.engine.monitors import Monitors
from ledgerd.engine.ports import Feed, StorageUnavailable
from ledgerd.engine.rendering import Rendering
from ledgerd.engine.states import AccountState, AdvanceEvent, MonitorState, Place
from ledgerd.engine.subscription import (
    AccountsSubscription,
    BalanceStream,
    LatestBalances,
    MonitorStream,
    Sink,
    Subscription,
    Terms,
    TransactionStream,
)
from ledgerd.metrics import CATCH_UPS, SUBSCRIPTIONS
from ledgerd.supervision import Backoff
from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.messages import SubscribeOptions

log = structlog.get_logger(__name__)

DOUBT_S = 0.02
"""How long a version that is known to exist may still be on its way from our own lanes before it counts as missed.
Without it, every look at the heads would make the followers of busy accounts read what they are about to be pushed."""

OPENED_KEPT_S = 15.0
"""How long a new account is remembered for those who are just subscribing: longer than reading a list may take."""

HEARTBEAT_LOOK_S = 1.0
"""The shortest heartbeat interval: looking this often finds every new subscription's first heartbeat in time."""


class Hub:
    """All subscriptions of the daemon."""

    def __init__(self, config: Config, feed: Feed, epoch: Callable[[], str]) -> None:
        """``epoch`` answers with the data's present epoch, or raises StorageUnavailable."""
        self.feed = feed
        self.history = SharedHistory(feed)
        self.tail = Tail(feed)
        self.monitors = Monitors()
        self.advances = AdvanceNews(feed, epoch)
        self.alerts = Alerts()
        self.heads: dict[int, int] = {}
        self.epoch = epoch
        self._config = config
        self._nursery: trio.Nursery | None = None
        self._subscriptions: dict[Subscription, None] = {}
        self._followers: dict[int, dict[AccountsSubscription, None]] = {}
        self._of_user: dict[int, dict[AccountsSubscription, None]] = {}
        self._everything: dict[Subscription, None] = {}
        self._beating: dict[Subscription, None] = {}
        self._has_beat_task = False
        self._of_advances: dict[Subscription, None] = {}
        self._has_advance_task = False
        self._doubted: dict[int, int] = {}
        self._opened: dict[int, deque[AccountState]] = {}  # lately, by user
        self._opened_at: deque[tuple[float, int]] = deque()  # when, and by which user
        self._epoch_seen: str | None = None
        self.on_account_opened: Callable[[AccountState], None] = lambda _: None
        """Called with every account that was opened here, to tell other daemons."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the tasks of subscriptions that are behind, until cancelled. Outlives the database's generations."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    # -- what happened; nothing here waits -----------------------------------------------------------------------

    def publish(self, record: Record) -> None:
        """A transaction was committed by one of our lanes: push it to those who follow its accounts."""
        self.monitors.note(record)
        self.stir()
        if self._of_advances and record.kind in KINDS:
            self.advances.news.stir()
        followers_of = self._followers
        if not followers_of:
            return
        shown = None
        for side in record.sides:
            followers = followers_of.get(side.account_id)
            if followers is None:
                continue
            shown = shown or Rendering(record)
            if side.version > self.heads[side.account_id]:
                self.heads[side.account_id] = side.version
            for subscription in list(followers):
                self._offer(subscription, subscription.offer, shown, side)

    def _offer(self, subscription: Subscription, offer: Callable[..., bool], *what: object) -> None:
        """Hand it to one subscription, whose trouble is nobody else's."""
        try:
            delivered = offer(*what)
        except Exception:
            log.exception("subscription_failed", **subscription.ids())
            self.close(subscription, ErrorCode.INTERNAL_ERROR)
        else:
            if not delivered:
                self._fall_behind(subscription)

    def stir(self) -> None:
        """Something was committed, or may have been, whoever did it: those who follow everything look."""
        if self._everything:
            self.tail.news.stir()

    def announce_account(self, state: AccountState) -> None:
        """An account was opened here: those who follow all of its owner follow it too."""
        self._announce(state)
        self.on_account_opened(state)

    def discover_account(self, state: AccountState) -> None:
        """An account of a followed user was opened elsewhere, perhaps a while ago: followed from its opening."""
        opening = replace(state, balance=0, held=0, available=0, overdraft_limit=0, version=0)
        self._announce(opening if state.version <= self._config.resume_max else state)
        self.learn(state.account_id, state.version)
        for subscription in list(self._of_user.get(state.user_id, ())):
            if subscription.live and subscription.positions[state.account_id] < self.heads[state.account_id]:
                self._fall_behind(subscription)

    def _announce(self, state: AccountState) -> None:
        self._remember(state)
        for subscription in list(self._of_user.get(state.user_id, ())):
            if state.account_id in subscription.accounts:
                continue
            if len(subscription.accounts) >= self._config.accounts_per_subscription_max:
                self.close(subscription, ErrorCode.TOO_MANY_SUBSCRIPTIONS)
                continue
            self._follow(subscription, state.account_id, state.version)
            if not subscription.announce(state):
                self._fall_behind(subscription)

    def publish_advance(self, event: AdvanceEvent) -> None:
        """Something happened to an advance: push it to those who follow its account."""
        for subscription in list(self._followers.get(event.account_id, ())):
            if isinstance(subscription, AdvanceStream):
                self._offer(subscription, subscription.offer_event, event)

    def learn_monitor(self, state: MonitorState) -> None:
        """A monitor was set or removed here: it counts from now on."""
        self.monitors.learn(state)

    def has_room_for_monitor(self) -> bool:
        """Whether the ledger may have one more monitor, as far as is known here."""
        return len(self.monitors) < self._config.monitors_max

    def look(self) -> None:
        """The database is there, and about to be polled: who follows another history of the data than it has, ends.

        Raises StorageUnavailable only before the first connection to the database.
        """
        self._notice_epoch()
        self.stir()
        self.advances.news.stir()

    def advance_heads(self, heads: dict[int, int]) -> None:
        """Versions that exist, as the table says, whoever committed them: who has not got them reads on.

        Raises StorageUnavailable only before the first connection to the database.
        """
        self._notice_epoch()
        for account, version in heads.items():
            self.learn(account, version)

    def learn(self, account_id: int, version: int) -> bool:
        """Take note that a version of a followed account exists, whoever has not got it; whether that was news."""
        if version <= self.heads.get(account_id, version):
            return False
        self.heads[account_id] = version
        if not self._doubted and self._nursery is not None:
            self._nursery.start_soon(self._resolve_doubts)
        self._doubted[account_id] = version
        return True

    def followed_accounts(self) -> list[int]:
        """Accounts that somebody follows, whose heads are worth asking for."""
        return list(self._followers)

    def followed_users(self) -> list[int]:
        """Users all of whose accounts somebody follows, the new ones too."""
        return list(self._of_user)

    def known_accounts(self, user_id: int) -> set[int]:
        """Accounts of a followed user that are known to all who follow the user."""
        known = (set(subscription.accounts) for subscription in self._of_user.get(user_id, ()))
        return set.intersection(*known) if user_id in self._of_user else set()

    # -- who follows ---------------------------------------------------------------------------------------------

    def subscribe(
        self,
        sink: Sink,
        subscription_id: str,
        principal: Principal,
        channel: str,
        options: SubscribeOptions,
        accounts: list[AccountState],
        here: Place | None = None,
    ) -> Subscription:
        """Begin a subscription to accounts the caller was found to be allowed to see; to everything from ``here`` on.

        Events come as soon as the present task waits for anything: queue the reply before that. Mode `latest` allows
        to skip, where there is no room; who follows everything is never skipped anything, and has no use for it.
        Raises LedgerError invalid_params when it is asked for anything but balances.
        """
        latest = options.mode == "latest"
        if latest and channel != "balances":
            raise LedgerError(ErrorCode.INVALID_PARAMS, "mode latest is for balances only.")
        terms = Terms(
            subscription_id=subscription_id,
            principal=principal,
            user_id=_followed_user(principal, options),
            since=options.since or None,
            heartbeat_s=options.heartbeat_ms / 1000 if options.heartbeat_ms else None,
            resume_max=self._config.resume_max,
            frame_bytes_max=self._config.frame_out_bytes_max,
        )
        followed = {} if options.all else {state.account_id: state for state in accounts}
        if terms.user_id is not None:
            # Opened after the caller read the user's accounts, and announced before anybody was there to hear it.
            followed.update((state.account_id, state) for state in self._opened.get(terms.user_id, ()))
        subscription: Subscription
        if options.all:
            assert here is not None
            subscription = Everything(sink, terms, channel, self.tail, here, self.epoch(), self.monitors)
        elif channel == "alerts":
            subscription = AlertStream(sink, terms, self.alerts)
        elif channel == "transactions":
            subscription = TransactionStream(sink, terms, followed)
        elif channel == "advances":
            subscription = AdvanceStream(sink, terms, followed, self.advances)
        elif channel == "monitors":
            subscription = MonitorStream(sink, terms, followed, self.monitors)
        elif latest:
            subscription = LatestBalances(sink, terms, followed)
        else:
            subscription = BalanceStream(sink, terms, followed)
        self._attach(subscription)
        if isinstance(subscription, AccountsSubscription):
            self._attach_accounts(subscription, followed.values())
        self._catch_up_soon(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription, whatever state it is in: nothing more is pushed."""
        self._detach(subscription)

    def close(self, subscription: Subscription, code: ErrorCode) -> None:
        """End a subscription from the daemon's side; its last event says why."""
        if subscription.closed:
            return
        self._detach(subscription)
        try:
            said = subscription.say_closed(code.text)
        except Exception:
            # The sink itself may be what is broken; whoever closes the subscription must not break with it.
            log.exception("last_word_failed", **subscription.ids())
            return
        if not said and self._nursery is not None:
            subscription.scope = trio.CancelScope()
            self._nursery.start_soon(self._say_closed_later, subscription, code.text)

    def _attach_accounts(self, subscription: AccountsSubscription, accounts: Iterable[AccountState]) -> None:
        for state in accounts:
            self._follow(subscription, state.account_id, state.version)
        if subscription.user_id is not None:
            self._of_user.setdefault(subscription.user_id, {})[subscription] = None

    def _attach(self, subscription: Subscription) -> None:
        SUBSCRIPTIONS.inc()
        self._subscriptions[subscription] = None
        if isinstance(subscription, Everything):
            self._everything[subscription] = None
        if isinstance(subscription, AdvanceStream):
            self._of_advances[subscription] = None
            if not self._has_advance_task and self._nursery is not None:
                self._has_advance_task = True
                self._nursery.start_soon(self._follow_advances)
        if subscription.heartbeat_s is not None:
            self._beating[subscription] = None
            if not self._has_beat_task and self._nursery is not None:
                self._has_beat_task = True
                self._nursery.start_soon(self._beat)

    def _remember(self, state: AccountState) -> None:
        """Keep a new account for as long as somebody may be about to follow its user with an older list."""
        now = trio.current_time()
        while self._opened_at and self._opened_at[0][0] <= now - OPENED_KEPT_S:
            _, user_id = self._opened_at.popleft()
            self._opened[user_id].popleft()
            if not self._opened[user_id]:
                del self._opened[user_id]
        self._opened_at.append((now, state.user_id))
        self._opened.setdefault(state.user_id, deque()).append(state)

    def _follow(self, subscription: AccountsSubscription, account: int, version: int) -> None:
        self._followers.setdefault(account, {})[subscription] = None
        self.heads.setdefault(account, version)

    def _detach(self, subscription: Subscription) -> None:
        """Forget the subscription and stop its task. Also stops the late last word of one that is closed already."""
        subscription.scope.cancel()
        if subscription.closed:
            return
        SUBSCRIPTIONS.dec()
        subscription.closed = True
        subscription.live = False
        del self._subscriptions[subscription]
        self._everything.pop(subscription, None)
        self._of_advances.pop(subscription, None)
        self._beating.pop(subscription, None)
        if isinstance(subscription, AccountsSubscription):
            self._detach_accounts(subscription)

    def _detach_accounts(self, subscription: AccountsSubscription) -> None:
        for account in subscription.accounts:
            followers = self._followers[account]
            del followers[subscription]
            if not followers:
                del self._followers[account], self.heads[account]
        if subscription.user_id is not None:
            of_user = self._of_user[subscription.user_id]
            del of_user[subscription]
            if not of_user:
                del self._of_user[subscription.user_id]

    # -- falling behind and catching up --------------------------------------------------------------------------

    def _fall_behind(self, subscription: Subscription) -> None:
        if not subscription.live:
            return
        subscription.live = False
        CATCH_UPS.inc()
        self._catch_up_soon(subscription)

    def _catch_up_soon(self, subscription: Subscription) -> None:
        # Without a nursery the daemon is ending, and the connection with it.
        if self._nursery is not None:
            subscription.scope = trio.CancelScope()
            self._nursery.start_soon(self._catch_up, subscription)

    async def _catch_up(self, subscription: Subscription) -> None:
        """Bring one subscription up to date, however often the database goes away meanwhile."""
        backoff = Backoff(first_s=0.05, most_s=2.0)
        with subscription.scope:
            while not subscription.closed:
                try:
                    await subscription.catch_up(self)
                    return
                except StorageUnavailable:
                    await trio.sleep(backoff.next_s())
                except trio.ClosedResourceError:
                    self._detach(subscription)
                except Exception:
                    log.exception("subscription_failed", **subscription.ids())
                    self.close(subscription, ErrorCode.INTERNAL_ERROR)

    async def _resolve_doubts(self) -> None:
        """After a moment of grace, have those read on who did not get what is said to exist."""
        while self._doubted:
            await trio.sleep(DOUBT_S)
            doubted, self._doubted = self._doubted, {}
            for account, version in doubted.items():
                for subscription in list(self._followers.get(account, ())):
                    if subscription.live and subscription.positions[account] < version:
                        self._fall_behind(subscription)

    def _notice_epoch(self) -> None:
        epoch = self.epoch()
        if epoch != self._epoch_seen:
            self._begin_epoch(epoch)

    def _begin_epoch(self, epoch: str) -> None:
        """The data is another than it was: what was delivered may not exist any more, and versions start anew."""
        stale = [subscription for subscription in self._subscriptions if subscription.epoch not in (None, epoch)]
        for subscription in stale:
            # Retryable: the client subscribes again and is told `epoch_changed`, account by account.
            self.close(subscription, ErrorCode.UNAVAILABLE)
        if stale or self._epoch_seen is not None:
            # Those that are left have not read where they start; they will learn the heads when they do.
            self.heads = dict.fromkeys(self.heads, 0)
            self._doubted.clear()
            self.monitors.begin_epoch()
        self._epoch_seen = epoch

    # -- last words and signs of life ----------------------------------------------------------------------------

    async def _say_closed_later(self, subscription: Subscription, code: str) -> None:
        with subscription.scope:
            try:
                await subscription.room()
                # Unsubscribed while the room was being made: then this must not be said.
                while not subscription.scope.cancel_called and not subscription.say_closed(code):
                    await subscription.room()
            except trio.ClosedResourceError:
                pass

    async def _follow_advances(self) -> None:
        """One task for all who follow advances, there only while somebody does."""
        await self.advances.run(lambda: bool(self._of_advances), self.publish_advance)
        self._has_advance_task = False

    async def _beat(self) -> None:
        """One task for all heartbeats, there only while somebody wants them."""
        while self._beating:
            now = trio.current_time()
            next_look = now + HEARTBEAT_LOOK_S
            for subscription in list(self._beating):
                try:
                    next_look = min(next_look, subscription.beat(now))
                except Exception:
                    log.exception("subscription_failed", **subscription.ids())
                    self.close(subscription, ErrorCode.INTERNAL_ERROR)
            await trio.sleep_until(next_look)
        self._has_beat_task = False


def _followed_user(principal: Principal, options: SubscribeOptions) -> int | None:
    """The user whose accounts are followed as they come: when whole users are asked for, or nothing in particular."""
    if options.all or options.account_ids or principal.account_id is not None:
        return None
    return options.user_id or principal.user_id
