"""How changes reach the hub: from our own lanes at once, from other daemons by hints, and by polling whatever was lost.

Polling alone is enough for every guarantee; hints only make it fast. So nothing here retries: a hint that cannot be
sent or heard is forgotten, and a database that goes away ends these tasks together with its generation.
"""

from __future__ import annotations

import random
from typing import Protocol

import trio

from ledgerd.config import Config
from ledgerd.engine.commands import Record
from ledgerd.engine.hints import Hints
from ledgerd.engine.hub import Hub
from ledgerd.engine.ports import Feed

HEADS_PER_POLL = 1_000
"""Accounts asked for at once; the table answers in a few milliseconds."""

JITTER = 0.2
"""Daemons that started together should not poll together."""


class Wire(Protocol):
    """What carries hints."""

    payloads: trio.MemoryReceiveChannel[str]

    async def send(self, payload: str) -> None:
        """Say it to every daemon. Raises StorageUnavailable."""

    async def ping(self) -> None:
        """Run beside the others; raises StorageUnavailable when the wire is dead."""


class SharedFeed:
    """The feed of one daemon among others on the same database. Outlives the database's generations."""

    def __init__(self, config: Config, feed: Feed, hub: Hub) -> None:
        self._config = config
        self._feed = feed
        self._hub = hub
        # A name for this process, not a secret: own hints come back and must be told apart.
        self._hints = Hints(f"{random.getrandbits(64):016x}", config.hint_interval_s)
        self._look_now = trio.lowlevel.ParkingLot()
        if config.feed == "notify":
            hub.on_account_opened = self._hints.note_account

    def publish(self, record: Record) -> None:
        """A transaction was committed by one of our lanes. Never waits."""
        self._hub.publish(record)
        if self._config.feed == "notify":
            self._hints.note(record)

    async def exchange_hints(self, wire: Wire) -> None:
        """Tell what changed here and hear what changed elsewhere. Raises StorageUnavailable."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.ping)
            nursery.start_soon(self._hints.run, wire.send)
            async for payload in wire.payloads:
                hint = self._hints.heard(payload)
                if hint is None:
                    continue
                if hint.versions is None:
                    self._look_now.unpark_all()
                    continue
                self._hub.look()
                self._hub.advance_heads(hint.versions)
                if hint.users:
                    followed = set(self._hub.followed_users())
                    await self._discover_accounts([user for user in hint.users if user in followed])

    async def follow_monitors(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Know what monitors any daemon sets and removes; started when all are known. Raises StorageUnavailable."""
        await self._hub.monitors.run(self._feed, task_status=task_status)

    async def poll(self) -> None:
        """Look at the heads of followed accounts, once per interval and when told to. Raises StorageUnavailable."""
        interval_s = self._config.feed_poll_s
        while True:
            with trio.move_on_after(interval_s * random.uniform(1 - JITTER, 1 + JITTER)):  # noqa: S311
                await self._look_now.park()
                # Told to look, perhaps many times a second: not more often than hints are sent.
                await trio.sleep(self._config.hint_interval_s)
            self._hub.look()
            accounts = self._hub.followed_accounts()
            for start in range(0, len(accounts), HEADS_PER_POLL):
                self._hub.advance_heads(await self._feed.heads(accounts[start : start + HEADS_PER_POLL]))
            await self._discover_accounts(self._hub.followed_users())

    async def _discover_accounts(self, users: list[int]) -> None:
        """Look for accounts of these users besides those that are known. Raises StorageUnavailable.

        By what is not known, and not by what is above the highest number: one with a lower number may commit later.
        """
        limit = self._config.accounts_per_subscription_max
        for start in range(0, len(users), HEADS_PER_POLL):
            asked = users[start : start + HEADS_PER_POLL]
            known = [account for user in asked for account in self._hub.known_accounts(user)]
            for state in await self._feed.unknown_accounts(asked, known, limit + 1):
                self._hub.discover_account(state)
