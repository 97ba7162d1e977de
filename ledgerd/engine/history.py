"""Reading on from the table, once for all who need the same page at the same time.

When a change of another daemon is found, or the database comes back, everybody who follows an account falls behind at
the same version, and would ask for the same page. One of them asks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import trio

from ledgerd.engine.commands import Record
from ledgerd.engine.ports import Feed, StorageUnavailable

Key = TypeVar("Key", bound=Hashable)
Page = TypeVar("Page")


class _Reading(Generic[Page]):
    """A page on its way. Neither pages nor failure: who was reading it was cancelled."""

    __slots__ = ("done", "failure", "pages")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.pages: list[Page] = []
        self.failure: str | None = None


class SharedReadings(Generic[Key, Page]):
    """A way to read, with equal calls under way at the same time answered by one."""

    def __init__(self, fetch: Callable[[Key], Awaitable[Page]]) -> None:
        self._fetch = fetch
        self._readings: dict[Key, _Reading[Page]] = {}

    async def read(self, key: Key) -> Page:
        """What ``fetch`` answers; it is shared, leave it. Raises StorageUnavailable."""
        while (reading := self._readings.get(key)) is not None:
            await reading.done.wait()
            if reading.pages:
                return reading.pages[0]
            if reading.failure is not None:
                raise StorageUnavailable(reading.failure)
        reading = self._readings[key] = _Reading()
        try:
            page = await self._fetch(key)
            reading.pages.append(page)
            return page
        except StorageUnavailable as error:
            reading.failure = str(error)
            raise
        finally:
            del self._readings[key]
            reading.done.set()


class SharedHistory:
    """`Feed.history` for many."""

    def __init__(self, feed: Feed) -> None:
        async def fetch(page: tuple[int, int, int]) -> list[Record]:
            return await feed.history(*page)

        self._readings = SharedReadings(fetch)

    async def read(self, account_id: int, after_version: int, limit: int) -> list[Record]:
        """Records that gave the account versions above ``after_version``, ascending; the list is shared, leave it.

        It may be older than the call by one reading: who knows of a newer version asks again. Raises
        StorageUnavailable.
        """
        return await self._readings.read((account_id, after_version, limit))
