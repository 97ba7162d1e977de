"""Target of the stream under trio-websocket: which bytes come is what counts, not how they are cut.

The same bytes of a client are read four times: in one piece, in pieces, without the short cut, and by wsproto alone
(`_reference`, which also counts the limits, over the whole at once). All must come to the same messages and to the same
end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import trio
from msgspec import Struct
from trio_websocket import ConnectionClosed, wrap_server_stream
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, TextMessage
from wsproto.utilities import RemoteProtocolError

from ledgerd.gateway.server import RECEIVE_BYTES
from ledgerd.gateway.stream import WireStream, unmasked
from tests.fuzz import schedule
from tests.fuzz.source import Source

MESSAGE_BYTES_MAX = 400
FRAMES_PER_MESSAGE_MAX = 4

BROKEN = 1002
NOT_UTF_8 = 1007
TOO_BIG = 1009
NO_TEXT = 1003
GONE = 1006

REQUEST = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Outcome(Struct, frozen=True):
    """What came of a client's bytes: the texts, and the close code that the session would log."""

    texts: list[str]
    code: int


def wire(data: bytes) -> None:
    """Short cut, trio-websocket and wsproto agree on the client's bytes, however they are cut."""
    source = Source(data)
    pieces = Source(source.take(5)).pieces
    spoken = frames_of(source)
    schedule.run(partial(_compare, spoken, pieces), data)


async def _compare(spoken: bytes, pieces: Callable[[bytes], list[bytes]]) -> None:
    wanted = _reference(spoken)
    for way in (
        partial(_served, [spoken] if spoken else [], short_cut=True),
        partial(_served, pieces(spoken), short_cut=True),
        partial(_served, pieces(spoken), short_cut=False),
    ):
        came = await way()
        assert came.texts == wanted.texts, (came, wanted)
        assert came.code == wanted.code or _open_to_both(spoken, came.code, wanted.code), (came, wanted)


def _open_to_both(spoken: bytes, *codes: int) -> bool:
    """Whether both codes are right: for a last frame that is not whole, or one that is too big and broken as well."""
    over = _first_over(spoken)
    if over is not None:
        return set(codes) == {TOO_BIG, BROKEN} and _reference_of(spoken[: _body_at(spoken, over) + 4]).code == BROKEN
    at = 0
    while at < len(spoken):
        at = _after_frame(spoken, at)
    return at > len(spoken) and set(codes) <= {GONE, BROKEN, NOT_UTF_8}


# -- what the client says ---------------------------------------------------------------------------------------------


def frames_of(source: Source) -> bytes:
    """Frames, most of them as they should be, then whatever bytes are left."""
    spoken = bytearray()
    for _ in range(source.below(12)):
        spoken += fragments_of(source) if source.one_in(4) else frame_of(source)
    return bytes(spoken) + source.rest()


def fragments_of(source: Source) -> bytes:
    """One text in several frames, perhaps one too many, perhaps with a ping between them."""
    number = 1 + source.below(FRAMES_PER_MESSAGE_MAX + 2)
    spoken = bytearray()
    for index in range(number):
        first = (0 if index else 1) | (0x80 if index == number - 1 else 0)
        payload = source.take(source.below(9)).decode("latin-1").encode() * source.pick([1, 1, 5, 20])
        spoken += _framed(first, payload, source.take(4), masked=0x80)
        if source.one_in(4):
            spoken += _framed(0x89, b"", bytes(4), masked=0x80)
    return bytes(spoken)


def frame_of(source: Source) -> bytes:
    """One frame of a client."""
    opcode = source.pick([1, 1, 1, 0, 9, 8, 10, 2, 1, 0, 3, 11])
    first = opcode | (0 if source.one_in(4) else 0x80) | (0x40 if source.one_in(40) else 0)
    payload = source.pick([b"", b"\x03\xe8", "grüße".encode(), b'{"id":1}']) if source.one_in(2) else source.take(9)
    payload *= source.pick([1, 1, 1, 2, 7, 20, 50])
    return _framed(
        first,
        payload,
        source.take(4),
        masked=0 if source.one_in(40) else 0x80,
        long=source.one_in(40),
    )


def _framed(first: int, payload: bytes, mask: bytes, *, masked: int, long: bool = False) -> bytes:
    """``long`` writes the length in more bytes than it needs."""
    length, mask = len(payload), mask.ljust(4, b"\0")
    if length < 126 and not long:
        head = bytes((first, masked | length))
    else:
        head = bytes((first, masked | 126)) + length.to_bytes(2, "big")
    return head + (mask + unmasked(payload, mask) if masked else payload)


# -- what comes of it -------------------------------------------------------------------------------------------------


class _Line(trio.abc.Stream):
    """A client that sends its request, awaits the answer, says these pieces and goes away."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = [REQUEST, *pieces]
        self._answered = trio.Event()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        if self._pieces and self._pieces[0] is not REQUEST:
            await self._answered.wait()
        if not self._pieces:
            return b""
        piece = self._pieces.pop(0)
        if max_bytes is not None and len(piece) > max_bytes:
            self._pieces.insert(0, piece[max_bytes:])
        return piece[:max_bytes]

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self._answered.set()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class _Texts:
    """The receiver of a session, without a session."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def arrived(self, text: str) -> None:
        self.texts.append(text)

    async def not_full(self) -> None:
        return


async def _served(pieces: list[bytes], *, short_cut: bool) -> Outcome:
    """Read as the gateway and its session do, up to the end."""
    receiver = _Texts()
    stream = WireStream(
        _Line(pieces), message_bytes_max=MESSAGE_BYTES_MAX, frames_per_message_max=FRAMES_PER_MESSAGE_MAX
    )
    async with trio.open_nursery() as nursery:
        request = await wrap_server_stream(
            nursery, stream, max_message_size=MESSAGE_BYTES_MAX, receive_buffer_size=RECEIVE_BYTES
        )
        if short_cut:
            stream.await_receiver()
        connection = await request.accept()
        if short_cut:
            stream.attach(receiver)
        code = 0
        while not code:
            try:
                message = await connection.get_message()
            except ConnectionClosed as closed:
                code = _code(stream, closed)
                break
            if isinstance(message, str):
                receiver.arrived(message)
            else:
                code = NO_TEXT
        nursery.cancel_scope.cancel()
    return Outcome(receiver.texts, code)


def _code(stream: WireStream, closed: ConnectionClosed) -> int:
    if stream.too_big:
        return TOO_BIG
    return GONE if closed.reason is None else closed.reason.code


def _reference(spoken: bytes) -> Outcome:
    """By wsproto alone, given everything up to the first frame that is over a limit."""
    over = _first_over(spoken)
    outcome = _reference_of(spoken[:over])
    return outcome if over is None or outcome.code != GONE else Outcome(outcome.texts, TOO_BIG)


def _reference_of(spoken: bytes) -> Outcome:
    connection = Connection(ConnectionType.SERVER)
    texts: list[str] = []
    parts: list[str] = []
    try:
        connection.receive_data(spoken)
        for event in connection.events():
            if isinstance(event, CloseConnection):
                return Outcome(texts, event.code)
            if isinstance(event, TextMessage):
                parts.append(event.data)
                if event.message_finished:
                    texts.append("".join(parts))
                    parts = []
            elif getattr(event, "message_finished", False):
                return Outcome(texts, NO_TEXT)
    except RemoteProtocolError as error:
        return Outcome(texts, getattr(error.event_hint, "code", BROKEN))
    return Outcome(texts, GONE)


def _first_over(spoken: bytes) -> int | None:
    """Where the first frame begins that makes its message too large, going by the headers."""
    at = size = frames = 0
    while _body_at(spoken, at) <= len(spoken):
        if not spoken[at] & 0x08:
            size, frames = size + _body_size(spoken, at), frames + 1
            if size > MESSAGE_BYTES_MAX or frames > FRAMES_PER_MESSAGE_MAX:
                return at
            if spoken[at] & 0x80:
                size = frames = 0
        at = _after_frame(spoken, at)
    return None


def _extra(spoken: bytes, at: int) -> int:
    """Bytes in which the length of the frame is written beside the first two of its header."""
    return {126: 2, 127: 8}.get(spoken[at + 1] & 0x7F, 0)


def _body_at(spoken: bytes, at: int) -> int:
    """Where the mask or the payload of the frame begins; past the end if so much of it is not there."""
    return at + 2 + (_extra(spoken, at) if len(spoken) - at >= 2 else 0)


def _body_size(spoken: bytes, at: int) -> int:
    extra = _extra(spoken, at)
    return int.from_bytes(spoken[at + 2 : at + 2 + extra], "big") if extra else spoken[at + 1] & 0x7F


def _after_frame(spoken: bytes, at: int) -> int:
    """Where the next frame begins; past the end if this one is not whole."""
    body = _body_at(spoken, at)
    if body > len(spoken):
        return len(spoken) + 1
    return body + (4 if spoken[at + 1] & 0x80 else 0) + _body_size(spoken, at)
