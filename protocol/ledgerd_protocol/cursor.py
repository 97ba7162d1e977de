"""Where a subscriber stands: an epoch and the last version of every followed account. Pure, no I/O.

Rules of this file:

- Everything that decides whether a feed is complete is here: clients resume from a cursor, auditors check with one.
- In ``stream`` mode and on the transactions channel each version is exactly one more than the last. In ``latest`` mode
  an update says how many versions it left out, and the sum must come out the same.
- An account begins with its start. Only a feed of everything has none: there the first version seen is it, and what
  comes again after a resume, by account and version, is a repetition: dropped, and no gap.
- A gap is never mended here. It is raised, because money was shown wrongly to somebody.
"""

from __future__ import annotations

from typing import Any

from msgspec import UNSET

from ledgerd_protocol.events import AccountAdded, AccountStart, Event, Live, Start, TransactionEvent, Update
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
    ) -> None:
        self.epoch = epoch
        self.versions: dict[int, int] = dict(versions or {})
        self.position = position
        self._everything = everything
        self._promised: dict[int, int] = {}
        self._starting = False

    def since(self) -> dict[str, Any] | None:
        """The ``since`` option that resumes here; None when there is nothing to resume from."""
        if self._everything:
            resumable = self.epoch is not None and self.position is not None
            return {"epoch": self.epoch, "position": self.position} if resumable else None
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

    def _start(self, event: Start) -> None:
        if not self._starting:
            self._promised.clear()
            if self._everything and (event.reason is not UNSET or self.since() is None):
                # It begins where the daemon is, without a snapshot: nothing older can be compared.
                self.versions.clear()
            if event.position is not UNSET:
                self.position = event.position
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

    def _live(self) -> None:
        for account_id, version in self._promised.items():
            if self.versions[account_id] < version:
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
