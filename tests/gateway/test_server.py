"""Who is let in, and how the daemon stops."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from typing import Any

import pytest
import trio
import trio.testing

from ledgerd.config import Config
from ledgerd.gateway.server import InsecureListen
from tests.gateway.fakes import Door, eventually, handshake, open_client, open_door, read_answer, text_frame

PING = text_frame(b'{"jsonrpc":"2.0","id":1,"method":"system_ping"}')


async def status_of(door: Door, headers: Mapping[str, str | None]) -> int:
    return (await handshake(door.listener.connect(), headers))[0]


def subprotocol(secret: str) -> str:
    return "ledgerd.bearer." + base64.urlsafe_b64encode(secret.encode()).decode().rstrip("=")


# -- Host and Origin --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8710", "127.0.0.1:1234", "[::1]:8710", "[::1]"])
async def test_loopback_names_are_served_by_default(host: str) -> None:
    async with open_door() as door:
        assert await status_of(door, {"Host": host}) == 101


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8710", "127.0.0.1.evil.example", ""])
async def test_a_name_that_somebody_else_points_here_is_refused(host: str) -> None:
    async with open_door() as door:
        assert await status_of(door, {"Host": host}) == 403
        assert door.gateway.connections == 0


async def test_public_hosts_replace_the_default() -> None:
    async with open_door(public_hosts=("ledger.example",)) as door:
        assert await status_of(door, {"Host": "ledger.example:443"}) == 101
        assert await status_of(door, {"Host": "localhost"}) == 403


@pytest.mark.parametrize("host", ["a" * 64, "xn--\x80", "\xff"])
async def test_a_host_that_cannot_be_decoded_is_not_a_crash(host: str) -> None:
    async with open_door() as door:
        assert await status_of(door, {"Host": host}) in (0, 400, 403)
        assert await status_of(door, {}) == 101


async def test_only_listed_origins_may_connect() -> None:
    async with open_door(allowed_origins=("https://app.example",)) as door:
        assert await status_of(door, {"Origin": "https://app.example"}) == 101
        for origin in ("https://evil.example", "http://app.example", "https://app.example.evil", "null", "https://app"):
            assert await status_of(door, {"Origin": origin}) == 403


async def test_the_http_door_of_the_daemon_is_a_listed_origin() -> None:
    async with open_door(http="127.0.0.1:8711") as door:
        assert await status_of(door, {"Origin": "http://127.0.0.1:8711"}) == 101
        assert await status_of(door, {"Origin": "http://localhost:8711"}) == 101
        assert await status_of(door, {"Origin": "http://localhost:9999"}) == 403
        door.gateway.allow_origin("http://127.0.0.1:9999")
        assert await status_of(door, {"Origin": "http://localhost:9999"}) == 101


# -- subprotocols and tokens ------------------------------------------------------------------------------------------


async def test_the_protocol_is_echoed_if_it_is_offered() -> None:
    async with open_door() as door:
        status, headers = await handshake(door.listener.connect(), {"Sec-WebSocket-Protocol": "other, ledgerd.v1"})
        assert (status, headers["sec-websocket-protocol"]) == (101, "ledgerd.v1")


async def test_without_an_offer_nothing_is_echoed() -> None:
    async with open_door() as door:
        status, headers = await handshake(door.listener.connect(), {})
        assert status == 101
        assert "sec-websocket-protocol" not in headers


async def test_offers_without_a_known_protocol_are_refused() -> None:
    async with open_door() as door:
        assert await status_of(door, {"Sec-WebSocket-Protocol": "graphql-ws"}) == 400
        secret = door.books.token("service", expires_at_s=time.time() + 60)
        assert await status_of(door, {"Sec-WebSocket-Protocol": subprotocol(secret)}) == 400


async def test_compression_is_declined() -> None:
    async with open_door() as door:
        offer = {"Sec-WebSocket-Extensions": "permessage-deflate"}
        status, headers = await handshake(door.listener.connect(), offer)
        assert status == 101
        assert "sec-websocket-extensions" not in headers


async def test_a_token_in_the_header_signs_in() -> None:
    async with open_door() as door:
        client = await door.user(1)
        status = await client.call("session_status")
        assert (status["authenticated"], status["user"]["user_id"], status["scopes"]) == (True, 1, ["user"])


@pytest.mark.parametrize("value", ["Bearer lgd_nope", "Bearer ", "Basic abc", "Bearer lgd_" + "A" * 43, ""])
async def test_a_bad_header_is_refused_with_401(value: str) -> None:
    async with open_door() as door:
        status, headers = await handshake(door.listener.connect(), {"Authorization": value})
        assert (status, headers["www-authenticate"]) == (401, "Bearer")


async def test_expired_and_revoked_tokens_are_refused_with_401() -> None:
    async with open_door() as door:
        expired = door.books.token("user", user_id=1, expires_at_s=time.time() - 1)
        revoked = door.books.token("user", user_id=1)
        door.books.revoke(revoked)
        for secret in (expired, revoked):
            assert await status_of(door, {"Authorization": f"Bearer {secret}"}) == 401


async def test_a_token_in_a_subprotocol_signs_in_and_is_never_echoed() -> None:
    async with open_door() as door:
        secret = door.books.token("user", user_id=1, expires_at_s=time.time() + 3600)
        offers = ["ledgerd.v1", subprotocol(secret)]
        client = await open_client(door.nursery, door.listener.connect(), subprotocols=offers)
        assert client.connection.subprotocol == "ledgerd.v1"
        assert (await client.call("session_status"))["authenticated"]


@pytest.mark.parametrize("ttl_s", [None, 86_400 + 60])
async def test_a_token_in_a_subprotocol_must_expire_within_a_day(ttl_s: int | None) -> None:
    async with open_door() as door:
        expires_at_s = None if ttl_s is None else time.time() + ttl_s
        secret = door.books.token("user", user_id=1, expires_at_s=expires_at_s)
        assert await status_of(door, {"Sec-WebSocket-Protocol": f"ledgerd.v1, {subprotocol(secret)}"}) == 401
        assert await status_of(door, {"Authorization": f"Bearer {secret}"}) == 101


async def test_a_token_that_is_no_base64url_is_refused_with_401() -> None:
    async with open_door() as door:
        assert await status_of(door, {"Sec-WebSocket-Protocol": "ledgerd.v1, ledgerd.bearer.!!!"}) == 401


async def test_two_tokens_are_refused() -> None:
    async with open_door() as door:
        secret = door.books.token("user", user_id=1, expires_at_s=time.time() + 60)
        both = {"Authorization": f"Bearer {secret}", "Sec-WebSocket-Protocol": f"ledgerd.v1, {subprotocol(secret)}"}
        assert await status_of(door, both) == 400


async def test_a_token_cannot_be_judged_while_the_database_is_away() -> None:
    async with open_door() as door:
        secret = door.books.token("service")
        door.books.away = True
        assert await status_of(door, {"Authorization": f"Bearer {secret}"}) == 503


# -- broken handshakes ------------------------------------------------------------------------------------------------


async def test_a_plain_get_is_answered_with_400_and_the_connection_ends_at_once(autojump_clock: Any) -> None:
    async with open_door() as door:
        stream = door.listener.connect()
        started = trio.current_time()
        assert (await handshake(stream, {"Upgrade": None, "Connection": None}))[0] == 400
        assert not await stream.receive_some()
        assert trio.current_time() - started < 1


async def test_an_unfinished_handshake_is_cut_off(autojump_clock: Any) -> None:
    async with open_door(handshake_timeout_s=10) as door:
        stream = door.listener.connect()
        await stream.send_all(b"GET / HTTP/1.1\r\n")
        started = trio.current_time()
        assert await read_answer(stream) == (0, {})
        assert trio.current_time() - started == pytest.approx(10)


async def test_a_client_that_goes_away_in_the_handshake_leaves_nothing_behind(autojump_clock: Any) -> None:
    async with open_door(connections_max=1) as door:
        stream = door.listener.connect()
        await stream.send_all(b"GET / HTTP/1.1\r\n")
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert await status_of(door, {}) == 101


async def test_a_handshake_without_end_is_cut_off() -> None:
    async with open_door() as door:
        stream = door.listener.connect()
        await stream.send_all(b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000)
        assert (await read_answer(stream))[0] in (0, 400)


async def test_a_frame_that_comes_before_the_answer_is_not_misread() -> None:
    async with open_door() as door:
        door.books.gate = trio.Event()
        stream = door.listener.connect()
        secret = door.books.token("service")
        async with trio.open_nursery() as nursery:
            answers: list[int] = []

            async def shake() -> None:
                answers.append((await handshake(stream, {"Authorization": f"Bearer {secret}"}))[0])

            nursery.start_soon(shake)
            await eventually(lambda: door.books.reads == 1)
            await stream.send_all(PING)
        assert answers == [0]
        door.books.gate = None
        assert await status_of(door, {"Authorization": f"Bearer {secret}"}) == 101


# -- limits -----------------------------------------------------------------------------------------------------------


async def test_connections_over_the_limit_are_turned_away_and_room_comes_back() -> None:
    async with open_door(connections_max=2) as door:
        secret = door.books.token("service")
        first, _ = await door.raw(secret), await door.raw(secret)
        assert await status_of(door, {}) == 503
        await first.aclose()
        await eventually(lambda: door.gateway.connections == 1)
        await trio.testing.wait_all_tasks_blocked()
        assert await status_of(door, {}) == 101


async def test_connections_of_one_address_are_limited() -> None:
    config = Config(connections_per_address_max=1)
    async with trio.open_nursery() as nursery:
        door = Door(config, nursery)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(door.gateway.serve, listeners)
        port = listeners[0].socket.getsockname()[1]
        async with (
            await trio.open_tcp_stream("127.0.0.1", port) as one,
            await trio.open_tcp_stream("127.0.0.1", port) as two,
        ):
            assert (await handshake(one, {}))[0] == 101
            assert (await handshake(two, {}))[0] == 503
        nursery.cancel_scope.cancel()


async def test_plain_websocket_is_not_served_beyond_loopback_unless_told() -> None:
    listeners = await trio.open_tcp_listeners(0, host="0.0.0.0")
    async with trio.open_nursery() as nursery:
        with pytest.raises(InsecureListen):
            await Door(Config(), nursery).gateway.serve(listeners)
        await nursery.start(Door(Config(insecure_listen=True), nursery).gateway.serve, listeners)
        nursery.cancel_scope.cancel()


# -- stopping ---------------------------------------------------------------------------------------------------------


def debit(number: int) -> str:
    params = {"account_id": 11, "amount": "1"}
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": "debit", "params": params})


async def test_draining_stops_listening_lets_answers_out_and_closes_with_1001(autojump_clock: Any) -> None:
    async with open_door() as door, trio.open_nursery() as nursery:
        client, idle = await door.service(), await door.service()
        door.router.holding = True
        await client.send(debit(1))
        await door.router.taken(1)
        nursery.start_soon(door.gateway.drain, trio.current_time() + 10)
        assert (await client.receive())["params"] == {"type": "going_away"}
        assert door.listener.closed
        await client.send(debit(2))
        refused = await client.receive()
        assert (refused["id"], refused["error"]["code"]) == (2, 8007)
        assert len(door.router.units) == 1
        await trio.sleep(3)
        door.router.answer(door.router.units[0])
        answer = await client.receive()
        assert (answer["id"], answer["result"]["kind"]) == (1, "debit")
        assert (await client.closed())[0] == 1001
        assert (await idle.closed())[0] == 1001


async def test_draining_ends_by_its_deadline_and_says_what_was_orphaned(autojump_clock: Any) -> None:
    async with open_door() as door:
        client = await door.service()
        await client.call("system_ping")
        door.router.holding = True
        await client.send(debit(1))
        await door.router.taken(1)
        started = trio.current_time()
        orphaned = await door.gateway.drain(started + 5)
        assert orphaned == 1
        assert trio.current_time() - started <= 5
        assert (await client.closed())[0] == 1001


async def test_a_client_that_does_not_read_cannot_delay_the_end(autojump_clock: Any) -> None:
    async with open_door() as door:
        client, server = trio.testing.lockstep_stream_pair()
        door.listener.connect_through(server)
        assert (await handshake(client, {}))[0] == 101
        await client.send_all(PING)
        await trio.testing.wait_all_tasks_blocked()
        started = trio.current_time()
        await door.gateway.drain(started + 5)
        assert trio.current_time() - started <= 5
        await eventually(lambda: door.gateway.connections == 0)


async def test_serving_returns_once_drained(autojump_clock: Any) -> None:
    async with trio.open_nursery() as nursery:
        door = Door(Config(), nursery)
        returned = trio.Event()

        async def serve(*, task_status: trio.TaskStatus[Any]) -> None:
            await door.gateway.serve([door.listener], task_status=task_status)
            returned.set()

        await nursery.start(serve)
        client = await door.service()
        await door.gateway.drain(trio.current_time() + 5)
        await returned.wait()
        assert (await client.closed())[0] == 1001
