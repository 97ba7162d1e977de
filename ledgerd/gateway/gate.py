"""A narrow passage in which the newest comer goes first.

Whoever waits in the order of arrival waits, in a flood, as long as all who came before, and then nobody is served while
he still cares. Newest first, those who are served are served at once, and it is the others who try again; in quiet
times there is no difference. It also suits `Places`, which lets the oldest give way.
"""

from __future__ import annotations

from types import TracebackType

import trio


class Gate:
    """Lets at most ``width`` tasks be inside at once: ``async with gate``."""

    def __init__(self, width: int) -> None:
        self._free = width
        self._waiting: dict[trio.Event, None] = {}  # the newest last
        self._quiet = trio.lowlevel.ParkingLot()

    async def quiet(self) -> None:
        """Return when nobody waits, at once if nobody does."""
        while self._waiting:
            await self._quiet.park()

    async def __aenter__(self) -> None:
        if self._free:
            self._free -= 1
            return
        called = trio.Event()
        self._waiting[called] = None
        try:
            await called.wait()
        except BaseException:
            if called.is_set():
                self._leave()
            else:
                del self._waiting[called]
                self._tell()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._waiting:
            called, _ = self._waiting.popitem()
            called.set()
            self._tell()
        else:
            self._free += 1

    def _tell(self) -> None:
        if not self._waiting:
            self._quiet.unpark_all()
