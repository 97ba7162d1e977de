"""Settings that change while the gateway serves: for new connections and for those that are open."""

from __future__ import annotations

from typing import Any

import msgspec
import trio

from tests.gateway.fakes import Door, eventually, frames_until_close, handshake, open_door, text_frame


def change(door: Door, **settings: Any) -> None:
    door.config = msgspec.structs.replace(door.config, **settings)
    door.gateway.reconfigure(door.config)


async def status_of(door: Door, **headers: str) -> int:
    return (await handshake(door.listener.connect(), headers))[0]


async def test_names_and_origins_are_exchanged_and_the_daemons_own_stay() -> None:
    async with open_door(allowed_origins=("https://old.example",), http="127.0.0.1:8711") as door:
        door.gateway.allow_origin("http://127.0.0.1:9999")
        change(door, allowed_origins=("https://new.example",))
        assert await status_of(door, Origin="https://new.example") == 101
        assert await status_of(door, Origin="https://old.example") == 403
        assert await status_of(door, Origin="http://127.0.0.1:9999") == 101
        change(door, public_hosts=("ledger.example",))
        assert await status_of(door, Host="ledger.example") == 101
        assert await status_of(door, Host="localhost") == 403
        change(door, public_hosts=())
        assert await status_of(door, Host="localhost") == 101


async def test_an_address_that_was_handed_over_is_a_name_unless_names_are_given() -> None:
    async with open_door() as door:
        assert await status_of(door, Host="192.0.2.1:8710") == 403
        door.gateway.allow_host("192.0.2.1:8710")
        assert await status_of(door, Host="192.0.2.1:8710") == 101
        assert await status_of(door, Host="192.0.2.1") == 101
        change(door, public_hosts=("ledger.example",))
        assert await status_of(door, Host="192.0.2.1:8710") == 403


async def test_who_is_in_stays_in_when_fewer_are_let_in() -> None:
    async with open_door(connections_max=2) as door:
        first, second = await door.user(1), await door.user(2)
        change(door, connections_max=1)
        assert await status_of(door) == 503
        for client in (first, second):
            await client.call("system_ping")
        change(door, connections_max=3)
        assert await status_of(door) == 101


async def test_an_open_connection_goes_by_new_limits_at_once() -> None:
    async with open_door(in_flight_max=1) as door:
        client = await door.service()
        door.router.holding = True
        for number in range(3):
            await client.ask("debit", {"account_id": 11, "amount": "1", "reference": str(number)})
        await door.router.taken(1)
        change(door, in_flight_max=3)
        door.router.answer(door.router.units[0])
        await door.router.taken(3)


async def test_new_rates_count_what_was_taken_before() -> None:
    async with open_door(rate_per_s=0.001, rate_burst=2) as door:
        client = await door.service()
        await client.call("system_ping")
        await client.call("system_ping")
        change(door, rate_burst=3)
        assert (await client.refused("system_ping"))["data"]["code"] == "rate_limited"
        change(door, rate_per_s=0.0)
        await client.call("system_ping")


async def test_the_size_of_a_message_is_that_of_when_the_connection_began() -> None:
    async with open_door(message_bytes_max=10_000) as door:
        before = await door.raw(door.books.token("service"))
        await eventually(lambda: door.gateway.connections == 1)
        change(door, message_bytes_max=1_000)
        after = await door.raw(door.books.token("service"))
        request = b'{"jsonrpc":"2.0","id":1,"method":"system_ping"}' + b" " * 5_000
        await after.send_all(text_frame(request))
        assert (await frames_until_close(after))[1] == 1009
        await before.send_all(text_frame(request))
        assert b'"result"' in await before.receive_some()


async def test_a_session_that_says_nothing_is_given_the_new_patience(autojump_clock: Any) -> None:
    async with open_door(authentication_timeout_s=1_000) as door:
        stream = await door.raw()
        await trio.sleep(30)
        change(door, authentication_timeout_s=10)
        with trio.fail_after(3):
            assert (await frames_until_close(stream))[1] == 4408
