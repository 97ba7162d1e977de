"""A process that floods a daemon on this machine, in one of the ways of `KINDS`, until it is told to stop.

Rules of this file:

- Loopback only, bounded in sockets, in new connections per second, and in time: `Order`.
- Every socket comes from one of several addresses of 127.0.0.0/8, as those of a botnet would; the limits per address
  are met by the kinds that say so.
- A socket that the daemon ends is replaced at once, as far as the rate allows.
- Nice: whoever attacks over a network does not use the daemon's processors. Here there are few, and the clients whose
  service is measured need theirs.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import msgspec
from msgspec import Struct

from ledgerd_loadtest.socket_client import TEXT, masked_frame, text_frame
from ledgerd_protocol.codec import encode_request

NICENESS = 10
SECONDS_MAX = 120.0
CONNECTIONS_MAX = 5_000

_POLL_S = 0.02
_RECEIVE_BYTES = 65_536
_DRIP_EVERY_S = 1.0
_HELD_BYTES_MAX = 262_144

_HANDSHAKE = (
    "GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
)
_FRAME_BYTES = 262_144
_CONTINUATIONS = 2_000
_PIPELINE = 200
_CLIENT_HELLO_PART = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100)


class Kind(Struct, frozen=True):
    """A way to attack.

    ``opening`` is sent at once, and the bytes of ``drip`` one per second. When the daemon has let the socket in,
    ``inside`` is sent, and again after each thing that the daemon says if ``insists``. With ``leaves`` the socket is
    closed when the opening is sent, or what it asks for has come. ``encrypts`` completes a handshake of TLS first.
    """

    title: str
    opening: Callable[[Order], bytes]
    drip: Callable[[Order], bytes] | None = None
    inside: Callable[[], bytes] | None = None
    insists: bool = False
    leaves: bool = False
    encrypts: bool = False
    one_address: bool = False
    tls: bool = False


class Order(Struct, frozen=True):
    """What one process does: so many ``sockets`` at once at most, opened at ``rate_per_s``; ``token`` for insiders."""

    kind: str
    port: int
    sockets: int
    rate_per_s: float
    seconds: float
    token: str = ""


class Done(Struct, frozen=True):
    """What it did: connections opened, those that the daemon ended, answered requests refused with HTTP, bytes sent."""

    opened: int
    ended: int
    sent_bytes: int


def _request(order: Order, more: str = "") -> bytes:
    return _HANDSHAKE.format(host=f"127.0.0.1:{order.port}", more=more).encode()


def _guess(order: Order) -> bytes:
    return _request(order, f"Authorization: Bearer lgd_{os.urandom(32).hex()[:43]}\r\n")


def _signed_in(order: Order) -> bytes:
    return _request(order, f"Authorization: Bearer {order.token}\r\n")


def _nothing(_: Order) -> bytes:
    return b""


def _empty_frames() -> bytes:
    first = bytearray(masked_frame(TEXT, b"", bytes(4)))
    first[0] &= 0x7F
    return bytes(first) + (b"\x00\x80" + bytes(4)) * _CONTINUATIONS


def _pings() -> bytes:
    return text_frame(encode_request(1, "system_ping", {})) * _PIPELINE


def _big_frame() -> bytes:
    return masked_frame(TEXT, b'["' + b"x" * (_FRAME_BYTES - 4) + b'"]', bytes(4))


KINDS = {
    "silent": Kind("sockets that never send", _nothing),
    "one-address": Kind("the same, all from one address", _nothing, one_address=True),
    "slow": Kind("handshakes of one byte per second", _nothing, drip=_request),
    "hit-and-run": Kind("sockets that are closed at once", _nothing, leaves=True),
    "garbage": Kind("4 KiB of garbage", lambda _: os.urandom(4_096)),
    "guess": Kind("handshakes with tokens that do not exist", _guess),
    "idle": Kind("WebSockets that do not sign in", _request),
    "chatty": Kind("WebSockets that ask much and do not sign in", _request, inside=_pings, insists=True),
    "big-frames": Kind("frames of 256 KiB of strangers", _request, inside=_big_frame),
    "fragments": Kind("messages of 2,000 empty fragments", _request, inside=_empty_frames),
    "insider": Kind("frames of 256 KiB of one user", _signed_in, inside=_big_frame, insists=True),
    "tls-half": Kind("halves of a TLS handshake", lambda _: _CLIENT_HELLO_PART, tls=True),
    "tls-plain": Kind("plain requests to TLS", _request, tls=True),
    "tls-run": Kind("TLS handshakes, and away", _nothing, leaves=True, encrypts=True, tls=True),
}


class _Socket:
    """One connection of the attacker."""

    def __init__(self, plain: socket.socket) -> None:
        self.socket: socket.socket | ssl.SSLSocket = plain
        self.to_send = b""
        self.drip = b""
        self.let_in = False
        self.connected = False
        self.shaken = True


class Attacker:
    """One process's sockets."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._kind = KINDS[order.kind]
        self._poll = select.epoll()
        self._sockets: dict[int, _Socket] = {}
        self._inside = b"" if self._kind.inside is None else self._kind.inside()
        self._context = _careless() if self._kind.encrypts else None
        self._sources = deque(f"127.{17 + os.getpid() % 200}.{group}.1" for group in range(1, 201))
        self._opened = self._ended = self._sent = 0

    def run(self, orders_end: int) -> Done:
        """Attack until the time is over, or the descriptor ``orders_end`` is closed at its other end."""
        self._poll.register(orders_end, select.EPOLLIN | select.EPOLLHUP)
        began = time.monotonic()
        drip_at = began
        while (now := time.monotonic()) < began + min(self._order.seconds, SECONDS_MAX):
            allowed = int((now - began) * self._order.rate_per_s) + 1
            while len(self._sockets) < min(self._order.sockets, CONNECTIONS_MAX) and self._opened < allowed:
                self._open()
            for number, events in self._poll.poll(_POLL_S):
                if number == orders_end:
                    return self._done()
                self._serve(number, events)
            if now >= drip_at:
                drip_at = now + _DRIP_EVERY_S
                self._drip()
        return self._done()

    def _done(self) -> Done:
        for each in self._sockets.values():
            each.socket.close()
        return Done(self._opened, self._ended, self._sent)

    def _open(self) -> None:
        plain = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        plain.setblocking(False)
        self._opened += 1
        with suppress(BlockingIOError):
            try:
                self._sources.rotate(0 if self._kind.one_address else 1)
                plain.setsockopt(socket.IPPROTO_IP, _BIND_WITHOUT_PORT, 1)
                plain.bind((self._sources[0], 0))
                plain.connect(("127.0.0.1", self._order.port))
            except BlockingIOError:
                raise
            except OSError:
                plain.close()
                return
        self._sockets[plain.fileno()] = _Socket(plain)
        self._poll.register(plain, select.EPOLLIN | select.EPOLLOUT)

    def _serve(self, number: int, events: int) -> None:
        each = self._sockets[number]
        try:
            if not each.connected:
                self._begin(each)
            if not each.shaken:
                self._shake(each)
                return
            if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR) and not self._hear(each):
                self._close(number)
                self._ended += 1
                return
            self._send(each)
            if self._kind.leaves and not each.to_send:
                self._close(number)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError:
            self._close(number)
            self._ended += 1

    def _begin(self, each: _Socket) -> None:
        error = each.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
        each.connected = True
        each.to_send = self._kind.opening(self._order)
        each.drip = b"" if self._kind.drip is None else self._kind.drip(self._order)
        if self._context is not None:
            each.shaken = False
            number = each.socket.fileno()
            self._poll.unregister(number)
            each.socket = self._context.wrap_socket(each.socket, do_handshake_on_connect=False)
            self._sockets[each.socket.fileno()] = self._sockets.pop(number)
            self._poll.register(each.socket, select.EPOLLIN | select.EPOLLOUT)

    def _shake(self, each: _Socket) -> None:
        assert isinstance(each.socket, ssl.SSLSocket)
        try:
            each.socket.do_handshake()
        except ssl.SSLWantReadError:
            self._poll.modify(each.socket, select.EPOLLIN)
            return
        each.shaken = True
        self._poll.modify(each.socket, select.EPOLLIN | select.EPOLLOUT)

    def _hear(self, each: _Socket) -> bool:
        data = each.socket.recv(_RECEIVE_BYTES)
        if not data:
            return False
        if not each.let_in and data.startswith(b"HTTP/1.1 101"):
            each.let_in = True
            each.to_send += self._inside
        elif each.let_in and self._kind.insists and len(each.to_send) < _HELD_BYTES_MAX:
            each.to_send += self._inside
        return True

    def _send(self, each: _Socket) -> None:
        if each.to_send:
            sent = each.socket.send(each.to_send)
            each.to_send = each.to_send[sent:]
            self._sent += sent
        wanted = select.EPOLLIN | (select.EPOLLOUT if each.to_send else 0)
        self._poll.modify(each.socket, wanted)

    def _drip(self) -> None:
        for number, each in list(self._sockets.items()):
            if not each.drip or not each.connected:
                continue
            try:
                self._sent += each.socket.send(each.drip[:1])
                each.drip = each.drip[1:]
            except BlockingIOError:
                continue
            except OSError:
                self._close(number)
                self._ended += 1

    def _close(self, number: int) -> None:
        each = self._sockets.pop(number)
        with suppress(OSError, ValueError):
            self._poll.unregister(each.socket)
        each.socket.close()


_BIND_WITHOUT_PORT = 24
"""IP_BIND_ADDRESS_NO_PORT: the port is chosen when connecting, so that ports do not run out."""


def _careless() -> ssl.SSLContext:
    """An attacker does not ask whose certificate it is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def main() -> None:
    """Read the order from standard input, attack, write to standard output what was done."""
    os.nice(NICENESS)
    order = msgspec.json.decode(sys.stdin.readline(), type=Order)
    done = Attacker(order).run(sys.stdin.fileno())
    sys.stdout.write(msgspec.json.encode(done).decode() + "\n")


if __name__ == "__main__":
    main()
