"""What waits to be sent on one connection, and who sends it.

Rules of this file:

- Each outbox has a task that can wait for a peer. Mostly nobody has to: one flusher, shared by all, hands what was put
  into any of them to the operating system, once per turn of the loop. Waking a task for each follower of an account
  would cost several times what the write itself does.
- The flusher takes the light cases only, and never waits. Whatever is large, blocked, watched or about to close is for
  the outbox's own task.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio

from ledgerd.gateway.stream import WireStream

WRITE_BYTES_MAX = 65_536
"""Messages up to this many bytes are joined into one system call; a larger message goes alone."""


FLUSHED_PER_TURN = 256
"""Outboxes that the flusher goes through before others may run: about a millisecond."""


class Flusher:
    """Sends what waits in many outboxes. One task of the gateway."""

    def __init__(self) -> None:
        self._due: list[Outbox] = []
        self._idle = trio.lowlevel.ParkingLot()

    def note(self, outbox: Outbox) -> None:
        """Something waits in an outbox that is not noted yet."""
        self._due.append(outbox)
        self._idle.unpark()

    async def run(self) -> None:
        """Flush what is noted, until cancelled."""
        while True:
            while self._due:
                due, self._due = self._due, []
                for start in range(0, len(due), FLUSHED_PER_TURN):
                    for outbox in due[start : start + FLUSHED_PER_TURN]:
                        outbox.flush()
                    await trio.lowlevel.checkpoint()
            await self._idle.park()


class Outbox:
    """Messages on their way out, bounded in bytes.

    Pushed messages are refused when there is no room; answers are always taken, because a session starts no work while
    `full`. So a connection holds at most ``bytes_max`` plus the answers of what was executing when it filled up.
    """

    __slots__ = (
        "_bytes_max",
        "_closed",
        "_flusher",
        "_held_back",
        "_idle",
        "_messages",
        "_noted",
        "_on_sent",
        "_ping_due",
        "_room",
        "_stream",
        "size",
    )

    def __init__(
        self, stream: WireStream, bytes_max: int, on_sent: Callable[[], None], flusher: Flusher | None = None
    ) -> None:
        self.size = 0
        self._flusher = flusher
        self._noted = False
        self._held_back = 0  # bytes of messages that the stream has in part
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
        if self._flusher is None:
            self._idle.unpark()
        elif not self._noted:
            self._noted = True
            self._flusher.note(self)

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
        self.size = self._held_back = 0
        self.close()

    async def run(self) -> None:
        """Send what comes, until cancelled. Raises BrokenResourceError or ClosedResourceError when the peer is gone."""
        while True:
            if self._ping_due:
                self._ping_due = False
                await self._stream.send_ping()
            elif self._held_back:
                await self._stream.send_rest()
                held, self._held_back = self._held_back, 0
                self._left(held)
            elif self._messages:
                await self._send_some()
            else:
                await self._idle.park()

    def flush(self) -> None:
        """Hand everything to the operating system if that is simple, else to the outbox's own task. Never waits."""
        self._noted = False
        if not self._messages:
            return
        light = self.size <= WRITE_BYTES_MAX and not self.full and self._room is None and not self._closed
        if not light or self._ping_due or not self._stream.can_send_now:
            self._idle.unpark()
            return
        texts, size = list(self._messages), self.size
        self._messages.clear()
        if self._stream.send_now(texts):
            self.size = 0
        else:
            self._held_back = size
            self._idle.unpark()

    async def _send_some(self) -> None:
        messages = self._messages
        first = messages.popleft()
        some, size = [first], len(first)
        while messages and size + len(messages[0]) <= WRITE_BYTES_MAX:
            message = messages.popleft()
            some.append(message)
            size += len(message)
        await self._stream.send_texts(some)
        self._left(size)

    def _left(self, size: int) -> None:
        self.size -= size
        if self._room is not None and self.size <= (0 if self._closed else self._bytes_max // 2):
            self._wake_room()
        self._on_sent()

    def _wake_room(self) -> None:
        if self._room is not None:
            self._room.set()
            self._room = None
