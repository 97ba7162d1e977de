"""The proxy breaks connections in the ways it says, and in no other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from ledgerd_loadtest.chaos.proxy import Link, Proxy, Way, Weather

LINE = b"0123456789"


class Echo:
    """A server that answers every line of ten bytes with itself, and keeps what arrived."""

    def __init__(self) -> None:
        self.heard = b""
        self.heard_enough = trio.Event()

    async def serve(self, stream: trio.SocketStream) -> None:
        try:
            async for data in stream:
                self.heard += data
                if len(self.heard) >= len(LINE):
                    self.heard_enough.set()
                await stream.send_all(data)
        except trio.BrokenResourceError:
            pass


@asynccontextmanager
async def proxied(echo: Echo, **options: object) -> AsyncIterator[tuple[Proxy, trio.SocketStream]]:
    """A connection through a proxy to an echo."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, echo.serve, listeners)
        port = listeners[0].socket.getsockname()[1]
        proxy = Proxy(partial(trio.open_tcp_stream, "127.0.0.1", port), **options)
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with await trio.open_tcp_stream("127.0.0.1", await nursery.start(proxy.run, listener)) as stream:
            await say(stream)
            yield proxy, stream
        nursery.cancel_scope.cancel()


async def say(stream: trio.SocketStream) -> None:
    await stream.send_all(LINE)
    heard = b""
    while len(heard) < len(LINE):
        heard += await stream.receive_some()
    assert heard == LINE


def only(proxy: Proxy) -> Link:
    (link,) = proxy.links
    return link


async def ended(stream: trio.SocketStream) -> bytes:
    """What still arrives before the connection is reset."""
    heard = b""
    try:
        while data := await stream.receive_some():
            heard += data
    except trio.BrokenResourceError:
        return heard
    pytest.fail("it ended with a goodbye")


async def test_bytes_go_both_ways_unchanged() -> None:
    async with proxied(Echo()) as (_, stream):
        await say(stream)
        await stream.send_eof()
        assert await stream.receive_some() == b""


async def test_nobody_behind_the_proxy_looks_like_a_reset() -> None:
    async with proxied(Echo()) as (proxy, _), trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        dead = Proxy(partial(trio.open_tcp_stream, "127.0.0.1", 1))
        async with await trio.open_tcp_stream("127.0.0.1", await nursery.start(dead.run, listener)) as stream:
            await ended(stream)
        assert len(proxy.links) == 1
        nursery.cancel_scope.cancel()


async def test_a_reset_ends_both_connections_at_once() -> None:
    async with proxied(Echo()) as (proxy, stream):
        only(proxy).reset()
        assert await ended(stream) == b""
        assert not proxy.links


async def test_a_cut_lets_so_many_bytes_pass() -> None:
    async with proxied(Echo()) as (proxy, stream):
        only(proxy).cut_after(Way.DOWN, 4)
        await stream.send_all(LINE)
        # A reset may overtake what was sent before it.
        assert LINE.startswith(await ended(stream))
        assert not proxy.links


async def test_a_cut_in_the_middle_of_a_request_gives_the_server_a_part_of_it() -> None:
    echo = Echo()
    async with proxied(echo) as (proxy, stream):
        only(proxy).cut_after(Way.UP, 4)
        await stream.send_all(LINE)
        await ended(stream)
        assert len(echo.heard) <= len(LINE) + 4


async def test_a_reply_that_is_dropped_leaves_the_request_done() -> None:
    echo = Echo()
    async with proxied(echo, whole=lambda answer: answer.endswith(LINE)) as (proxy, stream):
        only(proxy).drop_reply()
        await stream.send_all(LINE)
        assert await ended(stream) == b""
        assert echo.heard == LINE + LINE
        assert proxy.replies_dropped == 1


async def test_a_half_closed_connection_goes_on_the_other_way() -> None:
    async with proxied(Echo()) as (proxy, stream):
        only(proxy).half_close(Way.DOWN)
        assert await stream.receive_some() == b""
        await stream.send_all(LINE)
        assert len(proxy.links) == 1


async def test_a_black_hole_takes_everything_and_who_lost_something_is_reset_afterwards() -> None:
    echo = Echo()
    async with proxied(echo) as (proxy, stream):
        proxy.weather[Way.UP] = Weather(black_hole=True)
        await stream.send_all(LINE)
        with trio.move_on_after(0.1):
            await stream.receive_some()
            pytest.fail("it was answered")
        assert echo.heard == LINE
        proxy.clear()
        assert await ended(stream) == b""


async def test_a_connection_that_lost_nothing_survives_a_black_hole() -> None:
    async with proxied(Echo()) as (proxy, stream):
        proxy.weather[Way.UP] = Weather(black_hole=True)
        proxy.clear()
        await say(stream)


async def test_delay_and_throttle_slow_bytes_down_and_lose_none() -> None:
    async with proxied(Echo()) as (proxy, stream):
        proxy.weather[Way.UP] = Weather(delay_s=0.05)
        proxy.weather[Way.DOWN] = Weather(bytes_per_s=200)
        began = trio.current_time()
        await say(stream)
        await say(stream)
        assert trio.current_time() - began >= 0.1


async def test_links_are_known_by_what_has_gone_up() -> None:
    async with proxied(Echo(), marks={"lane": LINE, "other": b"x"}) as (proxy, _):
        assert proxy.marked("lane") == [only(proxy)]
        assert proxy.marked("other") == []
        assert proxy.marked(None) == [only(proxy)]
