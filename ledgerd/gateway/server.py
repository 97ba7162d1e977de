"""The WebSocket door: accepts connections, lets clients in, runs their sessions, stops in order.

trio-websocket has a server of its own, which is not used: an exception in one handler ends all of it and tells the
client 1000, its handshake has no limits, and stopping it gives every client 1006. Its connection, over our stream, is.

What strangers cost is bounded here: how many may stand in the door (`Places`), for how long (one deadline for TLS and
the HTTP request together), and how many are looked at per turn of the event loop (`TURNS`), so that a crowd at the door
only ever takes a part of the time of those who are in.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from typing import Any

import structlog
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, wrap_server_stream

from ledgerd.addresses import is_loopback
from ledgerd.config import Config
from ledgerd.engine.ports import Books
from ledgerd.gateway.accepting import PatientListener
from ledgerd.gateway.call import Desk, Directory, Hub, Router
from ledgerd.gateway.closing import Close
from ledgerd.gateway.gate import Gate
from ledgerd.gateway.handshake import Admission, Doorkeeper, Refusal, forwarded_for
from ledgerd.gateway.places import NoPlace, Place, Places, refused
from ledgerd.gateway.proxies import TrustedProxies
from ledgerd.gateway.session import CLOSE_S, Session, limit_newcomer
from ledgerd.gateway.stream import WireStream
from ledgerd.gateway.tls import ServerTls
from ledgerd.metrics import (
    CONNECTIONS,
    CONNECTIONS_CLOSED,
    CONNECTIONS_OPENED,
    DRAIN_ORPHANED,
    SESSION_CRASHES,
    UNSENT_BYTES,
)

log = structlog.get_logger("ledgerd.gateway.server")

RECEIVE_BYTES = 16_384
"""Asked of the socket at once: a hundred transfers."""

LOOK_AFTER_EVERY_S = 1.0
"""How late a ping, or the end of a connection that says nothing, may be."""

LOOK_AFTER_SLICE = 500
"""Sessions looked after before others may run."""

DRAIN_POLL_S = 0.01
TURN_AWAY_S = 1.0

COUNTED_CODES = frozenset({1000, 1001, 1002, 1003, 1005, 1006, 1007, 1009, 1011, 4401, 4408, 4429, 4503, 4504})
"""Close codes that are counted by themselves. The peer chooses its own, and must not be able to make up labels."""

for _label in (*map(str, sorted(COUNTED_CODES)), "other"):
    CONNECTIONS_CLOSED.labels(_label)  # there at 0: see `ledgerd.metrics`

TLS_GOODBYE_S = 1.0
"""For the end of TLS to be sent, after the close frame."""

TURNS = 4
"""Handshakes that begin in one turn of the event loop: each takes up to a millisecond of everybody's time."""

JUDGED_AT_ONCE = 64
"""Requests whose tokens are looked up at once; the others wait here, where they can give way."""

LAST_CALL_S = 1.0
"""For those who are just being let in: they learn that the daemon stops from its close frame, not from a reset."""

CLOSING_RESERVE_S = 1.0
"""Of the time to drain, kept for the close frames."""

GOING_AWAY = Close(1001, "the daemon is stopping")


class InsecureListen(Exception):
    """A listener would serve plain WebSocket on an address that is not loopback: tokens would travel readable.

    Set tls_certificate and tls_key, or put TLS in front of a loopback address, or set insecure_listen.
    """


class Gateway:
    """Serves WebSocket clients. One of these in a process."""

    def __init__(
        self,
        config: Config,
        *,
        books: Books,
        router: Router,
        hub: Hub,
        directory: Directory,
        tls: ServerTls | None = None,
    ) -> None:
        self._desk = Desk(config, books=books, router=router, hub=hub, directory=directory)
        self._doorkeeper = Doorkeeper(config, self._desk.tokens)
        self._listening = trio.CancelScope()
        self._connections = trio.CancelScope()
        self._sessions: set[Session] = set()
        self._places = Places(lambda: self._desk.config)
        self._proxies = TrustedProxies(config.trusted_proxies)
        self._tls = tls
        self._turns = Gate(TURNS)
        self._judging = Gate(JUDGED_AT_ONCE)
        self._orphaned: int | None = None
        self._own: list[PatientListener] = []

    def reconfigure(self, config: Config) -> None:
        """Go by these settings from now on."""
        self._desk.reconfigure(config)
        self._doorkeeper.reconfigure(config)
        self._proxies = TrustedProxies(config.trusted_proxies)

    def allow_origin(self, origin: str) -> None:
        """Let pages of this origin connect, e.g. ``http://127.0.0.1:8711``: the HTTP door, once its port is known."""
        self._doorkeeper.allow_origin(origin)

    def allow_host(self, host: str) -> None:
        """Serve under this name too, ``HOST:PORT``: an address that the daemon did not choose itself."""
        self._doorkeeper.allow_host(host)

    @property
    def connections(self) -> int:
        """Sessions that are open."""
        return len(self._sessions)

    @property
    def unanswered(self) -> int:
        """Messages that execute or wait; once sessions are being closed, those that did then."""
        return sum(session.unanswered for session in self._sessions) if self._orphaned is None else self._orphaned

    async def serve(
        self,
        listeners: Sequence[trio.abc.Listener[Any]],
        *,
        handed_over: bool = False,
        task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled, or until drained. Closes the listeners. Raises InsecureListen.

        Sockets that were ``handed_over`` have another owner, who keeps them open: whoever waits there when this gateway
        stops is left to the next one.
        """
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
                        patient = [self._patient(listener) for listener in listeners]
                        self._own = [] if handed_over else patient
                        self._handlers = sessions
                        await trio.serve_listeners(
                            self._connected, patient, handler_nursery=sessions, task_status=task_status
                        )
            watchers.cancel_scope.cancel()

    async def drain(self, deadline: float) -> int:
        """Stop: no new connections, no new commands, let answers out, close with 1001. Done by the trio time given.

        Answers how many messages were left unanswered. `serve` returns afterwards.
        """
        self._desk.draining = True
        self._listening.cancel()
        for listener in self._own:
            for late in listener.last_call():
                self._handlers.start_soon(self._connected, late)
        for session in self._sessions:
            session.notify("going_away")
        with trio.move_on_at(min(trio.current_time() + LAST_CALL_S, deadline)):
            await trio.sleep(DRAIN_POLL_S)  # who was accepted just now takes a place
            while self._places.open > len(self._sessions):  # noqa: ASYNC110 - once in the daemon's life
                await trio.sleep(DRAIN_POLL_S)
        with trio.move_on_at(max(trio.current_time(), deadline - CLOSING_RESERVE_S)):
            while not all(session.idle for session in self._sessions):  # noqa: ASYNC110 - as above
                await trio.sleep(DRAIN_POLL_S)
        self._orphaned = orphaned = self.unanswered
        DRAIN_ORPHANED.inc(orphaned)
        for session in self._sessions:
            session.end(GOING_AWAY)
        with trio.move_on_at(deadline):
            while self._sessions:  # noqa: ASYNC110 - as above
                await trio.sleep(DRAIN_POLL_S)
        log.info("drained", orphaned=orphaned, cut_off=len(self._sessions))
        self._connections.cancel()
        return orphaned

    # -- accepting ----------------------------------------------------------------------------------------------------

    def _check_secure(self, listener: trio.abc.Listener[Any]) -> None:
        if self._desk.config.insecure_listen or self._tls is not None or not isinstance(listener, trio.SocketListener):
            return
        name = listener.socket.getsockname()
        if listener.socket.family != socket.AF_UNIX and not is_loopback(name[0]):
            raise InsecureListen(
                f"plain WebSocket on {name[0]}, which others can reach: set tls_certificate and tls_key, or put a "
                "proxy with TLS in front of a loopback address, or set insecure_listen if the network is private"
            )

    def _patient(self, listener: trio.abc.Listener[Any]) -> PatientListener:
        async def calm() -> None:
            await self._turns.quiet()
            await self._judging.quiet()

        silence_s = self._desk.config.handshake_timeout_s
        return PatientListener(listener, calm=calm, make_room=self._places.make_room, silence_s=silence_s)

    async def _connected(self, transport: trio.abc.Stream) -> None:
        peer = _address_of(transport)
        try:
            place = self._places.take(None if self._proxies.trust(peer) else peer)
        except NoPlace as no:
            refused(no.reason, peer)
            await self._turn_away(transport)
            return
        try:
            with place.stay:
                await self._serve_connection(transport, place, peer)
        finally:
            place.leave()
            await trio.aclose_forcefully(transport)

    async def _turn_away(self, transport: trio.abc.Stream) -> None:
        """Say so where that costs next to nothing; a handshake of TLS for it would be what an attacker wants."""
        if not self._encrypts(transport):
            with trio.move_on_after(TURN_AWAY_S), contextlib.suppress(trio.BrokenResourceError):
                await transport.send_all(
                    b"HTTP/1.1 503 Service Unavailable\r\n"
                    b"Connection: close\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
                )
        await trio.aclose_forcefully(transport)

    # -- one connection -----------------------------------------------------------------------------------------------

    async def _serve_connection(self, transport: trio.abc.Stream, place: Place, peer: str) -> None:
        """The one boundary of a connection: whatever a bug raises ends here, and only this connection."""
        deadline = trio.current_time() + self._desk.config.handshake_timeout_s
        stream: WireStream | None = None
        encrypted = self._encrypted(transport)
        try:
            secured = await self._secured(transport, encrypted, peer, deadline)
            if secured is None:
                return
            stream = self._wire_stream(secured)
            async with trio.open_nursery() as nursery:
                opened = await self._shake_hands(nursery, stream, place, peer, deadline)
                if opened is not None:
                    connection, admission = opened
                    await self._run_session(nursery, connection, stream, admission, place)
                nursery.cancel_scope.cancel()
            if isinstance(secured, trio.SSLStream):
                with trio.move_on_after(TLS_GOODBYE_S):
                    await secured.aclose()
        except* Exception as bugs:  # noqa: BLE001 - see the docstring
            await self._after_bug(stream, place.address or peer, bugs, user_id=place.user_id)
        finally:
            if encrypted is not None:
                # Trio's stream refers to itself. The garbage collector would come for it, and for the hundred
                # kilobytes of OpenSSL's that it cannot see, when much of its own has gathered: far too late.
                vars(encrypted).clear()

    def _encrypted(self, transport: trio.abc.Stream) -> trio.SSLStream[trio.abc.Stream] | None:
        if self._tls is None or not self._encrypts(transport):
            return None
        return trio.SSLStream(transport, self._tls.context, server_side=True)

    def _encrypts(self, transport: trio.abc.Stream) -> bool:
        """Whether this connection has to begin with TLS: a Unix socket is private to the machine as it is."""
        local = isinstance(transport, trio.SocketStream) and transport.socket.family == socket.AF_UNIX
        return self._tls is not None and not local

    async def _secured(
        self, transport: trio.abc.Stream, encrypted: trio.SSLStream[trio.abc.Stream] | None, peer: str, deadline: float
    ) -> trio.abc.Stream | None:
        """What to speak WebSocket over, as soon as there is something to read. None if TLS fails, or takes too long."""
        with trio.move_on_at(deadline):
            await self._wait_for_turn(transport)
            if encrypted is None:
                return transport
            try:
                await encrypted.do_handshake()
            except trio.BrokenResourceError as error:
                refused("tls", peer, error=getattr(error.__cause__, "reason", None))
                return None
            return encrypted
        refused("timeout", peer)
        return None

    async def _wait_for_turn(self, transport: trio.abc.Stream) -> None:
        if isinstance(transport, trio.SocketStream):
            await trio.lowlevel.wait_readable(transport.socket)
        async with self._turns:
            await trio.lowlevel.checkpoint()

    def _wire_stream(self, transport: trio.abc.Stream) -> WireStream:
        config = self._desk.config
        return WireStream(
            transport,
            message_bytes_max=config.message_bytes_max,
            frames_per_message_max=config.frames_per_message_max,
        )

    async def _shake_hands(
        self, nursery: trio.Nursery, stream: WireStream, place: Place, peer: str, deadline: float
    ) -> tuple[WebSocketConnection, Admission] | None:
        """Let the client in, or answer why not. None if it is not in."""
        opened = None
        with trio.CancelScope(deadline=deadline) as scope:
            # A request that is not for a WebSocket is answered, and a client that goes away noticed, by
            # trio-websocket's reader alone: whoever waits for the handshake is not told.
            stream.on_end = scope.cancel
            request = await wrap_server_stream(
                nursery,
                stream,
                max_message_size=self._desk.config.message_bytes_max,
                receive_buffer_size=RECEIVE_BYTES,
            )
            try:
                # The request shows every header but this one.
                stream.await_receiver()
                self._find_client(place, peer, request)
                async with self._judging:
                    with place.worked_for():
                        admission = await self._doorkeeper.judge(request, request._event.host)  # noqa: SLF001
                if admission.principal is None:
                    limit_newcomer(stream, self._desk.config)
                opened = await request.accept(subprotocol=admission.subprotocol), admission
            except Refusal as refusal:
                refused(refusal.reason, place.address or peer, status=refusal.status, text=refusal.text)
                headers = [*refusal.headers, (b"Content-Type", b"text/plain"), (b"Connection", b"close")]
                await request.reject(refusal.status, extra_headers=headers, body=f"{refusal.text}\n".encode())
            except ConnectionClosed:
                log.debug("handshake_abandoned")
        if scope.cancelled_caught and not stream.ended:
            refused("timeout", place.address or peer)
        stream.on_end = None
        return opened

    def _find_client(self, place: Place, peer: str, request: WebSocketRequest) -> None:
        """Count the connection for the client behind a proxy. Raises Refusal."""
        if not self._proxies.trust(peer):
            return
        try:
            place.come_from(self._proxies.client(peer, forwarded_for(request)))
        except NoPlace as no:
            again = [(b"Retry-After", b"1")]
            raise Refusal(503, "too many connections from this address", again, reason=no.reason) from None

    async def _run_session(
        self,
        nursery: trio.Nursery,
        connection: WebSocketConnection,
        stream: WireStream,
        admission: Admission,
        place: Place,
    ) -> None:
        session = Session(self._desk, connection, stream, nursery, place=place, principal=admission.principal)
        self._sessions.add(session)
        if self._orphaned is not None:
            # It was let in while the others were closed.
            session.end(GOING_AWAY)
        CONNECTIONS_OPENED.inc()
        CONNECTIONS.inc()
        log.debug("session_opened", address=place.address, **session.ids())
        code = 1011
        try:
            close = await session.run()
            code = close.code
            log.debug("session_closed", address=place.address, code=code, reason=close.reason, **session.ids())
        except trio.Cancelled:
            code = 1006
            raise
        finally:
            self._sessions.discard(session)
            CONNECTIONS.dec()
            CONNECTIONS_CLOSED.labels(str(code) if code in COUNTED_CODES else "other").inc()

    async def _after_bug(
        self, stream: WireStream | None, address: str, bugs: ExceptionGroup[Exception], *, user_id: int | None
    ) -> None:
        if stream is not None and stream.handshaking:
            # wsproto decodes headers before it has judged them; what it cannot decode is the client's mistake.
            refused("broken", address, error=bugs.exceptions[0])
            return
        SESSION_CRASHES.inc()
        log.error("session_crashed", address=address, user_id=user_id, exc_info=bugs)
        if stream is None:
            return
        with trio.move_on_after(CLOSE_S):
            await stream.send_close(1011, "internal error")
            await stream.linger()

    # -- all connections ----------------------------------------------------------------------------------------------

    async def _look_after_sessions(self) -> None:
        while True:
            await trio.sleep(LOOK_AFTER_EVERY_S)
            unsent_bytes = 0
            for index, session in enumerate(list(self._sessions), start=1):
                session.look_after(trio.current_time())
                unsent_bytes += session.unsent_bytes
                if index % LOOK_AFTER_SLICE == 0:
                    await trio.lowlevel.checkpoint()
            UNSENT_BYTES.set(unsent_bytes)

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
