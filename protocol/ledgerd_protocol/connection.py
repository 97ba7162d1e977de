"""Reaching a daemon: how to dial, how long to go on, and what a closed connection means. The client's lower half.

Rules of this file:

- What may pass is `Unreachable` and is tried again; what would come back the same is `ConnectionEnded`.
- A handshake that the other end abandons is an error at once: trio-websocket would wait for its end for ever.
- Every stream that was opened is closed, whatever happens to the task that opened it.
"""

from __future__ import annotations

import random
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, cast
from urllib.parse import urlsplit

import trio
from msgspec import Struct
from trio_websocket import ConnectionRejected, WebSocketConnection, wrap_client_stream

FINAL_CLOSES = frozenset({1002, 1003, 1007, 1009, 1010, *range(4400, 4500)})
"""Close codes after which the same bytes would end the same way."""

MESSAGE_MAX = 4_194_304
"""Characters of one incoming message. The daemon promises 1 MiB; a bulk deployment may have raised that."""

Dial = Callable[[], Awaitable[trio.abc.Stream]]


class Retry(Struct, frozen=True, kw_only=True):
    """How long a client goes on, in seconds. Delays double from the least to the most, each with jitter."""

    connect_timeout_s: float = 10.0
    first_connect_s: float = 0.0  # 0: one attempt; a daemon that is not there is said at once
    reconnect_s: float = 60.0
    call_s: float = 20.0
    delay_s_min: float = 0.1
    delay_s_max: float = 5.0
    silence_s: float = 90.0
    close_s: float = 1.0

    def pause(self, attempt: int) -> float:
        """The wait after attempt number ``attempt``: exponential, and spread so that clients do not march in step."""
        delay = min(self.delay_s_max, self.delay_s_min * 2.0 ** min(attempt, 30))
        return delay * random.uniform(0.5, 1.0)  # noqa: S311  nothing secret about it


class CannotConnect(Exception):
    """The daemon could not be reached within the time allowed."""


class ConnectionEnded(Exception):
    """The daemon ended or refused the connection for a reason that reconnecting would not mend.

    ``code`` is the WebSocket close code, or the HTTP status if the handshake was refused.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"the daemon ended the connection ({code}): {reason}")
        self.code = code
        self.reason = reason


class Unreachable(Exception):
    """One attempt to connect failed in a way that may pass."""


class Heard(trio.abc.Stream):
    """The byte stream under the WebSocket: notes when anything was last heard, pings included (in trio time)."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._opened = False
        self.heard_at = trio.current_time()

    def opened(self) -> None:
        """The handshake is over: from here the end of the stream is the WebSocket's to judge."""
        self._opened = True

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Bytes. Raises OSError if the other end leaves during the handshake."""
        try:
            data = await self._stream.receive_some(max_bytes)
        except trio.BrokenResourceError as error:
            if self._opened:
                raise
            raise _left(error) from error
        if not data and not self._opened:
            raise OSError("the connection was closed during the handshake")
        self.heard_at = trio.current_time()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """All of the bytes. Raises OSError if the other end leaves during the handshake."""
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError as error:
            if self._opened:
                raise
            raise _left(error) from error

    async def wait_send_all_might_not_block(self) -> None:
        """As the stream below."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """As the stream below."""
        await self._stream.aclose()

    async def end_if_silent(self, silence_s: float) -> None:
        """Close once nothing was heard for so long. A daemon that is alive pings after 20 s."""
        while True:
            left_s = self.heard_at + silence_s - trio.current_time()
            if left_s <= 0:
                break
            await trio.sleep(left_s)
        await trio.aclose_forcefully(self)


def _left(error: trio.BrokenResourceError) -> OSError:
    return OSError(f"the connection broke during the handshake: {error.__cause__ or 'the other end left'}")


class Address(Struct, frozen=True):
    """Where a daemon is: how to open a byte stream to it, the Host header, and the path."""

    dial: Dial
    host: str
    path: str

    async def open_stream(self, retry: Retry) -> Heard:
        """A byte stream. Raises OSError, trio.TooSlowError."""
        with trio.fail_after(retry.connect_timeout_s):
            return Heard(await self.dial())

    async def shake_hands(
        self, nursery: trio.Nursery, stream: Heard, token: str | None, retry: Retry
    ) -> WebSocketConnection:
        """A WebSocket over the stream; its reader runs in the nursery and raises there what goes wrong.

        Raises trio.TooSlowError.
        """
        headers = [] if token is None else [(b"authorization", b"Bearer " + token.encode())]
        with trio.fail_after(retry.connect_timeout_s):
            socket = await wrap_client_stream(
                nursery,
                cast("Any", stream),
                self.host,
                self.path,
                extra_headers=headers,
                message_queue_size=64,
                max_message_size=MESSAGE_MAX,
                receive_buffer_size=65_536,
            )
        stream.opened()
        return socket


def address_of(url: str, dial: Dial | None = None, ca_file: str | None = None) -> Address:
    """The address in a ws:// or wss:// URL; ``dial`` replaces how a stream to it is opened.

    ``ca_file`` holds, in PEM, the authorities to believe instead of the system's. Raises ValueError.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise ValueError(f"{url!r} is not a WebSocket URL; it should look like ws://127.0.0.1:8710")
    host, secure = parts.hostname, parts.scheme == "wss"
    port = parts.port or (443 if secure else 80)
    if ca_file is not None and not secure:
        raise ValueError(f"{url!r} is not encrypted: authorities are for wss:// only")
    context = _trusting(ca_file) if secure else None

    async def dial_tcp() -> trio.abc.Stream:
        stream = await trio.open_tcp_stream(host, port)
        if context is None:
            return stream
        return trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)

    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Address(dial or dial_tcp, parts.netloc.rpartition("@")[2], path)


def _trusting(ca_file: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ValueError(f"{ca_file}: no authorities can be read from it: {error.strerror or error}") from error


def rejection(group: BaseExceptionGroup[ConnectionRejected]) -> Exception:
    """A refused handshake: by HTTP 4xx for good, by anything else for now."""
    found = next(error for error in _leaves(group) if isinstance(error, ConnectionRejected))
    status = int(found.status_code)
    said = (found.body or b"").decode(errors="replace").strip()[:200]
    if 400 <= status < 500 and status not in (408, 429):
        hint = "the token is not valid" if status == 401 else "the handshake was refused"
        return ConnectionEnded(status, said or hint)
    return Unreachable(f"the handshake was refused with HTTP status {status}")


def failure(group: BaseExceptionGroup[Exception]) -> Unreachable:
    """One line about the first exception of a group."""
    found = _leaves(group)[0]
    if isinstance(found, trio.TooSlowError):
        return Unreachable("no answer within the time allowed")
    return Unreachable(str(found) or type(found).__name__)


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found
