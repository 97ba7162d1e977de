"""The network between clients and daemons: byte pipes with a delay and a bound, which can be cut."""

from __future__ import annotations

from collections import deque
from random import Random

import trio


class Pipe:
    """Bytes in one direction. At most about ``capacity`` of them are under way; then the sender waits."""

    def __init__(self, rng: Random, delay_s: float, capacity: int) -> None:
        self.rng = rng
        self.delay_s = delay_s
        self.capacity = capacity
        self.chunks: deque[tuple[float, bytes]] = deque()
        self.size = 0
        self.ended = False  # the sender has closed: what is under way still arrives
        self.broken = False  # cut: nothing arrives any more
        self.changed = trio.lowlevel.ParkingLot()

    def put(self, data: bytes) -> None:
        """Send bytes on their way, whatever the bound."""
        self.chunks.append((trio.current_time() + self.delay_s, data))
        self.size += len(data)
        self.changed.unpark_all()

    def take(self, most: int | None) -> bytes:
        """What has arrived of the first chunk; sometimes only a part of it, as networks do."""
        arrives_at, data = self.chunks.popleft()
        if most is not None and len(data) > most:
            self.chunks.appendleft((arrives_at, data[most:]))
            data = data[:most]
        elif len(data) > 1 and self.rng.random() < 0.05:
            at = self.rng.randrange(1, len(data))
            self.chunks.appendleft((arrives_at, data[at:]))
            data = data[:at]
        self.size -= len(data)
        self.changed.unpark_all()
        return data

    def end(self) -> None:
        """No more will be sent."""
        self.ended = True
        self.changed.unpark_all()

    def cut(self) -> None:
        """Lose what is under way."""
        self.broken = True
        self.chunks.clear()
        self.size = 0
        self.changed.unpark_all()


class End(trio.abc.Stream):
    """One end of a connection."""

    def __init__(self, incoming: Pipe, outgoing: Pipe) -> None:
        self.incoming = incoming
        self.outgoing = outgoing
        self._closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See trio.abc.SendStream."""
        await self.wait_send_all_might_not_block()
        self.outgoing.put(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        """See trio.abc.SendStream."""
        await trio.lowlevel.checkpoint()
        self._check_sending()
        while self.outgoing.size >= self.outgoing.capacity:
            await self.outgoing.changed.park()
            self._check_sending()

    def _check_sending(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError
        if self.outgoing.broken:
            raise trio.BrokenResourceError("the connection was cut")

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See trio.abc.ReceiveStream."""
        await trio.lowlevel.checkpoint()
        pipe = self.incoming
        while True:
            if self._closed:
                raise trio.ClosedResourceError
            if pipe.broken:
                raise trio.BrokenResourceError("the connection was cut")
            if pipe.chunks:
                arrives_at = pipe.chunks[0][0]
                if arrives_at <= trio.current_time():
                    return pipe.take(max_bytes)
                with trio.move_on_at(arrives_at):
                    await pipe.changed.park()
            elif pipe.ended:
                return b""
            else:
                await pipe.changed.park()

    async def aclose(self) -> None:
        """See trio.abc.AsyncResource. What the other end still sends is answered with a reset, as by a socket."""
        if not self._closed:
            self._closed = True
            self.outgoing.end()
            self.incoming.cut()
        await trio.lowlevel.checkpoint()

    def cut(self) -> None:
        """The network takes the connection away, in both directions at once."""
        self.incoming.cut()
        self.outgoing.cut()


class Listener(trio.abc.Listener[End]):
    """Where a daemon accepts connections. ``ends`` are the daemon's ends of those that were made."""

    def __init__(self) -> None:
        self._connect, self._accept = trio.open_memory_channel[End](1_000)
        self.ends: list[End] = []
        self.closed = False

    async def accept(self) -> End:
        """See trio.abc.Listener."""
        return await self._accept.receive()

    async def aclose(self) -> None:
        """See trio.abc.AsyncResource."""
        self.closed = True
        self._accept.close()
        await trio.lowlevel.checkpoint()

    def connect(self, rng: Random) -> End:
        """A connection from a client. Raises ConnectionRefusedError once closed."""
        if self.closed:
            raise ConnectionRefusedError("nobody listens")
        delay_s = rng.choice((0.0001, 0.001, 0.02))
        there, back = (Pipe(rng, delay_s, rng.choice((2_000, 65_536))) for _ in range(2))
        server, client = End(there, back), End(back, there)
        self.ends.append(server)
        self._connect.send_nowait(server)
        return client

    def cut_all(self) -> None:
        """The daemon's machine is gone."""
        self.closed = True
        for end in self.ends:
            end.cut()
