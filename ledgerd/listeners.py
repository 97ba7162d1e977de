"""The sockets that the daemon listens on: those that the service manager hands over, or its own.

Rules of this file:

- What is handed over stays open at the manager. Whoever connects while no daemon runs waits in the socket's queue and
  is served by the next one: a restart refuses nobody.
- Our own sockets end with us. With ``reuse_port`` several daemons share an address, and the kernel gives each new
  connection to one that listens. What has come between our last look at the queue and its end is reset, and tries
  again like any other connection that is lost.
- What cannot be served from is refused by name, before anything else starts: a daemon that listens where nobody
  expects it is worse than one that does not start.

Handing over follows sd_listen_fds(3).
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import MutableMapping
from contextlib import ExitStack
from itertools import zip_longest

import trio
from msgspec import Struct

FIRST_FD = 3
"""The number of the first descriptor that is handed over."""

BACKLOG = 65_535
"""Connections that may wait to be accepted. The kernel cuts it to its own limit (net.core.somaxconn, mostly 4,096),
and more than that is for it to decide: a restart of a daemon with many clients brings all of them back at once."""

_WEBSOCKET = re.compile(r"ws|unknown||ledgerd(@.*)?\.socket")
"""Names of sockets for WebSockets: ours, those of sockets without a name, and systemd's for those of our units."""

_HTTP = "http"


class CannotListen(Exception):
    """A socket cannot be had, or is not one to listen on: the message says which, and why."""


class HandedOver(Struct, frozen=True):
    """Listening sockets from the service manager, by what is served on them."""

    websocket: list[socket.socket] = []
    http: list[socket.socket] = []

    def http_binds(self) -> list[str]:
        """The HTTP sockets as Hypercorn takes them: each time new descriptors, because it closes what it is given."""
        return [f"fd://{os.dup(sock.fileno())}" for sock in self.http]


def handed_over(environ: MutableMapping[str, str], first_fd: int = FIRST_FD) -> HandedOver:
    """The sockets that were handed to this process. Takes the variables that name them out of ``environ``.

    Raises CannotListen.
    """
    pid, count, names = (environ.pop(f"LISTEN_{what}", "") for what in ("PID", "FDS", "FDNAMES"))
    found = HandedOver([], [])
    if pid != str(os.getpid()) or not count.isascii() or not count.isdigit():
        return found
    with ExitStack() as undo:
        for fd, name in zip_longest(range(first_fd, first_fd + int(count)), names.split(":"), fillvalue=""):
            if isinstance(fd, str):
                break  # more names than sockets
            sock = _listening_socket(fd, name, undo)
            if name == _HTTP:
                found.http.append(sock)
            elif _WEBSOCKET.fullmatch(name):
                found.websocket.append(sock)
            else:
                raise CannotListen(
                    f"{_handed(fd, name)} is for nothing that this daemon serves: FileDescriptorName must be ws "
                    "(WebSocket) or http (health and metrics)"
                )
        undo.pop_all()
    return found


def _listening_socket(fd: int, name: str, undo: ExitStack) -> socket.socket:
    try:
        sock = undo.enter_context(socket.socket(fileno=fd))
    except OSError as error:
        raise CannotListen(f"{_handed(fd, name)} is not a socket: {error.strerror or error}") from error
    if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX) or sock.type != socket.SOCK_STREAM:
        raise CannotListen(f"{_handed(fd, name)} is not a TCP or Unix stream socket: use ListenStream")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise CannotListen(f"{_handed(fd, name)} is a connection, not a listening socket: set Accept=no")
    sock.set_inheritable(False)
    return sock


def _handed(fd: int, name: str) -> str:
    return f"the socket that was handed over as number {fd}" + (f", {name}," if name else "")


def take_listeners(sockets: list[socket.socket]) -> list[trio.SocketListener]:
    """Listeners on sockets that were handed over."""
    return [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in sockets]


async def open_listeners(address: str, *, reuse_port: bool = False) -> list[trio.SocketListener]:
    """Listeners on each address of ``HOST:PORT``, the host of an IPv6 address in brackets. Raises CannotListen."""
    host, _, port = address.rpartition(":")
    try:
        with ExitStack() as undo:
            listeners = []
            for family, kind, proto, _, place in await trio.socket.getaddrinfo(
                host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            ):
                sock = _own_socket(family, kind, proto, reuse_port=reuse_port)
                if sock is not None:
                    undo.callback(sock.close)
                    await sock.bind(place)
                    sock.listen(BACKLOG)
                    listeners.append(trio.SocketListener(sock))
            undo.pop_all()
    except (OSError, ValueError) as error:
        raise CannotListen(f"cannot listen on {address}: {error}") from error
    if not listeners:
        raise CannotListen(f"cannot listen on {address}: this machine has no address of that kind")
    return listeners


def _own_socket(family: int, kind: int, proto: int, *, reuse_port: bool) -> trio.socket.SocketType | None:
    """A socket to bind; None if the machine does not know the family, which a name may resolve to all the same."""
    try:
        sock = trio.socket.socket(family, kind, proto)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return None
        raise
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock


def place_of(listener: trio.SocketListener) -> str:
    """``HOST:PORT`` of the listener, or the path of a Unix socket."""
    name = listener.socket.getsockname()
    if listener.socket.family == socket.AF_UNIX:
        return os.fsdecode(name).replace("\0", "@")
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def url_of(listener: trio.SocketListener, scheme: str = "ws") -> str:
    """Where clients find the listener; for a Unix socket ``ws+unix:`` and its path."""
    place = place_of(listener)
    return f"{scheme}+unix:{place}" if listener.socket.family == socket.AF_UNIX else f"{scheme}://{place}/"
