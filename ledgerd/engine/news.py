"""That there is something new to read, for tasks that read on at their own pace."""

from __future__ import annotations

import trio


class News:
    """A count that only grows. Who reads takes it before reading, and waits for more than that afterwards."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = trio.lowlevel.ParkingLot()

    def stir(self) -> None:
        """There is something, or may be. Never waits."""
        self.count += 1
        self._changed.unpark_all()

    async def more_than(self, count: int) -> None:
        """Return when there is more than so much."""
        await trio.lowlevel.checkpoint()
        while self.count == count:
            await self._changed.park()
