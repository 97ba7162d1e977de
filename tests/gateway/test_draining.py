"""What becomes of those who are connected, or about to be, when the daemon stops."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from typing import Any

import pytest
import trio
import trio.testing

from ledgerd.config import Config
from ledgerd.listeners import open_listeners
from tests.gateway.fakes import HOST, Door, handshake, open_door, text_frame

DEBIT = {"account_id": 11, "amount": "1"}


async def test_who_is_let_in_while_the_others_are_closed_is_closed_too(autojump_clock: Any) -> None:
    async with open_door() as door, trio.open_nursery() as nursery:
        await door.raw(door.books.token("service"))  # takes its time to say goodbye
        door.books.gate = trio.Event()
        closed, code = trio.Event(), 0

        async def come_late() -> None:
            nonlocal code
            code, _ = await (await door.client(door.books.token("service"))).closed()
            closed.set()

        nursery.start_soon(come_late)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(door.gateway.drain, trio.current_time() + 5)
        await trio.sleep(0.5)
        door.books.gate.set()
        with trio.fail_after(1):
            await closed.wait()
        assert code == 1001


async def test_a_drain_that_is_cut_short_knows_what_it_left_unanswered(autojump_clock: Any) -> None:
    async with open_door() as door:
        client = await door.service()
        door.router.holding = True
        for _ in range(3):
            await client.ask("debit", DEBIT)
        await door.router.taken(3)
        assert door.gateway.unanswered == 3
        with trio.move_on_after(1):
            await door.gateway.drain(trio.current_time() + 60)
        assert door.gateway.unanswered == 3
        door.router.answer(door.router.units[0])
        await trio.testing.wait_all_tasks_blocked()
        assert door.gateway.unanswered == 2


async def test_what_was_left_is_still_known_when_the_sessions_are_gone(autojump_clock: Any) -> None:
    async with open_door(in_flight_max=1) as door:
        client = await door.service()
        door.router.holding = True
        for _ in range(3):
            await client.ask("debit", DEBIT)
        await door.router.taken(1)
        await door.gateway.drain(trio.current_time() + 2)
        assert door.gateway.connections == 0
        assert door.gateway.unanswered == 3


async def test_a_client_that_takes_no_answers_leaves_nothing_unanswered(autojump_clock: Any) -> None:
    async with open_door() as door:
        client, server = trio.testing.lockstep_stream_pair()
        door.listener.connect_through(server)
        secret = door.books.token("service")
        assert (await handshake(client, {"Authorization": f"Bearer {secret}"}))[0] == 101
        await client.send_all(text_frame(b'{"jsonrpc":"2.0","id":1,"method":"system_ping"}'))
        await trio.testing.wait_all_tasks_blocked()
        assert await door.gateway.drain(trio.current_time() + 5) == 0


# -- who waits in the queue of a socket -------------------------------------------------------------------------------

REQUEST = (
    f"GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
).encode()
WAITING = 20


async def until_closed(stream: trio.SocketStream) -> bytes:
    """Everything up to the close frame, which is the last that comes."""
    said = b""
    while not said.endswith(b"the daemon is stopping"):
        more = await stream.receive_some()
        assert more, said
        said += more
    await stream.aclose()
    return said


@pytest.mark.parametrize("handed_over", [False, True])
async def test_who_waits_to_be_accepted_is_let_in_and_sent_on_or_left_to_the_next_daemon(handed_over: bool) -> None:
    (listener,) = await open_listeners("127.0.0.1:0")
    with ExitStack() as stack:
        managers = stack.enter_context(socket.socket(fileno=os.dup(listener.socket.fileno())))
        async with trio.open_nursery() as nursery:
            door = Door(Config(), nursery)

            async def serve(*, task_status: trio.TaskStatus[Any]) -> None:
                await door.gateway.serve([listener], handed_over=handed_over, task_status=task_status)

            await nursery.start(serve)
            if not handed_over:
                managers.close()
            place = listener.socket.getsockname()
            waiting = []
            for _ in range(WAITING):  # all in one turn of the loop: nobody can be accepted meanwhile
                client = stack.enter_context(socket.create_connection(place))
                client.sendall(REQUEST)
                client.setblocking(False)
                waiting.append(trio.SocketStream(trio.socket.from_stdlib_socket(client)))
            if handed_over:
                await door.gateway.drain(trio.current_time() + 30)
                managers.setblocking(False)
                for _ in range(WAITING):
                    managers.accept()[0].close()
                return
            nursery.start_soon(door.gateway.drain, trio.current_time() + 30)
            for stream in waiting:
                said = await until_closed(stream)
                assert said.startswith(b"HTTP/1.1 101 ")
                assert said.endswith((1001).to_bytes(2, "big") + b"the daemon is stopping")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(place)
