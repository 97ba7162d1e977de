from __future__ import annotations

import pytest
import trio
import trio.testing

from ledgerd.gateway.stream import HANDSHAKE_BYTES_MAX, WireStream, close_frame, text_header
from tests.gateway.fakes import Pair, text_frame

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
SWITCHING = b"HTTP/1.1 101 \r\n\r\n"


def make(message_bytes_max: int = 1000, frames_per_message_max: int = 8) -> tuple[WireStream, Pair]:
    ours, peer = trio.testing.memory_stream_pair()
    stream = WireStream(ours, message_bytes_max=message_bytes_max, frames_per_message_max=frames_per_message_max)
    return stream, peer


async def make_open(**limits: int) -> tuple[WireStream, Pair]:
    stream, peer = make(**limits)
    await stream.send_all(SWITCHING)
    assert await peer.receive_some() == SWITCHING
    return stream, peer


async def receive(stream: WireStream) -> bytes:
    return bytes(await stream.receive_some(65_536))


async def test_frames_within_the_limits_pass_as_they_are() -> None:
    stream, peer = await make_open()
    for frame in (
        text_frame(b"x" * 10),
        text_frame(b"y" * 1000),
        text_frame(b"", fin=False),
        text_frame(b"z", opcode=0),
    ):
        await peer.send_all(frame)
        assert await receive(stream) == frame


@pytest.mark.parametrize("size", [1001, 70_000])
async def test_a_frame_is_refused_by_the_length_that_its_header_announces(size: int) -> None:
    stream, peer = await make_open()
    await peer.send_all(text_frame(b"x" * size)[:14])
    with pytest.raises(trio.BrokenResourceError):
        await receive(stream)
    assert stream.too_big


async def test_fragments_are_added_up_over_the_message() -> None:
    stream, peer = await make_open()
    await peer.send_all(text_frame(b"x" * 600, fin=False))
    await receive(stream)
    await peer.send_all(text_frame(b"x" * 401, opcode=0))
    with pytest.raises(trio.BrokenResourceError):
        await receive(stream)
    assert stream.too_big


async def test_empty_frames_count_although_they_have_no_bytes() -> None:
    stream, peer = await make_open()
    first = text_frame(b"", fin=False)
    rest = text_frame(b"", opcode=0, fin=False) * 8
    await peer.send_all(first + rest)
    assert await receive(stream) == (first + rest)[: 8 * 6]
    with pytest.raises(trio.BrokenResourceError):
        await receive(stream)


async def test_the_messages_before_one_that_is_too_big_still_arrive() -> None:
    stream, peer = await make_open()
    good = text_frame(b"hello")
    await peer.send_all(good + text_frame(b"x" * 1001))
    assert await receive(stream) == good
    with pytest.raises(trio.BrokenResourceError):
        await receive(stream)


async def test_a_message_is_too_big_when_its_turn_has_come() -> None:
    """What came before it in the same piece may have ended the connection for another reason."""
    stream, peer = await make_open()
    broken = text_frame(b"no such opcode", opcode=3)
    await peer.send_all(broken + text_frame(b"x" * 1001))
    assert await receive(stream) == broken
    assert not stream.too_big


async def test_a_finished_message_gives_its_budget_back() -> None:
    stream, peer = await make_open()
    for _ in range(50):
        await peer.send_all(text_frame(b"x" * 900))
        await receive(stream)
    assert not stream.too_big


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 11])
async def test_headers_are_followed_however_the_bytes_are_cut(step: int) -> None:
    stream, peer = await make_open(message_bytes_max=70_000)
    good = text_frame(b"a" * 5) + text_frame(b"b" * 300) + text_frame(b"p", opcode=9) + text_frame(b"c" * 66_000)
    data = good + text_frame(b"x" * 70_001)
    seen = b""
    for start in range(0, len(data), step):
        await peer.send_all(data[start : start + step])
        try:
            seen += await receive(stream)
        except trio.BrokenResourceError:
            break
    # Some bytes of the offending header may have passed before its length could be read.
    assert stream.too_big
    assert good == seen[: len(good)]
    assert len(seen) < len(good) + 14


async def test_pings_between_fragments_are_not_part_of_the_message() -> None:
    stream, peer = await make_open()
    await peer.send_all(text_frame(b"x", fin=False))
    await receive(stream)
    for _ in range(20):
        await peer.send_all(text_frame(b"ping", opcode=9))
        await receive(stream)
    assert not stream.too_big


async def test_a_handshake_that_is_too_long_is_cut_off() -> None:
    stream, peer = make()
    await peer.send_all(b"GET /" + b"x" * (HANDSHAKE_BYTES_MAX - 5))
    with trio.move_on_after(0) as waiting:
        await receive(stream)
    assert waiting.cancelled_caught
    await peer.send_all(b"x")
    with pytest.raises(trio.BrokenResourceError):
        await receive(stream)


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\x00", b"get / HTTP/1.1\r\n", b"\n", b"\0"])
async def test_what_does_not_begin_as_http_is_cut_off_at_once(data: bytes) -> None:
    stream, peer = make()
    await peer.send_all(data)
    with pytest.raises(trio.BrokenResourceError):
        await receive(stream)


async def test_what_turns_out_not_to_begin_as_http_is_cut_off() -> None:
    stream, peer = make()
    await peer.send_all(b"P")
    with trio.move_on_after(0) as waiting:
        await receive(stream)
    assert waiting.cancelled_caught
    await peer.send_all(b"\r\n\r\n")
    with pytest.raises(trio.BrokenResourceError):
        await receive(stream)


async def test_a_request_that_comes_byte_by_byte_is_given_on_whole() -> None:
    stream, peer = make()
    seen: list[bytes] = []
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            seen.append(await receive(stream))

        nursery.start_soon(read)
        for number in range(len(REQUEST)):
            assert seen == []
            await peer.send_all(REQUEST[number : number + 1])
            await trio.testing.wait_all_tasks_blocked()
    assert seen == [REQUEST]


@pytest.mark.parametrize("cut", [1, len(REQUEST) - 2, len(REQUEST)])
async def test_frames_before_the_handshake_is_answered_are_refused(cut: int) -> None:
    stream, peer = make()
    data = REQUEST + text_frame(b"early")
    await peer.send_all(data[:cut])
    if cut == len(REQUEST):
        assert await receive(stream) == REQUEST
    else:
        with trio.move_on_after(0) as waiting:
            await receive(stream)
        assert waiting.cancelled_caught
    await peer.send_all(data[cut:])
    with pytest.raises(trio.BrokenResourceError):
        await receive(stream)


async def test_several_texts_go_out_in_one_send() -> None:
    stream, peer = await make_open()
    texts = [b"a", b"b" * 200, b"c" * 70_000]
    await stream.send_texts(texts)
    expected = b"".join(text_header(len(text)) + text for text in texts)
    assert await peer.receive_some() == expected


async def test_nothing_is_sent_after_a_close_frame() -> None:
    stream, peer = await make_open()
    await stream.send_close(1009, "too big")
    await stream.send_close(1011, "again")
    await stream.send_all(b"\x8a\x00")
    with pytest.raises(trio.ClosedResourceError):
        await stream.send_texts([b"late"])
    assert await peer.receive_some() == close_frame(1009, "too big")


async def test_a_close_that_trio_websocket_answered_is_not_followed_by_another() -> None:
    stream, peer = await make_open()
    await stream.send_all(close_frame(1000, ""))
    await stream.send_close(1001, "")
    assert await peer.receive_some() == close_frame(1000, "")


def test_a_long_reason_is_cut_between_characters() -> None:
    frame = close_frame(1011, "é" * 100)
    assert frame[1] == len(frame) - 2 <= 125
    assert set(frame[4:].decode()) == {"é"}


async def test_after_an_interrupted_send_nothing_more_is_sent() -> None:
    ours, peer = trio.testing.lockstep_stream_pair()
    stream = WireStream(ours, message_bytes_max=1000, frames_per_message_max=8)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, SWITCHING)
        assert await peer.receive_some() == SWITCHING
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.send_texts([b"half"])
    with pytest.raises(trio.BrokenResourceError):
        await stream.send_texts([b"next"])
    await stream.send_close(1011, "")  # would wait for ever for the peer if it were sent


async def test_aclose_ends_the_reading_but_keeps_the_transport() -> None:
    stream, peer = await make_open()
    await stream.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await receive(stream)
    await stream.send_close(1007, "not UTF-8")
    assert await peer.receive_some() == close_frame(1007, "not UTF-8")


async def test_lingering_ends_when_the_peer_says_close() -> None:
    stream, peer = await make_open()
    await peer.send_all(text_frame(b"x" * 2000))
    with pytest.raises(trio.BrokenResourceError):
        await receive(stream)
    await peer.send_all(text_frame(b"y" * 5000) + text_frame(b"\x03\xf1", opcode=8))
    await stream.linger()
    assert stream.peer_said_close
