"""Which sockets the daemon listens on, and which it refuses."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import trio

from ledgerd.listeners import BACKLOG, CannotListen, HandedOver, handed_over, open_listeners, take_listeners, url_of


def listening(family: int = socket.AF_INET, where: object = ("127.0.0.1", 0)) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.bind(where)
    sock.listen()
    return sock


@pytest.fixture
def hand_over() -> Iterator[Callable[..., HandedOver]]:
    """Hands copies of sockets to this process, as a service manager does, under the names given."""
    with ExitStack() as stack:

        def hand(*sockets: socket.socket, names: str | None = "", pid: int | None = None) -> HandedOver:
            first = 200  # beyond what the test has open, and contiguous
            for fd, sock in enumerate(sockets, first):
                os.dup2(sock.fileno(), fd)
                sock.close()
            environ = {"LISTEN_PID": str(pid or os.getpid()), "LISTEN_FDS": str(len(sockets)), "HOME": "/"}
            if names is not None:
                environ["LISTEN_FDNAMES"] = names
            try:
                found = handed_over(environ, first)
            except CannotListen:
                for fd in range(first, first + len(sockets)):
                    with pytest.raises(OSError, match="Bad file"):  # closed: nobody may connect to what nobody serves
                        os.fstat(fd)
                raise
            assert environ == {"HOME": "/"}
            for sock in (*found.websocket, *found.http):
                stack.callback(sock.close)
            return found

        yield hand


@pytest.mark.parametrize("name", [None, "", "unknown", "ws", "ledgerd.socket", "ledgerd@2.socket"])
async def test_a_socket_of_ours_or_without_a_name_is_for_websockets(hand_over, name):
    found = hand_over(listening(), names=name)
    assert (len(found.websocket), found.http) == (1, [])
    assert not found.websocket[0].get_inheritable()
    (listener,) = take_listeners(found.websocket)
    assert url_of(listener).startswith("ws://127.0.0.1:")


async def test_each_socket_goes_where_its_name_says(hand_over):
    sockets = [listening() for _ in range(3)]
    ports = [sock.getsockname()[1] for sock in sockets]
    found = hand_over(*sockets, names="ws:http:ws")
    assert [sock.getsockname()[1] for sock in found.websocket] == [ports[0], ports[2]]
    (bind,) = found.http_binds()
    with closing(socket.socket(fileno=int(bind.removeprefix("fd://")))) as copy:
        assert copy.getsockname()[1] == ports[1]
    assert found.http[0].getsockname()[1] == ports[1]  # the next generation of the door finds it still open


async def test_unix_and_ipv6_sockets_may_be_handed_over(hand_over, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = hand_over(listening(socket.AF_UNIX, "s"), listening(socket.AF_INET6, ("::1", 0)))
    unix, ipv6 = take_listeners(found.websocket)
    assert url_of(unix) == "ws+unix:s"
    assert url_of(ipv6, "wss").startswith("wss://[::1]:")


@pytest.mark.parametrize("name", ["htp", "WS", "ledgerd-http.socket", "connection", "stored"])
def test_a_socket_for_nothing_that_is_served_is_refused_by_name(hand_over, name):
    with pytest.raises(CannotListen, match=f"{name}, is for nothing .* ws .* http"):
        hand_over(listening(), listening(), names=f"ws:{name}")


def test_a_connection_in_the_place_of_a_listening_socket_is_refused(hand_over):
    one, other = socket.socketpair()
    with other, pytest.raises(CannotListen, match="Accept=no"):
        hand_over(one)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_a_datagram_socket_is_refused(hand_over, family):
    with pytest.raises(CannotListen, match="ListenStream"):
        hand_over(socket.socket(family, socket.SOCK_DGRAM))


def test_a_file_is_refused(tmp_path: Path):
    with (tmp_path / "file").open("w") as file, pytest.raises(CannotListen, match=f"{file.fileno()} is not a socket"):
        handed_over({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}, file.fileno())


@pytest.mark.parametrize(
    "environ", [{}, {"LISTEN_FDS": "1"}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {"LISTEN_PID": str(os.getpid())}]
)
def test_what_is_not_meant_for_this_process_is_left_alone(environ):
    assert handed_over(environ) == HandedOver([], [])
    assert environ == {}


# -- our own ----------------------------------------------------------------------------------------------------------


async def test_an_address_that_cannot_be_had_is_named():
    with listening() as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(CannotListen, match=f"cannot listen on {address}: .*in use"):
            await open_listeners(address)


async def test_a_name_stands_for_all_its_addresses():
    listeners = await open_listeners("localhost:0")
    assert listeners
    for listener in listeners:
        assert listener.socket.getsockname()[0] in ("127.0.0.1", "::1")
        await listener.aclose()


async def test_with_reuse_port_two_may_listen_on_one_address_and_who_connects_reaches_one_of_them():
    (first,) = await open_listeners("127.0.0.1:0", reuse_port=True)
    address = f"127.0.0.1:{first.socket.getsockname()[1]}"
    (second,) = await open_listeners(address, reuse_port=True)
    with pytest.raises(CannotListen):
        await open_listeners(address)
    await first.aclose()
    async with second, await trio.open_tcp_stream(*second.socket.getsockname()), await second.accept():
        pass


async def test_a_crowd_may_wait_to_be_accepted():
    crowd = 300  # more than the 128 that used to be the most
    assert crowd < BACKLOG
    (listener,) = await open_listeners("127.0.0.1:0")
    async with listener:
        with ExitStack() as stack:
            for _ in range(crowd):
                stack.enter_context(socket.create_connection(listener.socket.getsockname(), timeout=5))
