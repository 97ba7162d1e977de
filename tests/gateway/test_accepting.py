"""What happens when there are no file descriptors left."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from ledgerd.gateway.accepting import PAUSE_S, PatientListener
from tests.gateway.fakes import MemoryListener


class ShortListener(MemoryListener):
    """Fails so many times before it accepts."""

    def __init__(self, code: int, failures: int) -> None:
        super().__init__()
        self._code = code
        self.failures = failures

    async def accept(self) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        if self.failures:
            self.failures -= 1
            raise OSError(self._code, os.strerror(self._code))
        return await super().accept()


def patient(listener: trio.abc.Listener[Any], make_room: Callable[[], object] = lambda: None) -> PatientListener:
    return PatientListener(listener, calm=trio.lowlevel.checkpoint, make_room=make_room, silence_s=10)


async def test_nothing_is_taken_until_it_is_calm() -> None:
    calm = trio.Event()
    (real,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    listener = PatientListener(real, calm=calm.wait, make_room=lambda: None, silence_s=10)
    async with await trio.open_tcp_stream(*real.socket.getsockname()) as client:
        await client.send_all(b"hello")
        with trio.move_on_after(0.05) as scope:
            await listener.accept()
        assert scope.cancelled_caught
        calm.set()
        async with await listener.accept() as stream:
            assert await stream.receive_some() == b"hello"
    await listener.aclose()


async def test_a_shortage_is_said_once_and_connections_wait_for_its_end(autojump_clock: Any) -> None:
    short = ShortListener(errno.EMFILE, 5)
    room: list[float] = []
    listener = patient(short, lambda: room.append(trio.current_time()))
    short.connect()
    started = trio.current_time()
    with capture_logs() as lines:
        await listener.accept()
    assert trio.current_time() - started == pytest.approx(5 * PAUSE_S)
    assert len(room) == 5
    assert [line["event"] for line in lines] == ["accept_stalled", "accept_resumed"]


async def test_every_shortage_is_said(autojump_clock: Any) -> None:
    short = ShortListener(errno.ENFILE, 1)
    listener = patient(short)
    with capture_logs() as lines:
        for _ in range(2):
            short.connect()
            await listener.accept()
            short.failures = 1
    assert [line["event"] for line in lines] == ["accept_stalled", "accept_resumed"] * 2


async def test_any_other_error_is_not_for_waiting() -> None:
    listener = patient(ShortListener(errno.EBADF, 1))
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        await listener.accept()


async def test_closing_closes_the_listener_itself() -> None:
    short = ShortListener(errno.EMFILE, 0)
    await patient(short).aclose()
    assert short.closed


async def test_many_that_wait_are_taken_together_and_those_that_say_nothing_stay_outside() -> None:
    (real,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = real.socket.getsockname()
    listener = patient(real)
    clients = [await trio.open_tcp_stream(*address) for _ in range(6)]
    for client in clients[1:]:
        await client.send_all(b"hello")
    accepted = [await listener.accept() for _ in range(5)]
    assert [await stream.receive_some() for stream in accepted] == [b"hello"] * 5
    with trio.move_on_after(0.05) as scope:
        await listener.accept()
    assert scope.cancelled_caught, "the one that has said nothing is the kernel's"
    for stream in (*clients, *accepted):
        await stream.aclose()
    await listener.aclose()
    with pytest.raises(OSError, match="all attempts to connect"):
        await trio.open_tcp_stream(*address)


async def test_what_was_taken_and_not_asked_for_is_closed_with_the_listener() -> None:
    (real,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    listener = patient(real)
    clients = [await trio.open_tcp_stream(*real.socket.getsockname()) for _ in range(3)]
    for client in clients:
        await client.send_all(b"hello")
    first = await listener.accept()
    await listener.aclose()
    await first.aclose()
    for client in clients:
        with suppress(trio.BrokenResourceError):
            assert not await client.receive_some()
        await client.aclose()
