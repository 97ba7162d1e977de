"""Reading on from the table, once for all who need the same page at the same time.

When a change of another daemon is found, or the database comes back, everybody who follows an account falls behind at
the same version, and would ask for the same page. One of them asks.
"""

from __future__ import annotations

import trio

from ledgerd.engine.ports import Feed, Record, StorageUnavailable

_Page = tuple[int, int, int]
"""Account, the version after which the page begins, and how many records it has at most."""


class _Reading:
    """A page on its way. Neither records nor failure: who was reading it was cancelled."""

    __slots__ = ("done", "failure", "records")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.records: list[Record] | None = None
        self.failure: str | None = None


class SharedHistory:
    """`Feed.history`, with equal calls under way at the same time answered by one."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._readings: dict[_Page, _Reading] = {}

    async def read(self, account_id: int, after_version: int, limit: int) -> list[Record]:
        """Records that gave the account versions above ``after_version``, ascending; the list is shared, leave it.

        It may be older than the call by one reading: who knows of a newer version asks again. Raises
        StorageUnavailable.
        """
        page = (account_id, after_version, limit)
        while (reading := self._readings.get(page)) is not None:
            await reading.done.wait()
            if reading.records is not None:
                return reading.records
            if reading.failure is not None:
                raise StorageUnavailable(reading.failure)
        reading = self._readings[page] = _Reading()
        try:
            reading.records = await self._feed.history(account_id, after_version, limit)
            return reading.records
        except StorageUnavailable as error:
            reading.failure = str(error)
            raise
        finally:
            del self._readings[page]
            reading.done.set()
