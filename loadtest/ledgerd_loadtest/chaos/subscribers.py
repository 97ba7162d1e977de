"""Subscribers whose connections break like everybody's: they keep all that they are told of every account."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import trio

from ledgerd_loadtest.audit import minor
from ledgerd_loadtest.chaos.desk import Desk, Line
from ledgerd_loadtest.chaos.history import Told
from ledgerd_loadtest.chaos.workloads import states_shown
from ledgerd_protocol.client import FeedGap
from ledgerd_protocol.connection import CannotConnect, ConnectionEnded
from ledgerd_protocol.errors import LedgerError
from ledgerd_protocol.events import Event, Start, Update

LOOK_SHARE = 0.05
"""Of the events, so many are held against a balance that is asked for at once, anywhere."""


class Subscriber:
    """One feed of several accounts, from version 1 on."""

    def __init__(self, name: str, desk: Desk, line: Line, accounts: Sequence[int], dice: random.Random) -> None:
        self.told = {
            account: Told(subscriber=name, account_id=account, changes=[], arrived_s=[]) for account in accounts
        }
        self._desk = desk
        self._line = line
        self._dice = dice
        self._begun: set[int] = set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen for ever; started once all accounts have begun. What is wrong becomes a problem of its account."""
        try:
            async with (
                trio.open_nursery() as nursery,
                self._line.client.subscribe("balances", account_ids=sorted(self.told)) as events,
            ):
                async for event in events:
                    if looked_at := self._take(event):
                        nursery.start_soon(self._look, looked_at)
                    if len(self._begun) == len(self.told):
                        task_status.started()
                        task_status = trio.TASK_STATUS_IGNORED
        except* (FeedGap, LedgerError, ConnectionEnded, CannotConnect) as group:
            next(iter(self.told.values())).problems.append(f"the feed ended: {group.exceptions[0]!r}")
            task_status.started()

    def reached(self, account: int, version: int) -> bool:
        """Whether it has been told so much, or does not follow the account."""
        return account not in self.told or len(self.told[account].changes) >= version

    def _take(self, event: Event) -> int | None:
        """Keep an event; an account to be looked at now."""
        if isinstance(event, Start):
            for start in event.accounts:
                if start.origin != "resumed" and (start.account_id in self._begun or start.version != 0):
                    self.told[start.account_id].problems.append(f"began with version {start.version} ({start.reason})")
                self._begun.add(start.account_id)
        elif isinstance(event, Update):
            told = self.told[event.account_id]
            told.changes.append((event.version, event.transaction_id, minor(event.balance)))
            told.arrived_s.append(time.monotonic())
            if self._dice.random() < LOOK_SHARE:
                return event.account_id
        return None

    async def _look(self, account: int) -> None:
        await self._desk.call("feeds", "balance_get", {"account_id": account}, keep=states_shown)
