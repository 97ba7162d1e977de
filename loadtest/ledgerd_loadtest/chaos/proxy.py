"""A proxy that can be told to misbehave: between a client and a daemon, or between a daemon and its database.

Rules of this file:

- A *link* is one connection that came in and the one that was dialled for it. Bytes go *up*, to the server, and *down*,
  to who dialled; each way of each link is one task.
- Weather (delay, throttle, black hole) is of the proxy, and holds for links that come while it lasts. What is done to a
  link (reset, half-close, a cut after so many bytes, a reply that gets lost) is done to the links that are there.
- Bytes that were swallowed make a link useless: when a black hole ends, every link that lost something is reset. A
  stream that goes on with a hole in it would be no fault that a network has.
- Nothing here knows what the bytes mean, but for two hints: ``marks`` tell links apart by what has gone up, and
  ``whole`` tells that a reply is complete.
"""

from __future__ import annotations

import math
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from enum import Enum

import trio
from msgspec import Struct

CHUNK_BYTES = 65_536
THROTTLED_S = 0.05
"""While throttled, bytes go in portions of about so many seconds."""

MARK_WITHIN_BYTES = 65_536
"""Of what goes up at the beginning of a link, where its mark is looked for."""

_LINGER_NOT = struct.pack("ii", 1, 0)
"""SO_LINGER with no time at all: closing sends RST."""


class Way(Enum):
    """A direction: to the server, or back to who dialled."""

    UP = "up"
    DOWN = "down"


class Weather(Struct):
    """What all bytes of one way go through. A black hole takes them and says nothing."""

    delay_s: float = 0.0
    bytes_per_s: float = math.inf
    black_hole: bool = False


class Link:
    """One connection through the proxy. ``near`` is who dialled, ``far`` the server."""

    def __init__(self, near: trio.SocketStream, far: trio.SocketStream) -> None:
        self.near = near
        self.far = far
        self.marks: set[str] = set()
        self.spoiled = False
        self.scope = trio.CancelScope()
        self.torn = False
        self._head = b""
        self._left: dict[Way, int] = {}  # bytes that may still pass before the cut
        self._shut: set[Way] = set()
        self._reply: str | None = None  # "wanted", then "swallowed"
        self._swallowed = b""

    def reset(self) -> None:
        """End both connections at once, without a goodbye."""
        self.torn = True
        self.scope.cancel()

    def half_close(self, way: Way) -> None:
        """Say the end of one way, and let nothing pass there any more; the other goes on."""
        self._shut.add(way)
        try:
            self._sink(way).socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.reset()

    def cut_after(self, way: Way, count: int) -> None:
        """Let so many more bytes pass, then reset: in the middle of whatever is under way."""
        self._left[way] = count

    def drop_reply(self) -> None:
        """Let the next request pass, swallow its answer, then reset: who asked cannot know what became of it."""
        self._reply = "wanted"

    def mark(self, data: bytes, marks: Mapping[str, bytes]) -> None:
        """Look at the first bytes that go up for what tells this link from others."""
        if len(self._head) > MARK_WITHIN_BYTES:
            return
        self._head += data
        self.marks |= {name for name, text in marks.items() if text in self._head}

    def passing(self, way: Way, data: bytes, whole: Callable[[bytes], bool]) -> bytes | None:
        """What of these bytes may pass; None if the link ends with them. A lost reply is counted as it is lost."""
        if way in self._shut:
            return b""
        if self._reply == "wanted" and way is Way.UP:
            self._reply = "swallowed"
        elif self._reply == "swallowed" and way is Way.DOWN:
            self._swallowed += data
            return None if whole(self._swallowed) else b""
        if (left := self._left.get(way)) is not None:
            self._left[way] = left - len(data)
            if left <= len(data):
                return data[:left] or None
        return data

    def over_after(self, way: Way) -> bool:
        """Whether the bytes that have just passed were the last before a cut."""
        return self._left.get(way, 1) <= 0

    def _sink(self, way: Way) -> trio.SocketStream:
        return self.far if way is Way.UP else self.near

    def ends(self, way: Way) -> tuple[trio.SocketStream, trio.SocketStream]:
        """Where the bytes of this way come from and go to."""
        return (self.near, self.far) if way is Way.UP else (self.far, self.near)


class Proxy:
    """Carries connections to where ``dial`` leads. `run` serves a listener; everything else changes what happens."""

    def __init__(
        self,
        dial: Callable[[], Awaitable[trio.SocketStream]],
        *,
        marks: Mapping[str, bytes] | None = None,
        whole: Callable[[bytes], bool] = bool,
    ) -> None:
        self._dial = dial
        self._marks = dict(marks or {})
        self._whole = whole
        self.links: set[Link] = set()
        self.weather = {way: Weather() for way in Way}
        self.replies_dropped = 0

    async def run(
        self, listener: trio.SocketListener, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve for ever; started with the port."""
        port: int = listener.socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self._serve, [listener])
            task_status.started(port)

    def marked(self, mark: str | None) -> list[Link]:
        """The links with a mark, or all."""
        return [link for link in self.links if mark is None or mark in link.marks]

    def clear(self) -> None:
        """Fine weather again. Links that lost bytes meanwhile are reset."""
        self.weather = {way: Weather() for way in Way}
        for link in list(self.links):
            if link.spoiled:
                link.reset()

    async def _serve(self, near: trio.SocketStream) -> None:
        try:
            far = await self._dial()
        except OSError:
            _abort(near)  # nobody is there: the same for who dialled as if nobody listened
            return
        link = Link(near, far)
        self.links.add(link)
        try:
            with link.scope:
                async with trio.open_nursery() as nursery:
                    for way in Way:
                        nursery.start_soon(self._carry, link, way)
        finally:
            self.links.discard(link)
            for stream in (near, far):
                if link.torn:
                    _abort(stream)
                else:
                    stream.socket.close()

    async def _carry(self, link: Link, way: Way) -> None:
        source, sink = link.ends(way)
        try:
            while data := bytes(await source.receive_some(self._portion(way))):
                if way is Way.UP:
                    link.mark(data, self._marks)
                if not await self._pass(link, way, data, sink):
                    return
            await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            link.reset()

    async def _pass(self, link: Link, way: Way, data: bytes, sink: trio.SocketStream) -> bool:
        """Send on what may pass; False when that was the end of the link."""
        weather = self.weather[way]
        if weather.delay_s:
            await trio.sleep(weather.delay_s)
        if weather.black_hole:
            link.spoiled = True
            return True
        passing = link.passing(way, data, self._whole)
        if passing is None:
            self.replies_dropped += not link.over_after(way)
            link.reset()
            return False
        if passing:
            await sink.send_all(passing)
        if link.over_after(way):
            link.reset()
            return False
        if weather.bytes_per_s < math.inf:
            await trio.sleep(len(data) / weather.bytes_per_s)
        return True

    def _portion(self, way: Way) -> int:
        return max(1, int(min(CHUNK_BYTES, self.weather[way].bytes_per_s * THROTTLED_S)))


def _abort(stream: trio.SocketStream) -> None:
    """Close with a reset, where the socket has such a thing."""
    with suppress(OSError):
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    stream.socket.close()
