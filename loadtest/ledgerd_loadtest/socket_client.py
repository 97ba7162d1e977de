"""A WebSocket client with nothing in it but what the load generator needs: a blocking socket and a frame reader.

Rules of this file:

- Text frames out, whole and masked as RFC 6455 wants it; prebuilt, so that sending is one system call.
- What comes in is split into messages. Pings are answered, a close frame is an error: a daemon that closes during a
  measurement ends it.
- The daemon never fragments, so a fragment is an error rather than a case.
- wss:// does not ask whose certificate it is: it is for daemons that were started to be measured.
- Timeouts are the socket's own (SO_RCVTIMEO, SO_SNDTIMEO): Python's would add a poll to every call.
"""

from __future__ import annotations

import base64
import os
import socket
import ssl
import struct
from types import TracebackType
from urllib.parse import urlsplit

SILENCE_S = 30
"""A daemon that neither sends nor takes anything for so long has failed the measurement."""

_RECEIVE_BYTES = 1_048_576
_HEAD_BYTES_MAX = 16_384

TEXT = 0x1
CLOSE = 0x8
PING = 0x9
PONG = 0xA


class ConnectionFailed(Exception):
    """The daemon refused, closed or broke a connection, or sent what is not WebSocket.

    ``code`` is the close code, or the HTTP status of a refused handshake; None if there was neither.
    """

    def __init__(self, what: str, code: int | None = None) -> None:
        super().__init__(what)
        self.code = code


def handshake_request(host: str, path: str, token: str) -> bytes:
    """The HTTP request that asks for a WebSocket."""
    key = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nAuthorization: Bearer {token}\r\n\r\n"
    ).encode()


def after_handshake(head: bytes) -> bytes | None:
    """What follows the answer to a handshake; None while the answer is not complete. Raises ConnectionFailed."""
    answer, end, rest = head.partition(b"\r\n\r\n")
    if not end:
        if len(head) > _HEAD_BYTES_MAX:
            raise ConnectionFailed("the daemon did not answer the handshake with HTTP")
        return None
    status = answer.split(b"\r\n", 1)[0].decode("ascii", "replace")
    code = status.split()[1:2]
    if code != ["101"]:
        number = int(code[0]) if code and code[0].isdecimal() else None
        raise ConnectionFailed(f"the daemon answered {status!r}; is the token one of this daemon's?", number)
    return rest


def closed(payload: bytes) -> ConnectionFailed:
    """What a close frame means."""
    code = struct.unpack("!H", payload[:2])[0] if len(payload) >= 2 else 1005
    reason = payload[2:].decode("utf-8", "replace")
    return ConnectionFailed(f"the daemon closed the connection: {code} {reason}".rstrip(), code)


def masked_frame(opcode: int, payload: bytes, mask: bytes) -> bytes:
    """A whole frame from a client; ``mask`` is four bytes."""
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
    elif size < 65_536:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, size)
    key = int.from_bytes((mask * (size // 4 + 1))[:size], "little")
    return head + mask + (int.from_bytes(payload, "little") ^ key).to_bytes(size, "little")


def text_frame(text: str) -> bytes:
    """A whole text frame from a client, with a mask of its own."""
    return masked_frame(TEXT, text.encode(), os.urandom(4))


class FrameReader:
    """Splits the bytes of a server into frames. No I/O."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Opcode and payload of every frame that is complete with these bytes. Raises ConnectionFailed."""
        buffer = self._buffer
        buffer += data
        frames = []
        start = 0
        while len(buffer) - start >= 2:
            first, length = buffer[start], buffer[start + 1]
            if not first & 0x80 or first & 0x70 or length & 0x80:
                raise ConnectionFailed("the daemon sent a fragment, an extension or a masked frame")
            body = start + 2
            if length == 126:
                if len(buffer) - start < 4:
                    break
                (length,) = struct.unpack_from("!H", buffer, body)
                body += 2
            elif length == 127:
                if len(buffer) - start < 10:
                    break
                (length,) = struct.unpack_from("!Q", buffer, body)
                body += 8
            if len(buffer) - body < length:
                break
            start = body + length
            frames.append((first & 0x0F, bytes(buffer[body:start])))
        del buffer[:start]
        return frames


def _unchecked() -> ssl.SSLContext:
    """TLS with a daemon of our own, on this machine: whose certificate it is was decided by us."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class SocketClient:
    """One authenticated connection. Raises ConnectionFailed and OSError wherever it talks."""

    def __init__(self, url: str, token: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("ws", "wss") or parts.hostname is None or parts.port is None:
            raise ConnectionFailed(f"{url!r} is not a URL like ws://127.0.0.1:8710")
        self._reader = FrameReader()
        self._waiting: list[bytes] = []
        self.socket: socket.socket = socket.create_connection((parts.hostname, parts.port), SILENCE_S)
        try:
            self._prepare()
            if parts.scheme == "wss":
                self.socket = _unchecked().wrap_socket(self.socket)
            self._shake_hands(parts.netloc, parts.path or "/", token)
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        limit = struct.pack("ll", SILENCE_S, 0)
        self.socket.settimeout(None)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _shake_hands(self, host: str, path: str, token: str) -> None:
        self.socket.sendall(handshake_request(host, path, token))
        head = b""
        while (rest := after_handshake(head)) is None:
            data = self.socket.recv(_HEAD_BYTES_MAX)
            if not data:
                raise ConnectionFailed("the daemon left during the handshake")
            head += data
        self._waiting += self._messages(rest)

    def send(self, frames: bytes) -> None:
        """Send prebuilt frames."""
        self.socket.sendall(frames)

    def receive(self) -> list[bytes]:
        """The messages that one read brings; waits for at least some bytes."""
        if self._waiting:
            messages, self._waiting = self._waiting, []
            return messages
        data = self.socket.recv(_RECEIVE_BYTES)
        if not data:
            raise ConnectionFailed("the daemon ended the connection")
        if isinstance(self.socket, ssl.SSLSocket):
            # What is decrypted already does not show in a poll.
            while waiting := self.socket.pending():
                data += self.socket.recv(waiting)
        return self._messages(data)

    def receive_one(self) -> bytes:
        """The next message."""
        while not self._waiting:
            self._waiting = self.receive()
        return self._waiting.pop(0)

    def _messages(self, data: bytes) -> list[bytes]:
        messages = []
        for opcode, payload in self._reader.feed(data):
            if opcode == TEXT:
                messages.append(payload)
            elif opcode == PING:
                self.socket.sendall(masked_frame(PONG, payload, os.urandom(4)))
            elif opcode == CLOSE:
                raise closed(payload)
        return messages

    def close(self) -> None:
        """Leave. What the daemon still has to say is not waited for."""
        self.socket.close()

    def __enter__(self) -> SocketClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
