from __future__ import annotations

import pytest
import trio
import trio.testing

from ledgerd.gateway.outbox import Outbox
from ledgerd.gateway.stream import WireStream, text_header
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
