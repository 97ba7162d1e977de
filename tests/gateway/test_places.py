"""How many may connect, and who gives way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from prometheus_client import REGISTRY

from ledgerd.config import Config
from ledgerd.gateway.places import NoPlace, Place, Places
from ledgerd.gateway.session import NEWCOMER_MESSAGE_BYTES_MAX, NEWCOMER_REQUESTS_MAX
from tests.gateway.fakes import (
    Client,
    Door,
    Pair,
    eventually,
    frames_until_close,
    handshake,
    open_door,
    read_answer,
    text_frame,
)

PING = text_frame(b'{"jsonrpc":"2.0","id":1,"method":"system_ping"}')


def refusals(reason: str) -> float:
    return REGISTRY.get_sample_value("ledgerd_connections_refused_total", {"reason": reason}) or 0.0


def places(**limits: int) -> Places:
    config = Config(**limits)
    return Places(lambda: config)


def refusal(all_places: Places, address: str | None) -> str:
    with pytest.raises(NoPlace) as caught:
        all_places.take(address)
    return caught.value.reason


async def ended(stream: Pair) -> bool:
    """Whether the daemon has hung up without a word."""
    return (await read_answer(stream))[0] == 0


# -- the counting -----------------------------------------------------------------------------------------------------


def test_an_address_has_its_share_and_gets_it_back() -> None:
    all_places = places(connections_per_address_max=2)
    first = all_places.take("192.0.2.1")
    all_places.take("192.0.2.1")
    assert refusal(all_places, "192.0.2.1") == "address"
    all_places.take("192.0.2.2")
    first.leave()
    all_places.take("192.0.2.1")


def test_addresses_of_one_ipv6_subscriber_share() -> None:
    all_places = places(connections_per_address_max=1)
    all_places.take("2001:db8::1")
    assert refusal(all_places, "2001:db8::2") == "address"
    all_places.take("2001:db8:0:1::1")


def test_an_ipv4_address_is_the_same_on_an_ipv6_socket() -> None:
    all_places = places(connections_per_address_max=1)
    all_places.take("192.0.2.1")
    assert refusal(all_places, "::ffff:192.0.2.1") == "address"


def test_peers_of_a_unix_socket_have_no_address_to_share() -> None:
    all_places = places(connections_per_address_max=1, newcomers_per_address_max=1)
    for _ in range(3):
        all_places.take("")


def test_newcomers_of_an_address_are_limited_until_they_sign_in() -> None:
    all_places = places(newcomers_per_address_max=1)
    first = all_places.take("192.0.2.1")
    assert refusal(all_places, "192.0.2.1") == "address_newcomers"
    assert first.sign_in(1)
    second = all_places.take("192.0.2.1")
    first.sign_out()
    second.leave()
    assert refusal(all_places, "192.0.2.1") == "address_newcomers"


async def test_the_newcomer_that_was_waited_for_longest_gives_way() -> None:
    all_places = places(newcomers_max=2)
    taken = [all_places.take("192.0.2.1") for _ in range(4)]
    assert [place.stay.cancel_called for place in taken] == [True, True, False, False]


async def test_those_whom_the_daemon_works_for_do_not_give_way() -> None:
    all_places = places(newcomers_max=2)
    first, second = all_places.take("192.0.2.1"), all_places.take("192.0.2.1")
    with first.worked_for():
        third = all_places.take("192.0.2.1")
        assert (first.stay.cancel_called, second.stay.cancel_called) == (False, True)
        with third.worked_for():
            assert refusal(all_places, "192.0.2.1") == "newcomers"
    all_places.take("192.0.2.1")
    assert first.stay.cancel_called


async def test_who_has_signed_in_does_not_give_way() -> None:
    all_places = places(connections_max=2, newcomers_max=2)
    first, second = all_places.take("192.0.2.1"), all_places.take("192.0.2.1")
    assert first.sign_in(None)
    all_places.take("192.0.2.1")
    assert (first.stay.cancel_called, second.stay.cancel_called) == (False, True)


def test_a_user_has_a_share_and_a_token_of_no_user_has_none() -> None:
    all_places = places(connections_per_user_max=1)
    first, second = all_places.take("192.0.2.1"), all_places.take("192.0.2.1")
    assert first.sign_in(7)
    assert not second.sign_in(7)
    assert second.sign_in(8)
    assert first.sign_in(7), "a place does not stand in its own way"
    first.sign_out()
    assert second.sign_in(7)
    assert all(all_places.take("192.0.2.1").sign_in(None) for _ in range(3))


def test_a_place_is_counted_for_the_client_once_that_is_known() -> None:
    all_places = places(connections_per_address_max=1)
    first, second = all_places.take(None), all_places.take(None)
    first.come_from("192.0.2.1")
    with pytest.raises(NoPlace) as caught:
        second.come_from("192.0.2.1")
    assert caught.value.reason == "address"
    second.come_from("192.0.2.2")
    first.leave()
    all_places.take("192.0.2.1")


def test_nothing_is_remembered_of_those_who_left() -> None:
    all_places = places()
    taken: list[Place] = [all_places.take(f"192.0.2.{number}") for number in range(100)]
    for number, place in enumerate(taken):
        place.sign_in(number)
        place.sign_out()
        place.leave()
    assert all_places.open == 0
    counters = [all_places._by_network, all_places._newcomers_by_network, all_places._by_user, all_places._newcomers]
    assert not any(counters)


# -- the door ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_socket_door(**settings: Any) -> AsyncIterator[tuple[Door, int]]:
    """A gateway on a real port of 127.0.0.1."""
    async with trio.open_nursery() as nursery:
        door = Door(Config(**settings), nursery)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(door.gateway.serve, listeners)
        yield door, listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def test_an_unfinished_handshake_gives_way_to_a_newcomer() -> None:
    before = refusals("gave_way")
    async with open_door(newcomers_max=2) as door:
        silent, half = door.listener.connect(), door.listener.connect()
        await half.send_all(b"GET / HTTP/1.1\r\n")
        await trio.testing.wait_all_tasks_blocked()
        user = await door.user(1)
        assert await ended(silent)
        another = await door.user(2)
        await user.call("system_ping")
        await another.call("system_ping")
        assert refusals("gave_way") == before + 1, "who has signed in stands in nobody's way"
        await half.aclose()


async def test_a_session_that_nobody_signs_in_on_gives_way() -> None:
    async with open_door(newcomers_max=1) as door:
        idle = await door.client()
        await idle.call("system_ping")
        await (await door.user(1)).call("system_ping")
        assert (await idle.closed())[0] in (0, 1006)
        assert door.gateway.connections == 1


async def test_signed_in_connections_are_served_while_newcomers_come_and_go() -> None:
    async with open_door(connections_max=3, newcomers_max=3) as door:
        user = await door.user(1)
        for _ in range(50):
            door.listener.connect()
            await trio.testing.wait_all_tasks_blocked()
        await user.call("system_ping")
        await (await door.user(2)).call("system_ping")


async def test_a_request_that_waits_for_the_database_does_not_give_way() -> None:
    async with open_door(newcomers_max=1) as door, trio.open_nursery() as nursery:
        door.books.gate = trio.Event()
        answers: list[int] = []

        async def shake(secret: str) -> None:
            stream = door.listener.connect()
            answers.append((await handshake(stream, {"Authorization": f"Bearer {secret}"}))[0])

        nursery.start_soon(shake, door.books.token("user", user_id=1))
        await eventually(lambda: door.books.reads == 1)
        assert (await handshake(door.listener.connect(), {}))[0] == 503
        door.books.gate.set()
        await eventually(lambda: answers == [101])


async def test_sockets_that_say_nothing_are_cut_off_by_the_handshake_deadline() -> None:
    before = refusals("timeout")
    async with (
        open_socket_door(handshake_timeout_s=0.05) as (_, port),
        await trio.open_tcp_stream("127.0.0.1", port) as silent,
    ):
        await silent.send_all(b"G")
        assert not await silent.receive_some()
    assert refusals("timeout") == before + 1


async def test_a_user_with_too_many_connections_is_closed_with_4429() -> None:
    before = refusals("user")
    async with open_door(connections_per_user_max=1) as door:
        first, second = await door.user(1), await door.user(1)
        assert await second.closed() == (4429, "too many connections of this user")
        await first.call("system_ping")
        await (await door.user(2)).call("system_ping")
        await (await door.service()).call("system_ping")
    assert refusals("user") == before + 1


@pytest.mark.parametrize("leaves", ["closes", "signs out"])
async def test_a_connection_that_signs_in_later_counts_too(leaves: str) -> None:
    async with open_door(connections_per_user_max=1) as door:
        first, second = await door.user(1), await door.client()
        secret = door.books.token("user", user_id=1)
        await second.ask("session_authenticate", {"token": secret})
        assert (await second.closed())[0] == 4429
        if leaves == "closes":
            await first.connection.aclose()
        else:
            await first.call("session_logout")
        await eventually(lambda: door.gateway.connections == (leaves != "closes"))
        await (await door.user(1)).call("system_ping")


async def test_the_limit_of_a_user_is_none_for_others() -> None:
    async with open_door(connections_per_user_max=1) as door:
        client = await door.user(1)
        for user_id in (2, 1, 2):
            secret = door.books.token("user", user_id=user_id)
            await client.call("session_authenticate", {"token": secret})
        await (await door.user(1)).call("system_ping")


# -- what nobody may do -----------------------------------------------------------------------------------------------


async def test_before_signing_in_messages_are_short(caplog: Any) -> None:
    async with open_door() as door:
        stream = await door.raw()
        await stream.send_all(text_frame(b"x" * (NEWCOMER_MESSAGE_BYTES_MAX + 1)))
        assert await frames_until_close(stream) == ([], 1009)


async def test_before_signing_in_a_message_has_few_frames() -> None:
    async with open_door() as door:
        stream = await door.raw()
        await stream.send_all(text_frame(b"", fin=False) + text_frame(b"", opcode=0, fin=False) * 40)
        assert await frames_until_close(stream) == ([], 1009)


async def test_after_signing_in_messages_may_be_long() -> None:
    async with open_door() as door:
        client = await door.client()
        await client.call("session_authenticate", {"token": door.books.token("user", user_id=1)})
        await refuse_long(client)
        await client.call("session_logout")
        await client.send("x" * (NEWCOMER_MESSAGE_BYTES_MAX + 1))
        assert (await client.closed())[0] == 1009


async def refuse_long(client: Client) -> None:
    await client.send("x" * (2 * NEWCOMER_MESSAGE_BYTES_MAX))
    assert (await client.receive())["error"]["code"] == -32700


@pytest.mark.parametrize("members", [1, 10])
async def test_before_signing_in_requests_are_few(members: int) -> None:
    before = refusals("newcomer_requests")
    async with open_door() as door:
        stream = await door.raw()
        ping = '{"jsonrpc":"2.0","id":1,"method":"system_ping"}'
        message = (ping if members == 1 else f"[{','.join([ping] * members)}]").encode()
        await stream.send_all(text_frame(message) * (2 * NEWCOMER_REQUESTS_MAX // members))
        texts, code = await frames_until_close(stream)
        assert code == 4429
        assert len(texts) <= NEWCOMER_REQUESTS_MAX // members
    assert refusals("newcomer_requests") == before + 1


async def test_requests_after_signing_in_are_not_counted() -> None:
    async with open_door() as door:
        client = await door.user(1)
        for _ in range(2 * NEWCOMER_REQUESTS_MAX):
            await client.call("system_ping")


async def test_who_sends_ahead_while_it_is_signed_in_is_answered() -> None:
    async with open_door() as door:
        stream, secret = await door.raw(), door.books.token("user", user_id=1)
        sign_in = f'{{"jsonrpc":"2.0","id":0,"method":"session_authenticate","params":{{"token":"{secret}"}}}}'
        await stream.send_all(text_frame(sign_in.encode()) + PING * (2 * NEWCOMER_REQUESTS_MAX))
        seen = b""
        while seen.count(b'"result"') < 1 + 2 * NEWCOMER_REQUESTS_MAX:
            seen += await stream.receive_some()


async def test_answers_that_nobody_takes_stop_the_reading_of_a_newcomer() -> None:
    async with open_door() as door:
        client, server = trio.testing.lockstep_stream_pair()
        door.listener.connect_through(server)
        assert (await handshake(client, {}))[0] == 101
        discover = text_frame(b'{"jsonrpc":"2.0","id":1,"method":"rpc.discover"}')
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, discover * 50)
            await trio.testing.wait_all_tasks_blocked()
            (session,) = door.gateway._sessions
            answered = 50 - session.unanswered
            assert answered < 10
            nursery.cancel_scope.cancel()
