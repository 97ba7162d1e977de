"""Where a subscriber stands: an epoch and the last version of every followed account. Pure, no I/O.

Rules of this file:

- Everything that decides whether a feed is complete is here: clients resume from a cursor, auditors check with one.
- In ``stream`` mode and on the transactions channel each version is exactly one more than the last. In ``latest`` mode
  an update says how many versions it left out, and the sum must come out the same.
- An account begins with its start. Only a feed of everything has none: there the first version seen is it, and what
  comes again after a resume, by account and version, is a repetition: dropped, and no gap.
- On the channel of monitors most versions cross nothing and are not shown. There the versions only go up: by a
  crossing, by `live` to where a resumed account stood, by heartbeats. A version that crosses several monitors comes in
  several events, all but the last marked `more`; only with the last it has been delivered. What came of it before a
  connection was lost comes again after the resume, and is dropped.
- On the channel of advances it is the events of each advance that count 1, 2, 3, ... without a hole. An advance that
  was not there at the start begins with 1. One that is paid back is forgotten: nothing more happens to it.
- A gap is never mended here. It is raised, because money was shown wrongly to somebody.
"""

from __future__ import annotations

from typing import Any

from msgspec import UNSET

from ledgerd_protocol.events import (
    AccountAdded,
    AccountStart,
    AdvanceHappened,
    AdvanceStart,
    Event,
    Heartbeat,
    Live,
    MonitorCrossed,
    Start,
    TransactionEvent,
    Update,
)
from ledgerd_protocol.results import Entry


class FeedGap(Exception):
    """A feed left out or repeated a version of an account. ``account_id``, and the versions expected and received."""

    def __init__(self, account_id: int, expected: int, received: int, what: str) -> None:
        super().__init__(f"account {account_id}: {what}; version {expected} was due and {received} came")
        self.account_id = account_id
        self.expected = expected
        self.received = received


class Cursor:
    """Epoch and versions, moved on by every event that `apply` is given."""

    def __init__(
        self,
        epoch: str | None = None,
        versions: dict[int, int] | None = None,
        position: str | None = None,
        *,
        everything: bool = False,
        crossings: bool = False,
        advances: dict[str, int] | None = None,
    ) -> None:
        """``crossings``: of the channel of monitors. ``advances``: of that of advances, the last event of each."""
        self.epoch = epoch
        self.versions: dict[int, int] = dict(versions or {})
        self.position = position
        self._everything = everything
        self._crossings = crossings
        self._partly: dict[int, tuple[int, set[int]]] = {}  # by account, a version and those of its crossings that came
        self._promised: dict[int, int] = {}
        self.advances: dict[str, int] = dict(advances or {})
        self._of_advances = advances is not None
        self._promised_events: dict[str, AdvanceStart] = {}
        self._starting = False

    def since(self) -> dict[str, Any] | None:
        """The ``since`` option that resumes here; None when there is nothing to resume from."""
        if self._everything:
            resumable = self.epoch is not None and self.position is not None
            return {"epoch": self.epoch, "position": self.position} if resumable else None
        if self._of_advances:
            return None if self.epoch is None else {"epoch": self.epoch, "advances": dict(self.advances)}
        if self.epoch is None or not self.versions:
            return None
        return {"epoch": self.epoch, "versions": dict(self.versions)}

    def apply(self, event: Event) -> bool:
        """Move on by one event; False if it is a repetition, to be dropped.

        Raises FeedGap, and then the cursor has not moved.
        """
        if self._everything and isinstance(event, Update | TransactionEvent):
            return self._apply_anything(event)
        match event:
            case Start():
                self._start(event)
            case Live():
                self._live()
            case Update():
                self._step(event.account_id, event.version, 0 if event.skipped is UNSET else event.skipped)
            case TransactionEvent():
                self._steps(event.transaction.entries)
            case MonitorCrossed():
                return self._cross(event)
            case AdvanceHappened():
                self._happen(event)
            case Heartbeat():
                self._beat(event)
            case AccountAdded():
                self.versions[event.account.account_id] = event.account.version
            case _:
                pass
        return True

    def _apply_anything(self, event: Update | TransactionEvent) -> bool:
        """Both versions of a transfer come in one event or in two, but neither without the other's having its turn."""
        changed: list[Update] | list[Entry] = [event] if isinstance(event, Update) else event.transaction.entries
        last = self.versions
        repeated = any(change.version <= last.get(change.account_id, -1) for change in changed)
        if not repeated:
            if isinstance(event, Update):
                self._step(event.account_id, event.version, 0)
            else:
                self._steps(event.transaction.entries)
        if event.position is not UNSET:
            self.position = event.position
        return not repeated

    def _cross(self, event: MonitorCrossed) -> bool:
        account_id, version = event.account_id, event.version
        last = self.versions.get(account_id)
        if last is None and not self._everything:
            raise FeedGap(account_id, 0, version, "a crossing came before the account's start")
        if event.position is not UNSET:
            self.position = event.position
        if last is not None and version <= last:
            if self._everything:
                return False
            raise FeedGap(account_id, last + 1, version, "a crossing came again")
        of_version, came = self._partly.pop(account_id, (version, set()))
        if of_version != version:
            came = set()
        repeated = event.monitor_id in came
        if event.more is True:
            self._partly[account_id] = (version, came | {event.monitor_id})
        else:
            self.versions[account_id] = version
        return not repeated

    def _beat(self, event: Heartbeat) -> None:
        if event.position is not UNSET:
            self.position = event.position
        if self._crossings:
            for account_id, version in event.versions.items():
                if version > self.versions.get(account_id, version):
                    self.versions[account_id] = version

    def _start(self, event: Start) -> None:
        if not self._starting:
            self._promised.clear()
            self._promised_events.clear()
            if event.epoch != self.epoch:
                self._partly.clear()
                self.advances.clear()
            if self._everything and (event.reason is not UNSET or self.since() is None):
                # It begins where the daemon is, without a snapshot: nothing older can be compared.
                self.versions.clear()
            if event.position is not UNSET:
                self.position = event.position
        for advance in [] if event.advances is UNSET else event.advances:
            self._begin_advance(advance)
        for account in event.accounts:
            if account.origin == "resumed":
                self._promise(account)
            else:
                self.versions[account.account_id] = account.version
                self._promised.pop(account.account_id, None)
        self.epoch = event.epoch
        self._starting = event.more is True

    def _promise(self, account: AccountStart) -> None:
        """The missed updates up to the account's version come before `live`; nothing older than ours may be resumed."""
        have = self.versions.get(account.account_id)
        if have is None or account.version < have:
            raise FeedGap(account.account_id, have or 0, account.version, "resumed where this client never was")
        self._promised[account.account_id] = account.version

    def _begin_advance(self, advance: AdvanceStart) -> None:
        have = self.advances.get(advance.advance_id, 0)
        if advance.origin == "snapshot":
            self.advances[advance.advance_id] = advance.event
            return
        if advance.event < have:
            raise FeedGap(advance.account_id, have, advance.event, "an advance resumed where this client never was")
        self._promised_events[advance.advance_id] = advance

    def _happen(self, event: AdvanceHappened) -> None:
        last = self.advances.get(event.advance_id, 0)
        if event.event != last + 1:
            what = f"an event of advance {event.advance_id} " + ("came again" if event.event <= last else "is missing")
            raise FeedGap(event.account_id, last + 1, event.event, what)
        self.advances[event.advance_id] = event.event
        if event.what == "completed":
            del self.advances[event.advance_id]
            self._promised_events.pop(event.advance_id, None)

    def _live(self) -> None:
        for advance in self._promised_events.values():
            came = self.advances.get(advance.advance_id, 0)
            if came < advance.event:
                raise FeedGap(advance.account_id, came + 1, advance.event + 1, "live before all was caught up")
        self._promised_events.clear()
        for account_id, version in self._promised.items():
            if self._crossings:
                self.versions[account_id] = max(self.versions[account_id], version)
            elif self.versions[account_id] < version:
                raise FeedGap(account_id, self.versions[account_id] + 1, version + 1, "live before all was caught up")
        self._promised.clear()

    def _step(self, account_id: int, version: int, skipped: int) -> None:
        last = self.versions.get(account_id)
        if last is None and not self._everything:
            raise FeedGap(account_id, 0, version, "an update came before the account's start")
        if last is not None and version != last + skipped + 1:
            what = "a version came again" if version <= last else "a version is missing"
            raise FeedGap(account_id, last + skipped + 1, version, what)
        self.versions[account_id] = version

    def _steps(self, entries: list[Entry]) -> None:
        """Entries of accounts that are not followed have no place in the cursor, and must not get one."""
        followed = [entry for entry in entries if self._everything or entry.account_id in self.versions]
        for entry in followed:
            last = self.versions.get(entry.account_id)
            if last is not None and entry.version != last + 1:
                what = "a transaction came again" if entry.version <= last else "a transaction is missing"
                raise FeedGap(entry.account_id, last + 1, entry.version, what)
        for entry in followed:
            self.versions[entry.account_id] = entry.version
