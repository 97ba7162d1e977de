"""Taking connections from the kernel: in handfuls, and through a shortage of file descriptors.

Rules of this file:

- No more are taken than can be looked at: in each turn of the event loop a handful, and none while others wait at the
  door for theirs (``calm``). The rest waits in the kernel's queue, in order and for nothing. To take them all would
  only mean to drop most of them half served.
- Both TLS and HTTP begin with the client's word. So the kernel is asked to keep connections to itself until they have
  said something (TCP_DEFER_ACCEPT, see tcp(7)): one that never speaks costs the daemon nothing.
- In a shortage `trio.serve_listeners` writes a traceback ten times a second and waits for somebody to leave. Here it is
  said once, and a newcomer is asked to leave.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
import trio

from ledgerd.metrics import CONNECTIONS_REFUSED

log = structlog.get_logger("ledgerd.gateway.accepting")

HANDFUL = 1
"""Connections taken in one turn of the event loop: a millisecond or two of everybody's time, handshakes included."""

SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""What accept() answers when this process, or the machine, has no room for one more socket."""

PAUSE_S = 0.1


class PatientListener(trio.abc.Listener[trio.abc.Stream]):
    """Accepts from another listener. In a shortage it waits, and calls ``make_room`` before each further try.

    ``calm`` returns when more may be taken. ``silence_s`` is how long the kernel may keep a connection that says
    nothing.
    """

    def __init__(
        self,
        listener: trio.abc.Listener[Any],
        *,
        calm: Callable[[], Awaitable[None]],
        make_room: Callable[[], object],
        silence_s: float,
    ) -> None:
        self._listener: Any = listener
        self._calm = calm
        self._make_room = make_room
        self._short = False
        self._accepted: deque[trio.abc.Stream] = deque()
        self._socket: socket.socket | None = None
        if isinstance(listener, trio.SocketListener):
            # Another descriptor of the same socket: Trio's own can only be accepted from one by one.
            self._socket = socket.fromfd(listener.socket.fileno(), listener.socket.family, listener.socket.type)
            self._socket.setblocking(False)
            if listener.socket.family != socket.AF_UNIX:
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, max(1, int(silence_s)))

    async def accept(self) -> trio.abc.Stream:
        """The next connection. It waits in the listener's queue while there is a shortage.

        Does not let others run if more has come in the same handful.
        """
        while not self._accepted:
            try:
                await self._take_handful()
            except OSError as error:
                if error.errno not in SHORTAGES:
                    raise
                self._note(error)
                self._make_room()
                await trio.sleep(PAUSE_S)
            else:
                if self._short:
                    self._short = False
                    log.info("accept_resumed")
        return self._accepted.popleft()

    async def _take_handful(self) -> None:
        """Take what is there, at least one connection. Raises OSError."""
        await self._calm()
        if self._socket is None:
            self._accepted.append(await self._listener.accept())
            return
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                while len(self._accepted) < HANDFUL:
                    connection, _ = self._socket.accept()
                    self._accepted.append(trio.SocketStream(trio.socket.from_stdlib_socket(connection)))
            except (BlockingIOError, ConnectionAbortedError):
                pass
            except OSError:
                if not self._accepted:
                    raise
            if self._accepted:
                return

    def last_call(self) -> list[trio.abc.Stream]:
        """Close, after taking everybody who waits in the queue: what is left in a queue that is closed is reset.

        Does not let others run, so that nobody comes in between. Only when nobody accepts any more.
        """
        late = list(self._accepted)
        self._accepted.clear()
        if self._socket is None:
            return late
        while True:
            try:
                connection, _ = self._socket.accept()
            except ConnectionAbortedError:
                continue
            except OSError:
                break  # nobody is left, or there is no room for another
            late.append(trio.SocketStream(trio.socket.from_stdlib_socket(connection)))
        self._close_socket()
        self._listener.socket.close()
        return late

    def _close_socket(self) -> None:
        if self._socket is not None and self._socket.fileno() != -1:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    def _note(self, error: OSError) -> None:
        if not self._short:
            self._short = True
            CONNECTIONS_REFUSED.labels("files").inc()
            log.error(
                "accept_stalled",
                error=error.strerror,
                hint="connections wait: raise the limit of open files (LimitNOFILE), or lower connections_max",
            )

    async def aclose(self) -> None:
        """Close the listener, and what nobody has asked for yet."""
        for stream in self._accepted:
            await trio.aclose_forcefully(stream)
        self._close_socket()
        await self._listener.aclose()
