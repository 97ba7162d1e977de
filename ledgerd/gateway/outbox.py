"""What waits to be sent on one connection, and the one task that sends it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio

from ledgerd.gateway.stream import WireStream

WRITE_BYTES_MAX = 65_536
"""Messages up to this many bytes are joined into one system call; a larger message goes alone."""


class Outbox:
    """Messages on their way out, bounded in bytes.

    Pushed messages are refused when there is no room; answers are always taken, because a session starts no work while
    `full`. So a connection holds at most ``bytes_max`` plus the answers of what was executing when it filled up.
    """

    __slots__ = ("_bytes_max", "_closed", "_idle", "_messages", "_on_sent", "_ping_due", "_room", "_stream", "size")

    def __init__(self, stream: WireStream, bytes_max: int, on_sent: Callable[[], None]) -> None:
        self.size = 0
        self._stream = stream
        self._bytes_max = bytes_max
        self._on_sent = on_sent
        self._messages: deque[bytes] = deque()
        self._idle = trio.lowlevel.ParkingLot()
        self._room: trio.Event | None = None
        self._ping_due = False
        self._closed = False

    @property
    def full(self) -> bool:
        """Whether nothing may be pushed, and no work started whose answer would come on top."""
        return self.size >= self._bytes_max

    @property
    def empty(self) -> bool:
        """Whether everything has been handed to the operating system."""
        return self.size == 0

    def append(self, message: bytes) -> None:
        """Take an answer. Without effect once closed."""
        if self._closed:
            return
        self._messages.append(message)
        self.size += len(message)
        self._idle.unpark()

    def push(self, message: bytes) -> bool:
        """Take an event if there is room for it; whether it was taken."""
        if self._closed or self.size + len(message) > self._bytes_max:
            return False
        self.append(message)
        return True

    def ping(self) -> None:
        """Send a ping as soon as possible, before what waits."""
        self._ping_due = True
        self._idle.unpark()

    async def room(self) -> None:
        """Return when half of the outbox is free. Raises ClosedResourceError when it is closed."""
        while not self._closed and self.size > self._bytes_max // 2:
            if self._room is None:
                self._room = trio.Event()
            await self._room.wait()
        if self._closed:
            raise trio.ClosedResourceError
        await trio.lowlevel.checkpoint()

    async def flushed(self) -> None:
        """Return when everything has been handed to the operating system. To be called once closed."""
        while self.size:
            self._room = self._room or trio.Event()
            await self._room.wait()

    def close(self) -> None:
        """Take nothing more, and wake who waits for room. What was taken is still sent."""
        self._closed = True
        self._wake_room()

    def abandon(self) -> None:
        """Close, and forget what was not sent: nobody will take it."""
        self._messages.clear()
        self.size = 0
        self.close()

    async def run(self) -> None:
        """Send what comes, until cancelled. Raises BrokenResourceError or ClosedResourceError when the peer is gone."""
        while True:
            if self._ping_due:
                self._ping_due = False
                await self._stream.send_ping()
            elif self._messages:
                await self._send_some()
            else:
                await self._idle.park()

    async def _send_some(self) -> None:
        messages = self._messages
        first = messages.popleft()
        some, size = [first], len(first)
        while messages and size + len(messages[0]) <= WRITE_BYTES_MAX:
            message = messages.popleft()
            some.append(message)
            size += len(message)
        await self._stream.send_texts(some)
        self.size -= size
        if self._room is not None and self.size <= (0 if self._closed else self._bytes_max // 2):
            self._wake_room()
        self._on_sent()

    def _wake_room(self) -> None:
        if self._room is not None:
            self._room.set()
            self._room = None
