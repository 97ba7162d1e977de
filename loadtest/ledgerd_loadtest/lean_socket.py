"""A WebSocket client for Trio that costs little: for hundreds of subscribers in one process."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

import trio

from ledgerd_loadtest.socket_client import (
    CLOSE,
    PING,
    PONG,
    TEXT,
    ConnectionFailed,
    FrameReader,
    after_handshake,
    closed,
    handshake_request,
    masked_frame,
    text_frame,
)

CONNECT_TIMEOUT_S = 10
"""For the handshake; a daemon that is busy with everybody's return answers in less."""

_RECEIVE_BYTES = 262_144


class LeanSocket:
    """One authenticated connection. `connect` makes it, `close` leaves without a word."""

    def __init__(self, transport: trio.socket.SocketType) -> None:
        self._transport = transport
        self._reader = FrameReader()
        self._early = b""

    async def send(self, text: str) -> None:
        """Send one message. Raises OSError."""
        await self._send_all(text_frame(text))

    async def receive(self) -> list[bytes]:
        """The messages that one read brings; perhaps none. Raises ConnectionFailed, OSError."""
        data, self._early = self._early, b""
        if not data:
            data = await self._transport.recv(_RECEIVE_BYTES)
            if not data:
                raise ConnectionFailed("the daemon ended the connection")
        messages = []
        for opcode, payload in self._reader.feed(data):
            if opcode == TEXT:
                messages.append(payload)
            elif opcode == PING:
                await self._send_all(masked_frame(PONG, payload, os.urandom(4)))
            elif opcode == CLOSE:
                raise closed(payload)
        return messages

    def close(self) -> None:
        """Let go of the socket."""
        self._transport.close()

    async def _shake_hands(self, host: str, path: str, token: str) -> None:
        await self._send_all(handshake_request(host, path, token))
        head = b""
        while (rest := after_handshake(head)) is None:
            data = await self._transport.recv(_RECEIVE_BYTES)
            if not data:
                raise ConnectionFailed("the daemon left during the handshake")
            head += data
        self._early = rest

    async def _send_all(self, data: bytes) -> None:
        while data:
            sent = await self._transport.send(data)
            data = data[sent:]


async def connect(url: str, token: str, *, receive_buffer: int | None = None) -> LeanSocket:
    """Open a connection to an address in numbers. ``receive_buffer`` in bytes: a small one is felt by the daemon.

    Raises ConnectionFailed, OSError.
    """
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    transport = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    opened = LeanSocket(transport)
    try:
        transport.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer is not None:
            transport.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        with trio.move_on_after(CONNECT_TIMEOUT_S) as patience:
            await transport.connect((parts.hostname, parts.port))
            await opened._shake_hands(parts.netloc, parts.path or "/", token)  # noqa: SLF001  one module
    except BaseException:
        transport.close()
        raise
    if patience.cancelled_caught:
        transport.close()
        raise ConnectionFailed(f"no handshake within {CONNECT_TIMEOUT_S} s")
    return opened
