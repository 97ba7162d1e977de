"""LISTEN and NOTIFY on a connection of their own: hints between daemons, nothing more.

A connection that only listens is silent when it dies, so it is pinged like the readers, and its loss ends the
generation.
"""

from __future__ import annotations

from typing import Any

import asyncpg
import structlog
import trio

from ledgerd.metrics import HINTS_DROPPED
from ledgerd.storage.connection import Crossing

CHANNEL = "ledgerd_feed"

HEARD_MAX = 1_000
"""Hints that wait to be looked at. More are dropped: polling finds what they would have told."""

PING_INTERVAL_S = 2.0

log = structlog.get_logger(__name__)


class Notifications:
    """One connection that listens, and sends."""

    def __init__(self, crossing: Crossing, connection: asyncpg.Connection) -> None:
        self._crossing = crossing
        self._connection = connection
        self._turn = trio.Lock()  # a connection does one thing at a time
        self._heard, self.payloads = trio.open_memory_channel[str](HEARD_MAX)

    async def listen(self) -> None:
        """Begin to hear. Whatever was said before is for polling to find."""

        async def work() -> None:
            await self._connection.add_listener(CHANNEL, self._on_notification)

        await self._crossing.run(work, self._connection)

    def _on_notification(self, connection: Any, pid: int, channel: str, payload: str) -> None:  # noqa: ARG002
        # An exception here would end the whole asyncio loop.
        try:
            self._heard.send_nowait(payload)
        except trio.WouldBlock:
            HINTS_DROPPED.inc()
            log.warning("hint_dropped", waiting=HEARD_MAX)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # the generation is over

    async def send(self, payload: str) -> None:
        """Say it to every daemon on this database, ours included. Raises StorageUnavailable."""
        await self._run("SELECT pg_notify($1, $2)", CHANNEL, payload)

    async def ping(self) -> None:
        """Find out that the connection has died. Raises StorageUnavailable."""
        while True:
            await trio.sleep(PING_INTERVAL_S)
            # Harmless where it is heard already; and who looks at the server's activity sees whose connection it is.
            await self._run(f"LISTEN {CHANNEL}")

    async def _run(self, query: str, *arguments: str) -> None:
        async def work() -> None:
            await self._connection.execute(query, *arguments)

        async with self._turn:
            await self._crossing.run(work, self._connection)
