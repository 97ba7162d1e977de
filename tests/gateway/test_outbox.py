from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio
import trio.testing

from ledgerd.gateway.outbox import WRITE_BYTES_MAX, Flusher, Outbox
from ledgerd.gateway.stream import PING_FRAME, WireStream, close_frame, text_header
from tests.gateway.fakes import Pair


async def make(bytes_max: int = 100) -> tuple[Outbox, Pair, list[int]]:
    ours, peer = trio.testing.memory_stream_pair()
    stream = WireStream(ours, message_bytes_max=1000, frames_per_message_max=8)
    await stream.send_all(b"HTTP/1.1 101 \r\n\r\n")
    await peer.receive_some()
    sent: list[int] = []
    outbox = Outbox(stream, bytes_max, lambda: sent.append(outbox.size))
    return outbox, peer, sent


async def test_a_push_without_room_is_refused_and_changes_nothing() -> None:
    outbox, _, _ = await make()
    assert outbox.push(b"x" * 60)
    assert not outbox.push(b"x" * 41)
    assert outbox.push(b"x" * 40)
    assert outbox.size == 100


async def test_an_answer_is_taken_even_without_room() -> None:
    outbox, _, _ = await make()
    assert outbox.push(b"x" * 100)
    outbox.append(b"answer")
    assert outbox.size == 106
    assert outbox.full


async def test_what_waits_is_sent_in_order_and_in_one_go(nursery: trio.Nursery) -> None:
    outbox, peer, sent = await make()
    for text in (b"one", b"two", b"three"):
        outbox.append(text)
    nursery.start_soon(outbox.run)
    expected = b"".join(text_header(len(text)) + text for text in (b"one", b"two", b"three"))
    assert await peer.receive_some() == expected
    await trio.testing.wait_all_tasks_blocked()
    assert sent == [0]


async def test_who_waits_for_room_is_woken_when_half_is_free(nursery: trio.Nursery) -> None:
    outbox, _, _ = await make()
    assert outbox.push(b"x" * 90)
    woken = trio.Event()

    async def wait() -> None:
        await outbox.room()
        woken.set()

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    assert not woken.is_set()
    nursery.start_soon(outbox.run)
    await woken.wait()
    assert outbox.push(b"y" * 90)


async def test_who_waits_for_room_learns_that_the_connection_is_gone(nursery: trio.Nursery) -> None:
    outbox, _, _ = await make()
    assert outbox.push(b"x" * 90)

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await outbox.room()

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    outbox.close()
    assert not outbox.push(b"late")


async def test_a_ping_goes_before_what_waits(nursery: trio.Nursery) -> None:
    outbox, peer, _ = await make()
    outbox.append(b"text")
    outbox.ping()
    nursery.start_soon(outbox.run)
    assert (await peer.receive_some())[:2] == b"\x89\x00"


# -- the shared flusher ------------------------------------------------------------------------------------------------


OnASocket = Callable[..., Awaitable[tuple[Outbox, WireStream, trio.SocketStream]]]


@pytest.fixture
async def on_a_socket() -> AsyncIterator[OnASocket]:
    """Makes an outbox in front of a real socket, and gives its peer."""
    opened: list[trio.SocketStream] = []

    async def make_one(flusher: Flusher, bytes_max: int = 8_000_000) -> tuple[Outbox, WireStream, trio.SocketStream]:
        ours, theirs = (trio.SocketStream(end) for end in trio.socket.socketpair())
        opened.extend((ours, theirs))
        stream = WireStream(ours, message_bytes_max=1000, frames_per_message_max=8)
        await stream.send_all(b"HTTP/1.1 101 \r\n\r\n")
        await theirs.receive_some()
        return Outbox(stream, bytes_max, lambda: None, flusher), stream, theirs

    yield make_one
    for stream in opened:
        await trio.aclose_forcefully(stream)


def frames(*texts: bytes) -> bytes:
    return b"".join(text_header(len(text)) + text for text in texts)


async def read(peer: trio.SocketStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await peer.receive_some()
    return data


async def test_the_flusher_sends_what_waits_in_many_outboxes_without_waking_their_tasks(
    nursery: trio.Nursery, on_a_socket: OnASocket
) -> None:
    flusher = Flusher()
    made = [await on_a_socket(flusher) for _ in range(3)]
    for outbox, _, _ in made:
        outbox.append(b"one")
        outbox.append(b"two")
    nursery.start_soon(flusher.run)
    for outbox, _, peer in made:
        assert await peer.receive_some() == frames(b"one", b"two")
        assert outbox.empty


async def test_what_a_socket_takes_in_part_is_finished_before_anything_else(
    nursery: trio.Nursery, on_a_socket: OnASocket
) -> None:
    flusher = Flusher()
    outbox, stream, peer = await on_a_socket(flusher)
    nursery.start_soon(flusher.run)
    nursery.start_soon(outbox.run)
    texts = [bytes([65 + number]) * (WRITE_BYTES_MAX - 100) for number in range(8)]
    for text in texts:
        outbox.append(text)
        await trio.testing.wait_all_tasks_blocked()
    assert not outbox.empty  # the socket is full, and not at the end of a message
    assert stream.sending_since is not None
    outbox.ping()
    outbox.append(b"last")
    await trio.testing.wait_all_tasks_blocked()
    whole = await read(peer, len(frames(*texts, b"last")) + len(PING_FRAME))
    assert whole.replace(PING_FRAME, b"") == frames(*texts, b"last")
    await trio.testing.wait_all_tasks_blocked()
    assert outbox.empty


async def test_a_connection_that_broke_is_found_out_by_its_own_task_and_stops_nobody(
    nursery: trio.Nursery, on_a_socket: OnASocket
) -> None:
    flusher = Flusher()
    broken, _, gone = await on_a_socket(flusher)
    healthy, _, peer = await on_a_socket(flusher)
    await gone.aclose()
    nursery.start_soon(flusher.run)
    broken.append(b"one")
    healthy.append(b"two")
    assert await peer.receive_some() == frames(b"two")
    with pytest.raises(trio.BrokenResourceError):
        await broken.run()


async def test_who_waits_for_room_is_woken_although_the_flusher_never_sends_from_a_full_outbox(
    nursery: trio.Nursery, on_a_socket: OnASocket
) -> None:
    flusher = Flusher()
    outbox, _, peer = await on_a_socket(flusher, bytes_max=100)
    assert outbox.push(b"x" * 100)
    nursery.start_soon(flusher.run)
    nursery.start_soon(outbox.run)
    await outbox.room()
    assert await peer.receive_some() == frames(b"x" * 100)


async def test_nothing_follows_a_close_frame(nursery: trio.Nursery, on_a_socket: OnASocket) -> None:
    flusher = Flusher()
    outbox, stream, peer = await on_a_socket(flusher)
    await stream.send_close(1001, "")
    outbox.append(b"late")
    nursery.start_soon(flusher.run)
    await trio.testing.wait_all_tasks_blocked()
    assert await peer.receive_some() == close_frame(1001, "")
    with trio.move_on_after(0.01) as nothing:
        await peer.receive_some()
    assert nothing.cancelled_caught
