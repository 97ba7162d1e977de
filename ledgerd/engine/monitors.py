"""Monitors: who wants to be told when a balance crosses an amount. What decides, and what this daemon keeps in memory.

Rules of this file:

- **A crossing is an edge, not a level, and a function of one change.** `below` X is crossed by the change before which
  the balance was X or more and after which it is less; `above` X by the one before which it was X or less and after
  which it is more. It is the balance that counts, not what is available: holds and limits cross nothing.
- A monitor looks at the changes after the version its account had when it was set. One that is removed is forgotten:
  it tells nothing any more, not even of what crossed it before.
- All that are set are in memory, because this daemon may commit a change of any account. They are read as a whole when
  the database side starts, and then, every second, those that changed since, by revision; revisions appear in order.
  What was set or removed here counts at once.
- A crossing is logged and counted by the daemon that committed the change, when it publishes it. So two daemons never
  log the same one, with one exception: a call that was lost with its connection and is sent again is answered with
  replays, of which nobody can tell whether that call made them. If it was another daemon, this one may log it again.
"""

from __future__ import annotations

from typing import Literal

import structlog
import trio
from msgspec import Struct

from ledgerd.engine.commands import Record, Side
from ledgerd.engine.ports import Feed
from ledgerd.engine.states import MonitorState
from ledgerd.metrics import MONITOR_CROSSINGS, MONITORS

POLL_S = 1.0
"""Between two looks for what other daemons set or removed."""

PAGE = 2_000
"""Monitors read at once."""

log = structlog.get_logger(__name__)


def crosses(direction: Literal["below", "above"], amount: int, before: int, after: int) -> bool:
    """Whether a balance that goes from ``before`` to ``after`` crosses the amount in this direction; minor units."""
    if direction == "below":
        return before >= amount > after
    return before <= amount < after


class Monitor(Struct, frozen=True):
    """What is kept of a monitor to decide about changes of its account. ``amount`` in minor units."""

    monitor_id: int
    account_id: int
    direction: Literal["below", "above"]
    amount: int
    after_version: int


class Monitors:
    """All monitors that are set, by account."""

    def __init__(self) -> None:
        self._of_account: dict[int, dict[int, Monitor]] = {}
        self._count = 0
        self._revision = 0  # everything up to it is known
        self._logged: dict[int, int] = {}  # by monitor, the version of its last crossing that was logged here

    def __len__(self) -> int:
        """How many are set."""
        return self._count

    # -- deciding; nothing here waits ----------------------------------------------------------------------------

    def crossed_by(self, side: Side) -> list[Monitor]:
        """Monitors that this change of an account crosses, by number."""
        watching = self._of_account.get(side.account_id)
        if watching is None or side.balance_change == 0:
            return []
        after = side.balance
        before = after - side.balance_change
        found = [
            monitor
            for monitor in watching.values()
            if monitor.after_version < side.version and crosses(monitor.direction, monitor.amount, before, after)
        ]
        found.sort(key=lambda monitor: monitor.monitor_id)
        return found

    def looks_from(self, account_id: int) -> int | None:
        """The first version of the account that any monitor looks at; None if there is no monitor."""
        watching = self._of_account.get(account_id)
        return None if watching is None else 1 + min(monitor.after_version for monitor in watching.values())

    def note(self, record: Record) -> None:
        """A transaction was committed here: log and count what it crosses."""
        for side in record.sides if self._of_account else ():
            for monitor in self.crossed_by(side):
                if self._logged.get(monitor.monitor_id, 0) >= side.version:
                    continue  # a replay after a lost call
                self._logged[monitor.monitor_id] = side.version
                MONITOR_CROSSINGS.inc()
                log.info(
                    "monitor_crossed",
                    monitor_id=monitor.monitor_id,
                    account_id=side.account_id,
                    version=side.version,
                    balance_minor=side.balance,
                    currency=record.currency,
                    direction=monitor.direction,
                    amount_minor=monitor.amount,
                    transaction_id=record.transaction_id,
                )

    def begin_epoch(self) -> None:
        """The data is another than it was, and its versions begin anew."""
        self._logged.clear()

    # -- knowing what is set -------------------------------------------------------------------------------------

    def learn(self, state: MonitorState) -> None:
        """A monitor was set or removed here. Old news changes nothing."""
        if state.revision > self._revision:
            self._take(state)

    def _take(self, state: MonitorState) -> None:
        watching = self._of_account.get(state.account_id, {})
        self._count -= watching.pop(state.monitor_id, None) is not None
        if state.removed:
            self._logged.pop(state.monitor_id, None)
            if not watching:
                self._of_account.pop(state.account_id, None)
        else:
            monitor = Monitor(state.monitor_id, state.account_id, state.direction, state.amount, state.after_version)
            watching[state.monitor_id] = monitor
            self._of_account[state.account_id] = watching
            self._count += 1
        MONITORS.set(self._count)

    async def run(self, feed: Feed, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow what any daemon sets and removes, for one generation of the database; started when all is known.

        Raises StorageUnavailable.
        """
        # Read anew, because a database that was restored may count its revisions again from an earlier one.
        revision = 0
        states: list[MonitorState] = []
        while page := await feed.monitors_since(revision, PAGE, removed=False):
            states += page
            revision = page[-1].revision
        self._of_account, self._count, self._revision = {}, 0, revision
        for state in states:
            self._take(state)
        MONITORS.set(self._count)
        task_status.started()
        while True:
            await trio.sleep(POLL_S)
            for state in await feed.monitors_since(self._revision, PAGE, removed=True):
                self._take(state)
                self._revision = state.revision
