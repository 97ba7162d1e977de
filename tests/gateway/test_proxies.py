"""Whose word about a client's address is taken."""

from __future__ import annotations

import pytest
import trio

from ledgerd.config import Config
from ledgerd.gateway.proxies import TrustedProxies
from tests.gateway.fakes import Door, eventually, handshake

PROXIES = TrustedProxies(["127.0.0.0/8", "10.0.0.0/8", "2001:db8:1::/48"])


@pytest.mark.parametrize(
    ("values", "client"),
    [
        ([b"192.0.2.1"], "192.0.2.1"),
        ([b"198.51.100.9, 192.0.2.1"], "192.0.2.1"),
        ([b"127.0.0.1, 10.1.1.1, 192.0.2.1"], "192.0.2.1"),
        ([b"198.51.100.9, 192.0.2.1, 10.0.0.7"], "192.0.2.1"),
        ([b"198.51.100.9", b"192.0.2.1", b"10.0.0.7, 10.0.0.8"], "192.0.2.1"),
        ([b"192.0.2.1:4711"], "192.0.2.1"),
        ([b"[2001:db8:2::1]:4711"], "2001:db8:2::1"),
        ([b"2001:db8:2::1"], "2001:db8:2::1"),
        ([b"192.0.2.1, 2001:db8:1::5"], "192.0.2.1"),
        ([b"::ffff:192.0.2.1"], "192.0.2.1"),
        ([b"198.51.100.9 ,\t192.0.2.1 "], "192.0.2.1"),
        ([b"10.0.0.7, 10.0.0.8"], "10.0.0.7"),
        ([], "127.0.0.1"),
        ([b""], "127.0.0.1"),
        ([b"unknown"], "127.0.0.1"),
        ([b"192.0.2.1, unknown"], "127.0.0.1"),
        ([b"192.0.2.1, unknown, 10.0.0.7"], "10.0.0.7"),
        ([b"'; DROP TABLE, \xff\xfe"], "127.0.0.1"),
    ],
)
def test_the_client_is_the_first_from_the_right_that_is_not_ours(values: list[bytes], client: str) -> None:
    assert PROXIES.client("127.0.0.1", values) == client


def test_nobody_else_is_believed() -> None:
    assert PROXIES.client("192.0.2.1", [b"198.51.100.9"]) == "192.0.2.1"
    assert TrustedProxies([]).client("127.0.0.1", [b"198.51.100.9"]) == "127.0.0.1"


def test_a_peer_of_a_unix_socket_is_believed_only_if_it_is_listed() -> None:
    assert PROXIES.client("", [b"192.0.2.1"]) == ""
    assert TrustedProxies(["unix"]).client("", [b"192.0.2.1"]) == "192.0.2.1"
    assert not TrustedProxies(["unix"]).trust("127.0.0.1")


def test_an_ipv4_proxy_is_known_on_an_ipv6_socket() -> None:
    assert PROXIES.client("::ffff:10.0.0.7", [b"192.0.2.1"]) == "192.0.2.1"


@pytest.mark.parametrize("member", ["10.0.0.0/33", "10.0.0.1/8", "proxy.example", "Unix", ""])
def test_what_is_no_network_is_refused(member: str) -> None:
    with pytest.raises(ValueError, match="neither a network"):
        TrustedProxies([member])


async def statuses(config: Config, *requests: dict[str, str]) -> list[int]:
    """What each handshake of a peer at 127.0.0.1 is answered with; those before it stay open."""
    answers = []
    async with trio.open_nursery() as nursery:
        door = Door(config, nursery)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(door.gateway.serve, listeners)
        port = listeners[0].socket.getsockname()[1]
        streams = [await trio.open_tcp_stream("127.0.0.1", port) for _ in requests]
        for stream, headers in zip(streams, requests, strict=True):
            answers.append((await handshake(stream, headers))[0])
        for stream in streams:
            await stream.aclose()
        nursery.cancel_scope.cancel()
    return answers


async def test_behind_a_trusted_proxy_each_client_has_its_own_share() -> None:
    config = Config(connections_per_address_max=1, trusted_proxies=("127.0.0.1/32",))
    one, two = {"X-Forwarded-For": "192.0.2.1"}, {"X-Forwarded-For": "192.0.2.2"}
    lying = {"X-Forwarded-For": "192.0.2.3, 192.0.2.1"}
    assert await statuses(config, one, one, two, lying) == [101, 503, 101, 503]


async def test_from_anybody_else_the_header_is_ignored() -> None:
    config = Config(connections_per_address_max=1)
    assert await statuses(config, {"X-Forwarded-For": "192.0.2.1"}, {"X-Forwarded-For": "192.0.2.2"}) == [101, 503]


async def test_forwarded_is_never_believed() -> None:
    config = Config(connections_per_address_max=1, trusted_proxies=("127.0.0.1/32",))
    assert await statuses(config, {"Forwarded": "for=192.0.2.1"}, {"Forwarded": "for=192.0.2.2"}) == [101, 503]


async def test_wrong_passwords_are_counted_for_the_client_behind_the_proxy() -> None:
    config = Config(trusted_proxies=("127.0.0.1/32",))
    async with trio.open_nursery() as nursery:
        door = Door(config, nursery)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(door.gateway.serve, listeners)
        stream = await trio.open_tcp_stream("127.0.0.1", listeners[0].socket.getsockname()[1])
        assert (await handshake(stream, {"X-Forwarded-For": "192.0.2.1"}))[0] == 101
        await eventually(lambda: door.gateway.connections == 1)
        (session,) = door.gateway._sessions
        assert session.address == "192.0.2.1"
        await stream.aclose()
        nursery.cancel_scope.cancel()
