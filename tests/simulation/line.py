"""A WebSocket connection written by hand: cheap, and free to do what no decent client does.

The real client takes part as well (see `steady`); this one can stop in the middle of a frame, send what is none, leave
answers unread and say nothing on leaving.
"""

from __future__ import annotations

from typing import Any

import msgspec
import trio

from tests.simulation.wire import End

_REQUEST = (
    "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer {secret}\r\n\r\n"
)
_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10


def frame(payload: bytes, opcode: int = _TEXT) -> bytes:
    """A whole frame as a client sends it, masked with zeros."""
    length = len(payload)
    if length < 126:
        head = bytes((0x80 | opcode, 0x80 | length))
    elif length < 65_536:
        head = bytes((0x80 | opcode, 0xFE)) + length.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 0xFF)) + length.to_bytes(8, "big")
    return head + bytes(4) + payload


class Ended(Exception):
    """The connection is over."""


class Line:
    """A connection of a rough client. ``code`` is what the daemon closed it with, None if it just ended."""

    def __init__(self, end: End) -> None:
        self.code: int | None = None
        self.over = trio.Event()
        self._end = end
        self._data = bytearray()
        self._sending = trio.Lock()

    async def open(self, secret: str) -> int:
        """Shake hands; the HTTP status. Raises Ended."""
        await self.write(_REQUEST.format(secret=secret).encode())
        while b"\r\n\r\n" not in self._data:
            await self._more()
        head, _, rest = bytes(self._data).partition(b"\r\n\r\n")
        self._data = bytearray(rest)
        return int(head.split(b" ", 2)[1])

    async def write(self, data: bytes) -> None:
        """Send bytes. Raises Ended."""
        try:
            async with self._sending:
                await self._end.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._ended()

    async def receive(self) -> Any:
        """The next message, decoded. Raises Ended."""
        while True:
            opcode, payload = await self._frame()
            if opcode == _TEXT:
                return msgspec.json.decode(payload)
            if opcode == _PING:
                await self.write(frame(payload, _PONG))
            elif opcode == _CLOSE:
                self.code = int.from_bytes(payload[:2], "big")
                await self.write(frame(payload[:2], _CLOSE))
                self._ended()

    async def _frame(self) -> tuple[int, bytes]:
        data = self._data
        while True:
            if len(data) >= 2:
                length, start = data[1] & 0x7F, 2
                if length == 126:
                    length, start = int.from_bytes(data[2:4], "big"), 4
                elif length == 127:
                    length, start = int.from_bytes(data[2:10], "big"), 10
                if len(data) >= start + length and len(data) >= start:
                    opcode, payload = data[0] & 0x0F, bytes(data[start : start + length])
                    del data[: start + length]
                    return opcode, payload
            await self._more()

    async def _more(self) -> None:
        try:
            data = await self._end.receive_some(65_536)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        if not data:
            self._ended()
        self._data += data

    def _ended(self) -> None:
        self.over.set()
        raise Ended

    def cut(self) -> None:
        """The network goes away under it."""
        self._end.cut()
        self.over.set()

    async def close(self) -> None:
        """Hang up without a word."""
        await self._end.aclose()
        self.over.set()
