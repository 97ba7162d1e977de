"""The WebSocket door: accepts connections, lets clients in, runs their sessions, stops in order.

trio-websocket has a server of its own, which is not used: an exception in one handler ends all of it and tells the
client 1000, its handshake has no limits, and stopping it gives every client 1006. Its connection, over our stream, is.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections import Counter
from collections.abc import Sequence
from typing import Any

import structlog
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream

from ledgerd.config import Config
from ledgerd.engine.ports import Books
from ledgerd.gateway.call import Desk, Directory, Hub, Router
from ledgerd.gateway.closing import Close
from ledgerd.gateway.handshake import Admission, Doorkeeper, Refusal
from ledgerd.gateway.session import CLOSE_S, Session
from ledgerd.gateway.stream import WireStream
from ledgerd.metrics import CONNECTIONS, CONNECTIONS_CLOSED, CONNECTIONS_OPENED, SESSION_CRASHES

log = structlog.get_logger("ledgerd.gateway.server")

RECEIVE_BYTES = 16_384
"""Asked of the socket at once: a hundred transfers."""

LOOK_AFTER_EVERY_S = 1.0
"""How late a ping, or the end of a connection that says nothing, may be."""

LOOK_AFTER_SLICE = 500
"""Sessions looked after before others may run."""

DRAIN_POLL_S = 0.01
TURN_AWAY_S = 1.0

CLOSING_RESERVE_S = 1.0
"""Of the time to drain, kept for the close frames."""


class InsecureListen(Exception):
    """A listener would serve plain WebSocket on an address that is not loopback: tokens would travel readable.

    Put TLS in front of a loopback address, or set insecure_listen.
    """


class Gateway:
    """Serves WebSocket clients. One of these in a process."""

    def __init__(self, config: Config, *, books: Books, router: Router, hub: Hub, directory: Directory) -> None:
        self._config = config
        self._desk = Desk(config, books=books, router=router, hub=hub, directory=directory)
        self._doorkeeper = Doorkeeper(config, self._desk.tokens)
        self._listening = trio.CancelScope()
        self._connections = trio.CancelScope()
        self._sessions: set[Session] = set()
        self._open = 0
        self._open_by_address: Counter[str] = Counter()

    def allow_origin(self, origin: str) -> None:
        """Let pages of this origin connect, e.g. ``http://127.0.0.1:8711``: the HTTP door, once its port is known."""
        self._doorkeeper.allow_origin(origin)

    @property
    def connections(self) -> int:
        """Sessions that are open."""
        return len(self._sessions)

    async def serve(
        self,
        listeners: Sequence[trio.abc.Listener[Any]],
        *,
        task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled, or until drained. Closes the listeners. Raises InsecureListen."""
        for listener in listeners:
            self._check_secure(listener)
        async with trio.open_nursery() as watchers:
            watchers.start_soon(self._desk.flusher.run)
            watchers.start_soon(self._look_after_sessions)
            watchers.start_soon(self._desk.tokens.watch, self._tokens_in_use, self._revoked)
            with self._connections:
                # Sessions outlive the listeners: stopping to accept must not end them.
                async with trio.open_nursery() as sessions:
                    with self._listening:
                        await trio.serve_listeners(
                            self._connected, list(listeners), handler_nursery=sessions, task_status=task_status
                        )
            watchers.cancel_scope.cancel()

    async def drain(self, deadline: float) -> int:
        """Stop: no new connections, no new commands, let answers out, close with 1001. Done by the trio time given.

        Answers how many messages were left unanswered. `serve` returns afterwards.
        """
        self._desk.draining = True
        self._listening.cancel()
        for session in self._sessions:
            session.notify("going_away")
        with trio.move_on_at(max(trio.current_time(), deadline - CLOSING_RESERVE_S)):
            while not all(session.idle for session in self._sessions):  # noqa: ASYNC110 - once in the daemon's life
                await trio.sleep(DRAIN_POLL_S)
        orphaned = sum(session.unanswered for session in self._sessions)
        for session in self._sessions:
            session.end(Close(1001, "the daemon is stopping"))
        with trio.move_on_at(deadline):
            while self._sessions:  # noqa: ASYNC110 - as above
                await trio.sleep(DRAIN_POLL_S)
        log.info("drained", orphaned=orphaned, cut_off=len(self._sessions))
        self._connections.cancel()
        return orphaned

    # -- accepting ----------------------------------------------------------------------------------------------------

    def _check_secure(self, listener: trio.abc.Listener[Any]) -> None:
        if self._config.insecure_listen or not isinstance(listener, trio.SocketListener):
            return
        name = listener.socket.getsockname()
        if listener.socket.family == socket.AF_UNIX or ipaddress.ip_address(name[0].partition("%")[0]).is_loopback:
            return
        raise InsecureListen(f"plain WebSocket on {name[0]}")

    async def _connected(self, transport: trio.abc.Stream) -> None:
        address = _address_of(transport)
        config = self._config
        if (
            self._desk.draining
            or self._open >= config.connections_max
            or (address and self._open_by_address[address] >= config.connections_per_address_max)
        ):
            log.warning("connection_refused", address=address, open=self._open)
            await _turn_away(transport)
            return
        self._open += 1
        self._open_by_address[address] += 1
        try:
            await self._serve_connection(transport, address)
        finally:
            self._open -= 1
            self._open_by_address[address] -= 1
            if not self._open_by_address[address]:
                del self._open_by_address[address]
            await trio.aclose_forcefully(transport)

    # -- one connection -----------------------------------------------------------------------------------------------

    async def _serve_connection(self, transport: trio.abc.Stream, address: str) -> None:
        """The one boundary of a connection: whatever a bug raises ends here, and only this connection."""
        config = self._config
        stream = WireStream(
            transport,
            message_bytes_max=config.message_bytes_max,
            frames_per_message_max=config.frames_per_message_max,
        )
        try:
            async with trio.open_nursery() as nursery:
                opened = await self._shake_hands(nursery, stream)
                if opened is not None:
                    connection, admission = opened
                    await self._run_session(nursery, connection, stream, admission, address)
                nursery.cancel_scope.cancel()
        except* Exception as bugs:  # noqa: BLE001 - see the docstring
            await self._after_bug(stream, address, bugs)

    async def _shake_hands(
        self, nursery: trio.Nursery, stream: WireStream
    ) -> tuple[WebSocketConnection, Admission] | None:
        """Let the client in, or answer why not. None if it is not in."""
        opened = None
        with trio.move_on_after(self._config.handshake_timeout_s) as scope:
            # A request that is not for a WebSocket is answered, and a client that goes away noticed, by
            # trio-websocket's reader alone: whoever waits for the handshake is not told.
            stream.on_end = scope.cancel
            request = await wrap_server_stream(
                nursery,
                stream,
                max_message_size=self._config.message_bytes_max,
                receive_buffer_size=RECEIVE_BYTES,
            )
            try:
                # The request shows every header but this one.
                stream.await_receiver()
                admission = await self._doorkeeper.judge(request, request._event.host)  # noqa: SLF001
                opened = await request.accept(subprotocol=admission.subprotocol), admission
            except Refusal as refusal:
                log.info("handshake_refused", status=refusal.status, reason=refusal.text)
                headers = [*refusal.headers, (b"Content-Type", b"text/plain"), (b"Connection", b"close")]
                await request.reject(refusal.status, extra_headers=headers, body=f"{refusal.text}\n".encode())
            except ConnectionClosed:
                log.debug("handshake_abandoned")
        stream.on_end = None
        return opened

    async def _run_session(
        self,
        nursery: trio.Nursery,
        connection: WebSocketConnection,
        stream: WireStream,
        admission: Admission,
        address: str,
    ) -> None:
        session = Session(self._desk, connection, stream, nursery, address=address, principal=admission.principal)
        self._sessions.add(session)
        CONNECTIONS_OPENED.inc()
        CONNECTIONS.inc()
        code = 1011
        try:
            close = await session.run()
            code = close.code
            log.debug("session_closed", address=address, code=code, reason=close.reason)
        except trio.Cancelled:
            code = 1006
            raise
        finally:
            self._sessions.discard(session)
            CONNECTIONS.dec()
            CONNECTIONS_CLOSED.labels(str(code)).inc()

    async def _after_bug(self, stream: WireStream, address: str, bugs: ExceptionGroup[Exception]) -> None:
        if stream.handshaking:
            # wsproto decodes headers before it has judged them; what it cannot decode is the client's mistake.
            log.info("handshake_broken", address=address, error=repr(bugs.exceptions[0]))
            return
        SESSION_CRASHES.inc()
        log.error("session_crashed", address=address, exc_info=bugs)
        with trio.move_on_after(CLOSE_S):
            await stream.send_close(1011, "internal error")
            await stream.linger()

    # -- all connections ----------------------------------------------------------------------------------------------

    async def _look_after_sessions(self) -> None:
        while True:
            await trio.sleep(LOOK_AFTER_EVERY_S)
            for index, session in enumerate(list(self._sessions), start=1):
                session.look_after(trio.current_time())
                if index % LOOK_AFTER_SLICE == 0:
                    await trio.lowlevel.checkpoint()

    def _tokens_in_use(self) -> set[int]:
        return {session.principal.token_id for session in self._sessions if session.principal is not None}

    def _revoked(self, token_id: int) -> None:
        for session in self._sessions:
            if session.principal is not None and session.principal.token_id == token_id:
                session.end(Close(4401, "the token was revoked"))


def _address_of(transport: trio.abc.Stream) -> str:
    """The peer's network address; empty for a Unix socket, whose peers have none."""
    if isinstance(transport, trio.SSLStream):
        transport = transport.transport_stream
    if not isinstance(transport, trio.SocketStream):
        return ""
    try:
        name = transport.socket.getpeername()
    except OSError:
        return ""
    return str(name[0]) if isinstance(name, tuple) else ""


async def _turn_away(transport: trio.abc.Stream) -> None:
    with trio.move_on_after(TURN_AWAY_S):
        with contextlib.suppress(trio.BrokenResourceError):
            await transport.send_all(
                b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
            )
    await trio.aclose_forcefully(transport)
