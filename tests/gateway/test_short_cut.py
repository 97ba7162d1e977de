"""The short cut of `WireStream`: whole text messages go to the receiver at once, all else as before, in order."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from ledgerd.gateway.stream import WireStream, unmasked
from tests.gateway.fakes import Pair, text_frame

SWITCHING = b"HTTP/1.1 101 \r\n\r\n"
PING = b"\x89\x82abcd" + bytes(byte ^ mask for byte, mask in zip(b"hi", b"ab", strict=True))


class Listener:
    """Remembers what arrived; `full` holds the reading."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.full = False
        self.room = trio.Event()

    def arrived(self, text: str) -> None:
        self.texts.append(text)

    async def not_full(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.full:
            await self.room.wait()


async def make(*, attach: bool = True) -> tuple[WireStream, Pair, Listener]:
    ours, peer = trio.testing.memory_stream_pair()
    stream = WireStream(ours, message_bytes_max=200_000, frames_per_message_max=8)
    stream.await_receiver()
    await stream.send_all(SWITCHING)
    await peer.receive_some()
    listener = Listener()
    if attach:
        stream.attach(listener)
    return stream, peer, listener


async def passed_on(stream: WireStream, peer: Pair, data: bytes, step: int | None = None) -> bytes:
    """Everything that trio-websocket is given of ``data``, sent in pieces of ``step`` bytes."""
    received = bytearray()

    async def read() -> None:
        while data := await stream.receive_some(65_536):
            received.extend(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        for start in range(0, len(data), step or len(data)):
            await peer.send_all(data[start : start + (step or len(data))])
            await trio.testing.wait_all_tasks_blocked()
        await peer.send_eof()
    return bytes(received)


@pytest.mark.parametrize("step", [1, 3, 7, 1000, None])
async def test_whole_texts_arrive_in_order_however_the_bytes_are_cut(step: int | None) -> None:
    stream, peer, listener = await make()
    texts = ["", "a", "grüße", "x" * 125, "y" * 126, "z" * 5000]
    wire = b"".join(text_frame(text.encode()) for text in texts)
    assert await passed_on(stream, peer, wire, step) == b""
    assert listener.texts == texts


async def test_texts_longer_than_64_kib_arrive() -> None:
    stream, peer, listener = await make()
    await passed_on(stream, peer, text_frame(b"x" * 70_000), 16_384)
    assert listener.texts == ["x" * 70_000]


@pytest.mark.parametrize("step", [1, None])
async def test_a_ping_goes_to_trio_websocket_and_texts_after_it_take_the_short_cut(step: int | None) -> None:
    stream, peer, listener = await make()
    wire = text_frame(b"one") + PING + text_frame(b"two")
    assert await passed_on(stream, peer, wire, step) == PING
    assert listener.texts == ["one", "two"]


@pytest.mark.parametrize(
    "odd",
    [
        text_frame(b"part", fin=False),
        text_frame(b"\xff\xfe"),
        text_frame(b"binary", opcode=2),
        b"\x81\x05plain",  # not masked
        b"\xc1" + text_frame(b"compressed")[1:],
        b"\x81\xfe\x00\x05" + bytes(4) + b"short",
        b"\x81\xff" + (126).to_bytes(8, "big") + bytes(4) + b"x" * 126,
    ],
    ids=["fragment", "not-utf-8", "binary", "not-masked", "reserved-bit", "length-in-16-bits", "length-in-64-bits"],
)
@pytest.mark.parametrize("step", [1, None])
async def test_the_first_unusual_frame_sends_everything_after_it_through_trio_websocket(
    odd: bytes, step: int | None
) -> None:
    stream, peer, listener = await make()
    after = text_frame(b"after")
    assert await passed_on(stream, peer, text_frame(b"before") + odd + after, step) == odd + after
    assert listener.texts == ["before"]


async def test_what_comes_before_the_receiver_is_attached_is_kept_for_it() -> None:
    stream, peer, listener = await make(attach=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(passed_on, stream, peer, text_frame(b"early"))
        await trio.testing.wait_all_tasks_blocked()
        assert listener.texts == []
        stream.attach(listener)
    assert listener.texts == ["early"]


async def test_a_full_receiver_stops_the_reading() -> None:
    stream, peer, listener = await make()
    listener.full = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(passed_on, stream, peer, text_frame(b"one") + text_frame(b"two"), len(text_frame(b"one")))
        await trio.testing.wait_all_tasks_blocked()
        assert listener.texts == []
        listener.full = False
        listener.room.set()
    assert listener.texts == ["one", "two"]


async def test_a_message_cut_by_the_detaching_of_the_receiver_reaches_trio_websocket_whole() -> None:
    stream, peer, listener = await make()
    frame = text_frame(b"late")
    received = bytearray()

    async def read() -> None:
        while data := await stream.receive_some(65_536):
            received.extend(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await peer.send_all(frame[:5])
        await trio.testing.wait_all_tasks_blocked()
        stream.detach()
        await peer.send_all(frame[5:])
        await trio.testing.wait_all_tasks_blocked()
        await peer.send_eof()
    assert received == frame
    assert listener.texts == []


async def test_a_message_over_the_limit_ends_the_stream_after_those_before_it() -> None:
    stream, peer, listener = await make()
    await peer.send_all(text_frame(b"good") + text_frame(b"x" * 200_001)[:100])
    with pytest.raises(trio.BrokenResourceError):
        await stream.receive_some(65_536)
    assert listener.texts == ["good"]
    assert stream.too_big


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
def test_unmasking_is_its_own_inverse_and_agrees_with_the_definition(payload: bytes, mask: bytes) -> None:
    masked = unmasked(payload, mask)
    assert masked == bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    assert unmasked(masked, mask) == payload


@pytest.mark.parametrize("seed", range(20))
async def test_short_cut_and_trio_websocket_together_get_every_byte_of_a_random_stream_once(seed: int) -> None:
    dice = random.Random(seed)
    frames = [
        PING if dice.random() < 0.2 else text_frame(bytes(dice.choices(b"abc", k=dice.choice([0, 5, 130, 2000]))))
        for _ in range(30)
    ]
    stream, peer, listener = await make()
    through = await passed_on(stream, peer, b"".join(frames), dice.choice([1, 2, 17, 400, 5000]))
    assert through == PING * frames.count(PING)
    assert len(listener.texts) == 30 - frames.count(PING)
