"""The stream under trio-websocket: what it must not be trusted with.

Rules of this file:

- The headers of incoming frames are read as the bytes pass, and counted. Until a receiver is attached nothing is kept.
- What nearly every client sends, whole unfragmented text messages, takes a short cut: it is unmasked here and given to
  the receiver at once, several per read, past wsproto's frame objects, a channel and two task switches (a fifth of what
  a single transfer costs). The first data frame that is anything else ends the short cut for the connection: from
  there on everything goes through trio-websocket, in order. At most one incomplete message is kept.
- trio-websocket limits the characters of a *finished* message: a message of forty thousand empty frames would be held
  in memory under any limit. Here the bytes that headers announce and the number of frames are limited, before a byte
  of the payload is taken.
- One sender at a time. trio-websocket answers pings and closes on its own; the session's writer shares the lock.
- The session, not trio-websocket, says goodbye. trio-websocket closes the socket without a close frame after bad
  UTF-8 or a broken frame, and crashes its reader when a ping meets a close that it has sent itself. So its `aclose`
  only ends its own use of the stream; the session sends the close frame here and hangs up.
- What the operating system takes at once is sent without waiting. Of what it takes in part, the rest goes first.
- A send that was interrupted may have left half a frame. From then on nothing is sent.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from typing import NoReturn, Protocol

import trio

HANDSHAKE_BYTES_MAX = 16_384
"""Of the HTTP request; h11 gives up at the same size."""

LINGER_BYTES_MAX = 1_048_576
"""Read and thrown away while a peer that broke a limit finishes sending, so that it can read why it was closed."""

LINGER_CHUNK_BYTES = 65_536

_FIN = 0x80
_MASKED = 0x80
_OPCODE = 0x0F
_CLOSE = 0x8
_CONTROL = 0x8
_CLOSE_FRAME = 0x88
_REASON_BYTES_MAX = 123
_WHOLE_TEXT = 0x81
_SWITCHING = b"HTTP/1.1 101 "
_HEADERS_END = b"\r\n\r\n"

PING_FRAME = b"\x89\x00"


def text_header(length: int) -> bytes:
    """The header of an unfragmented, unmasked text frame of ``length`` bytes."""
    if length < 126:
        return bytes((0x81, length))
    if length < 65_536:
        return struct.pack("!BBH", 0x81, 126, length)
    return struct.pack("!BBQ", 0x81, 127, length)


def close_frame(code: int, reason: str) -> bytes:
    """A close frame; the reason is cut to what fits."""
    text = reason.encode()[:_REASON_BYTES_MAX].decode(errors="ignore").encode()
    return struct.pack("!BBH", _CLOSE_FRAME, 2 + len(text), code) + text


def unmasked(payload: bytes | bytearray, mask: bytes | bytearray) -> bytes:
    """The payload of a client's frame in clear (RFC 6455, section 5.3), as one operation on two large integers."""
    length = len(payload)
    key = (bytes(mask) * ((length + 3) // 4))[:length]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(key, "little")).to_bytes(length, "little")


def _framed(texts: Sequence[bytes]) -> bytes:
    """Text messages as frames."""
    if len(texts) == 1:
        return text_header(len(texts[0])) + texts[0]
    parts: list[bytes] = []
    for text in texts:
        parts += (text_header(len(text)), text)
    return b"".join(parts)


class Receiver(Protocol):
    """Takes the messages that come by the short cut."""

    def arrived(self, text: str) -> None:
        """A message, in order. Never waits."""

    async def not_full(self) -> None:
        """Return when more may be read."""


class WireStream(trio.abc.Stream):
    """Counts what comes in, serialises what goes out.

    ``last_received`` and ``sending_since`` are trio times; the latter is None while nothing is being sent.
    ``too_big`` says that the peer exceeded a limit of one message. ``on_end`` is called when trio-websocket can get
    nothing more from this stream, which is the only way to learn of it during the handshake.
    """

    __slots__ = (
        "_attached",
        "_close_sent",
        "_ended",
        "_frames",
        "_handshaking",
        "_lock",
        "_message_bytes",
        "_partial",
        "_payload_left",
        "_pending",
        "_receiver",
        "_receiver_expected",
        "_request_complete",
        "_rest",
        "_short_cut",
        "_too_big_is_next",
        "_torn",
        "frames_per_message_max",
        "last_received",
        "message_bytes_max",
        "on_end",
        "peer_said_close",
        "sending_since",
        "too_big",
        "transport",
    )

    def __init__(self, transport: trio.abc.Stream, *, message_bytes_max: int, frames_per_message_max: int) -> None:
        self.transport = transport
        self.message_bytes_max = message_bytes_max
        self.frames_per_message_max = frames_per_message_max
        self.last_received = trio.current_time()
        self.sending_since: float | None = None
        self.too_big = False
        self._too_big_is_next = False
        self.peer_said_close = False
        self.on_end: Callable[[], None] | None = None
        self._lock = trio.Lock()
        self._handshaking = True
        self._request_complete = False
        self._partial = b""  # the request as far as it has come, then a part of a frame's header
        self._payload_left = 0
        self._message_bytes = 0
        self._frames = 0
        self._ended = False
        self._torn = False
        self._rest = b""  # of a send that the socket took in part
        self._close_sent = False
        self._receiver_expected = False
        self._short_cut = False
        self._receiver: Receiver | None = None
        self._attached = trio.lowlevel.ParkingLot()
        self._pending = b""  # begins with a frame's header

    # -- in -----------------------------------------------------------------------------------------------------------

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Bytes for trio-websocket. Raises BrokenResourceError when the peer has exceeded a limit."""
        while True:
            if self._short_cut:
                passed = await self._take_short_cut()
                if passed:
                    return passed
            elif self._pending:
                passed, self._pending = self._pending, b""
                return passed
            data = await self._read(max_bytes)
            if not data or not (self._short_cut or self._pending):
                return data
            self._pending += data

    async def _read(self, max_bytes: int | None) -> bytes | bytearray:
        if self._ended:
            raise trio.ClosedResourceError
        if self._too_big_is_next:
            self._refuse_message()
        while self._handshaking and not self._request_complete:
            data = await self._receive(max_bytes)
            if not data:
                return data
            self._take_request(data)
            if self._request_complete:
                return self._partial
        data = await self._receive(max_bytes)
        if not data:
            return data
        if self._handshaking:
            self._end()
            raise trio.BrokenResourceError("something came before the handshake was answered")
        over = self._count_frames(data)
        if over is None:
            return data
        if over == 0:
            self._refuse_message()
        self._too_big_is_next = True
        return data[:over]  # the messages before it are whole and are answered

    def _refuse_message(self) -> NoReturn:
        self.too_big = True
        self._end()
        raise trio.BrokenResourceError("a message exceeded its limits")

    async def _receive(self, max_bytes: int | None) -> bytes | bytearray:
        try:
            data = await self.transport.receive_some(max_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._end()
            raise
        if not data:
            self._end()
            return data
        self.last_received = trio.current_time()
        return data

    def _take_request(self, data: bytes | bytearray) -> None:
        """Keep what has come of the request: byte by byte it would cost h11 a thousand times as much as at once."""
        self._partial = seen = self._partial + data
        end = seen.find(_HEADERS_END, max(0, len(seen) - len(data) - 3))
        # h11 would wait for the end of the line, whatever it begins with. No method of HTTP is shorter than three.
        garbage = not (seen[:3].isalpha() and seen[:3].isupper())
        # Bytes after the request and before our answer would be lost by wsproto, and frames misread from there on.
        early = end >= 0 and end + len(_HEADERS_END) != len(seen)
        if early or garbage or len(seen) > HANDSHAKE_BYTES_MAX:
            self._end()
            raise trio.BrokenResourceError("the handshake is no HTTP, is too long, or something follows it too early")
        self._request_complete = end >= 0

    def _count_frames(self, data: bytes | bytearray) -> int | None:
        """Follow the frame headers in ``data``; answers where the first frame over a limit begins, else None."""
        end = len(data)
        at = self._payload_left
        if at >= end:
            self._payload_left = at - end
            return None
        before = len(self._partial)
        if before:
            data = self._partial + data
            end += before
        while end - at >= 2:
            first, second = data[at], data[at + 1]
            length = second & 0x7F
            header = 2
            if length >= 126:
                header = 4 if length == 126 else 10
                if end - at < header:
                    break
                length = int.from_bytes(data[at + 2 : at + header], "big")
            opcode = first & _OPCODE
            if opcode == _CLOSE:
                self.peer_said_close = True
            elif opcode < _CONTROL:
                self._frames += 1
                self._message_bytes += length
                if self._message_bytes > self.message_bytes_max or self._frames > self.frames_per_message_max:
                    self._partial, self._payload_left = bytes(data[at:]), 0
                    return max(at - before, 0)
                if first & _FIN:
                    self._frames = self._message_bytes = 0
            at += header + (4 if second & _MASKED else 0) + length
        self._partial = bytes(data[at:]) if at < end else b""
        self._payload_left = max(at - end, 0)
        return None

    # -- the short cut ------------------------------------------------------------------------------------------------

    def await_receiver(self) -> None:
        """Keep what comes after the handshake for a receiver that is about to be attached."""
        self._receiver_expected = True

    def attach(self, receiver: Receiver) -> None:
        """Give whole text messages to the receiver from now on."""
        self._receiver = receiver
        self._attached.unpark_all()

    def detach(self) -> None:
        """Give the receiver nothing more: what comes goes through trio-websocket again."""
        self._receiver = None
        self._short_cut = False
        self._attached.unpark_all()

    async def _take_short_cut(self) -> bytes:
        """Give the receiver what is whole; answers bytes that are for trio-websocket, or nothing if more must come."""
        while self._receiver is None and self._short_cut:
            await self._attached.park()
        receiver = self._receiver
        if receiver is None:
            return b""
        passed = self._deliver(receiver)
        if not passed:
            await receiver.not_full()
        return passed

    def _deliver(self, receiver: Receiver) -> bytes:
        data, at = self._pending, 0
        end = len(data)
        while end - at >= 2 and self._short_cut:
            first, second = data[at], data[at + 1]
            length, header = second & 0x7F, 2
            if length >= 126:
                header = 4 if length == 126 else 10
                if end - at < header:
                    break
                length = int.from_bytes(data[at + 2 : at + header], "big")
                if length < (126 if header == 4 else 65_536):
                    self._short_cut = False  # RFC 6455, section 5.2: written in more bytes than it needs
                    break
            body = at + header + 4
            after = body + length
            if first == _WHOLE_TEXT and second & _MASKED:
                if after > end:
                    break
                try:
                    text = unmasked(data[body:after], data[body - 4 : body]).decode()
                except UnicodeDecodeError:
                    self._short_cut = False  # trio-websocket knows what to say
                    break
                at = after
                receiver.arrived(text)
            elif first & _CONTROL and first & _FIN and second & _MASKED and length < 126:
                if after > end:
                    break
                self._pending = data[after:]
                return data[at:after]
            else:
                self._short_cut = False
        if self._short_cut:
            self._pending = data[at:]
            return b""
        self._pending = b""
        return data[at:]

    def _end(self) -> None:
        self._ended = True
        if self.on_end is not None:
            self.on_end()

    async def linger(self) -> None:
        """Throw away what a peer still sends, until it closes or has sent `LINGER_BYTES_MAX`.

        A socket closed with unread bytes is reset, and a reset can overtake the close frame: the peer would never
        read why it was closed. To be called under a deadline, when trio-websocket is done with the stream.
        """
        left = LINGER_BYTES_MAX
        self.frames_per_message_max = self.message_bytes_max = 2**63
        try:
            while left > 0 and not self.peer_said_close:
                data = await self.transport.receive_some(LINGER_CHUNK_BYTES)
                if not data:
                    return
                left -= len(data)
                self._count_frames(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    # -- out ----------------------------------------------------------------------------------------------------------

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send what trio-websocket made: the answer to the handshake, then pongs and the answer to a close."""
        if self._handshaking:
            if bytes(data[: len(_SWITCHING)]) == _SWITCHING:
                # Before it is sent: the peer's first frame may be there before this task runs again.
                self._handshaking = False
                self._short_cut = self._receiver_expected
                self._partial = b""
            await self._send(data)
            return
        if self._close_sent:
            return
        if data[0] == _CLOSE_FRAME:
            self._close_sent = True
        await self._send(data)

    async def send_texts(self, texts: Sequence[bytes]) -> None:
        """Send several text messages in one go. Raises BrokenResourceError or ClosedResourceError."""
        if self._close_sent:
            raise trio.ClosedResourceError
        await self._send(_framed(texts))

    @property
    def can_send_now(self) -> bool:
        """Whether `send_now` may be tried: a plain socket, on which nobody is sending."""
        return (
            isinstance(self.transport, trio.SocketStream)
            and not self._lock.locked()
            and not (self._torn or self._close_sent or self._handshaking or self._rest)
        )

    def send_now(self, texts: Sequence[bytes]) -> bool:
        """Send messages without waiting. False: the socket did not take all of them, and `send_rest` must follow."""
        assert isinstance(self.transport, trio.SocketStream)
        data = _framed(texts)
        try:
            taken = os.write(self.transport.socket.fileno(), data)
        except OSError:
            taken = 0  # no room, or a broken connection: `send_rest` will find out
        self._rest = data[taken:]
        return not self._rest

    async def send_rest(self) -> None:
        """Send what `send_now` left. Raises BrokenResourceError or ClosedResourceError."""
        await self._send(b"")

    async def send_ping(self) -> None:
        """Send a ping. Raises BrokenResourceError or ClosedResourceError."""
        if not self._close_sent:
            await self._send(PING_FRAME)

    async def send_close(self, code: int, reason: str) -> None:
        """Send a close frame, if none was sent and the peer can still be written to. The last thing that is sent."""
        if self._close_sent or self._handshaking:
            return
        self._close_sent = True
        try:
            await self._send(close_frame(code, reason))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async def _send(self, data: bytes | bytearray | memoryview) -> None:
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()
        try:
            if self._torn:
                raise trio.BrokenResourceError("an earlier send was interrupted")
            self._torn = True
            self.sending_since = trio.current_time()
            if self._rest:
                data, self._rest = self._rest + data, b""
            await self.transport.send_all(data)
            self._torn = False
        finally:
            self.sending_since = None
            self._lock.release()

    async def wait_send_all_might_not_block(self) -> None:
        """Part of the interface of streams."""
        await self.transport.wait_send_all_might_not_block()

    # -- the end ------------------------------------------------------------------------------------------------------

    @property
    def handshaking(self) -> bool:
        """Whether the client has not been let in yet."""
        return self._handshaking

    @property
    def ended(self) -> bool:
        """Whether trio-websocket is done with the stream: its reader will not read again."""
        return self._ended

    async def aclose(self) -> None:
        """End trio-websocket's use of the stream. The server closes the transport."""
        self._end()
        await trio.lowlevel.checkpoint()
