"""One connection, from the end of its handshake to its close frame.

Three tasks: trio-websocket's reader, the receive loop here, and the outbox. Messages come from the reader, by the short
cut of `WireStream`, or else through the receive loop. Neither waits for work: a session begins what it may, keeps what
it may not begin yet, and stops reading only when too much is kept. So pings are answered and a close is seen while
commands execute.

A connection holds at most: the message that is being read and two that trio-websocket passes on, `waiting_bytes_max`
of kept messages, `outbox_bytes_max` of unsent ones and the answers to `in_flight_max` commands. One that nobody has
signed in on holds far less, and may ask little: see the limits of newcomers below.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import structlog
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection

from ledgerd.config import Config
from ledgerd.engine.commands import Principal
from ledgerd.gateway.authentication import expired
from ledgerd.gateway.batch import Batch
from ledgerd.gateway.call import Desk, Subscription
from ledgerd.gateway.clock import now_s, text_of
from ledgerd.gateway.closing import PEER_IS_GONE, Close
from ledgerd.gateway.member import UNKNOWN_METHOD, count_answer
from ledgerd.gateway.orders import Orders
from ledgerd.gateway.outbox import WRITE_BYTES_MAX, Outbox
from ledgerd.gateway.places import Place, refused
from ledgerd.gateway.single import Single
from ledgerd.gateway.stream import WireStream
from ledgerd.metrics import EVENTS_PUSHED, NOTIFICATIONS_IGNORED, SLOW_CONSUMERS
from ledgerd_protocol.codec import (
    Invalid,
    Limits,
    decode_frame,
    encode_error,
    encode_event,
    encode_notification,
    event_frame,
)
from ledgerd_protocol.errors import ErrorCode
from ledgerd_protocol.events import Closed

log = structlog.get_logger("ledgerd.gateway.session")

FLUSH_S = 2.0
"""For what is in the outbox, before a close frame that is not urgent."""

CLOSE_S = 2.0
"""For the peer to answer a close frame."""

NEWCOMER_MESSAGE_BYTES_MAX = 16_384
NEWCOMER_FRAMES_PER_MESSAGE_MAX = 16
NEWCOMER_WAITING_BYTES_MAX = 32_768
NEWCOMER_REQUESTS_MAX = 20
"""As long as nobody has signed in: what a client says to do so is short. Beside that it may leave `WRITE_BYTES_MAX` of
answers untaken before it is answered no more."""

EXPIRY_NOTICE_S = 60.0
"""Before a token expires, the session is told."""


def limit_newcomer(stream: WireStream, config: Config) -> None:
    """Take no more from a client than signing in needs. To be called before the handshake is answered."""
    stream.message_bytes_max = min(config.message_bytes_max, NEWCOMER_MESSAGE_BYTES_MAX)
    stream.frames_per_message_max = min(config.frames_per_message_max, NEWCOMER_FRAMES_PER_MESSAGE_MAX)


class Session:
    """A connection and whom it acts for. Is the `Caller` of its methods and the sink of its subscriptions."""

    def __init__(
        self,
        desk: Desk,
        connection: WebSocketConnection,
        stream: WireStream,
        nursery: trio.Nursery,
        *,
        place: Place,
        principal: Principal | None,
    ) -> None:
        config = desk.config
        self.desk = desk
        self.address = place.address
        self.principal = principal
        self.subscriptions: dict[str, Subscription] = {}
        self.orders = Orders(desk, self.start_soon)
        self.closed = False
        self._place = place
        self._connection = connection
        self._stream = stream
        self._nursery = nursery
        self._outbox = Outbox(stream, config.outbox_bytes_max, self._sent, desk.flusher)
        self._receiving = trio.CancelScope()
        self._close = Close(1001, "")
        self._crash: Exception | None = None
        # requests
        self._limits = Limits(config.message_bytes_max, config.depth_max, config.batch_members_max)
        self._executing = 0
        self._alone: Single | Batch | None = None  # executes by itself: what arrived later waits for its end
        self._waiting: deque[tuple[str, float]] = deque()
        self._waiting_bytes = 0
        self._beginning = False
        self._reading = True
        self._resume: trio.Event | None = None
        # signs of life
        self._unauthenticated_since: float | None = trio.current_time() if principal is None else None
        self._pinged = False
        self._expiry_told = False
        self._subscriptions_made = 0
        self._requests_of_nobody = 0
        place.busy = self._works
        if principal is not None:
            self._seat(principal)

    # -- life ---------------------------------------------------------------------------------------------------------

    async def run(self) -> Close:
        """Serve the connection until it ends, and answer how it ended. Raises whatever bug ended it."""
        self._nursery.start_soon(self._write)
        self._stream.attach(self)
        with self._receiving:
            await self._receive()
        self._leave()
        if self._crash is not None:
            raise self._crash
        await self._say_goodbye()
        return self._close

    def end(self, close: Close) -> None:
        """Close the connection soon. The first reason counts."""
        if not self._receiving.cancel_called:
            self._close = close
            self._receiving.cancel()

    def crashed(self, error: Exception) -> None:
        """End the session because of a bug that showed in somebody else's task."""
        self._crash = self._crash or error
        self._receiving.cancel()

    def start_soon(self, run: Any, *args: Any) -> None:
        """Run a task that ends with the session. Its bugs end the session."""
        self._nursery.start_soon(run, *args)

    @property
    def idle(self) -> bool:
        """Whether everything that was asked is answered and sent."""
        return self._executing == 0 and not self._waiting and self._outbox.empty

    @property
    def unsent_bytes(self) -> int:
        """Bytes of answers and events that the peer has not taken yet."""
        return self._outbox.size

    def ids(self) -> dict[str, int]:
        """What a log line about the session names it by, beside its address."""
        return {} if self.principal is None else self.principal.ids()

    @property
    def unanswered(self) -> int:
        """Messages that execute or wait."""
        return self._executing + len(self._waiting)

    def _works(self) -> bool:
        """Whether the client waits for the daemon, rather than the other way round."""
        return self._executing > 0

    async def _write(self) -> None:
        try:
            await self._outbox.run()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._outbox.abandon()
            self.end(PEER_IS_GONE)

    def _leave(self) -> None:
        """Take nothing more from the engine and start nothing more."""
        self.closed = True
        self._stream.detach()
        self._waiting.clear()
        self._waiting_bytes = 0
        self._read_on()
        self._drop_subscriptions()
        self._outbox.close()

    async def _say_goodbye(self) -> None:
        close = self._close
        if close.by_peer:
            return
        if not close.urgent:
            with trio.move_on_after(FLUSH_S):
                await self._outbox.flushed()
        with trio.move_on_after(CLOSE_S):
            await self._stream.send_close(close.code, close.reason)
            if close.hang_up:
                return
            if self._stream.ended:
                await self._stream.linger()
            else:
                await self._hear_goodbye()

    async def _hear_goodbye(self) -> None:
        try:
            while True:
                await self._connection.get_message()
        except ConnectionClosed:
            return

    # -- messages in --------------------------------------------------------------------------------------------------

    async def _receive(self) -> None:
        get_message = self._connection.get_message
        while True:
            try:
                message = await get_message()
            except ConnectionClosed as closed:
                self.end(self._why(closed))
                return
            if not isinstance(message, str):
                self.end(Close(1003, "text frames only"))
                return
            self.arrived(message)
            await self.not_full()

    def _why(self, closed: ConnectionClosed) -> Close:
        """How the connection came to its end, when it was not the daemon that ended it."""
        if self._stream.too_big:
            return Close(1009, "message too big", hang_up=self.principal is None)
        code = 1006 if closed.reason is None else closed.reason.code
        if self._stream.peer_said_close and code not in (1002, 1007):
            return Close(code, "", by_peer=True)
        if code in (1002, 1007):
            return Close(code, "" if closed.reason is None else closed.reason.reason or "")
        return PEER_IS_GONE

    def arrived(self, text: str) -> None:
        """Begin with a message, or keep it for later."""
        if self._receiving.cancel_called:
            return
        now = trio.current_time()
        if self._waiting or not self._may_begin():
            self._waiting.append((text, now))
            self._waiting_bytes += text.__sizeof__()
        else:
            self._begin(text, now)

    def _may_begin(self) -> bool:
        outbox = self._outbox
        if self.principal is None and outbox.size > WRITE_BYTES_MAX:
            return False
        return self._executing < self.desk.config.in_flight_max and self._alone is None and not outbox.full

    def _full(self) -> bool:
        config = self.desk.config
        bytes_max = NEWCOMER_WAITING_BYTES_MAX if self.principal is None else config.waiting_bytes_max
        return len(self._waiting) >= config.waiting_commands_max or self._waiting_bytes >= bytes_max

    async def not_full(self) -> None:
        """Return when more may be read. While nothing is read the peer's silence is our doing and does not count."""
        if not self._full():
            return
        self._reading = False
        while self._full():
            self._resume = self._resume or trio.Event()
            await self._resume.wait()
        self._reading = True
        self._stream.last_received = trio.current_time()

    def _begin(self, text: str, arrived_at: float) -> None:
        self._executing += 1
        frame = decode_frame(text, self._limits)
        if self.principal is None and not self._nobody_may_ask(len(frame.members)):
            self.finished(None)
            return
        if frame.batch:
            batch = Batch(self, frame.members, arrived_at)
            if batch.alone:
                self._alone = batch
            batch.begin()
            return
        member = frame.members[0]
        if isinstance(member, Invalid):
            count_answer(UNKNOWN_METHOD, member.error.code.text, trio.current_time() - arrived_at)
            self.send(encode_error(member.id, member.error))
            self.finished(None)
        elif member.id is None:
            NOTIFICATIONS_IGNORED.inc()
            self.finished(None)
        else:
            single = Single(self, member, arrived_at)
            if single.alone:
                self._alone = single
            single.begin()

    def _nobody_may_ask(self, requests: int) -> bool:
        self._requests_of_nobody += requests
        if self._requests_of_nobody <= NEWCOMER_REQUESTS_MAX:
            return True
        refused("newcomer_requests", self.address)
        self.end(Close(4429, "too many requests before signing in", urgent=True, hang_up=True))
        return False

    # -- answers out --------------------------------------------------------------------------------------------------

    def send(self, reply: bytes) -> None:
        """Put a reply on its way."""
        self._outbox.append(reply)

    def finished(self, message: Single | Batch | None) -> None:
        """The message is answered: what waits may begin."""
        self._executing -= 1
        if message is self._alone:
            self._alone = None
        self._begin_waiting()

    def _sent(self) -> None:
        if self._waiting:
            self._begin_waiting()

    def _begin_waiting(self) -> None:
        if self._beginning:
            return
        self._beginning = True
        waiting = self._waiting
        while waiting and self._may_begin():
            text, arrived_at = waiting.popleft()
            self._waiting_bytes -= text.__sizeof__()
            self._begin(text, arrived_at)
        self._beginning = False
        self._read_on()

    def _read_on(self) -> None:
        if self._resume is not None and not self._full():
            self._resume.set()
            self._resume = None

    # -- the caller ---------------------------------------------------------------------------------------------------

    def sign_in(self, principal: Principal) -> None:
        """Act for the principal from now on; what another principal had subscribed to ends."""
        if self.principal is not None and self.principal.token_id != principal.token_id:
            self._end_subscriptions()
        self.principal = principal
        self._unauthenticated_since = None
        self._expiry_told = False
        self._seat(principal)

    def sign_out(self) -> None:
        """Act for nobody. The connection has as long to sign in again as a new one."""
        self._end_subscriptions()
        self.principal = None
        self._unauthenticated_since = trio.current_time()
        self._requests_of_nobody = 0
        self._place.sign_out()
        limit_newcomer(self._stream, self.desk.config)

    def _seat(self, principal: Principal) -> None:
        """Take a place as the user, or say that there is none."""
        config = self.desk.config
        self._stream.message_bytes_max = config.message_bytes_max
        self._stream.frames_per_message_max = config.frames_per_message_max
        if not self._place.sign_in(principal.user_id):
            refused("user", self.address, user_id=principal.user_id)
            self.end(Close(4429, "too many connections of this user"))

    def next_subscription_id(self) -> str:
        """Subscription ids count per connection, so that one event is the same bytes for nearly everybody."""
        self._subscriptions_made += 1
        return f"sub_{self._subscriptions_made}"

    def _end_subscriptions(self) -> None:
        ended = [name for name, subscription in self.subscriptions.items() if not subscription.closed]
        self._drop_subscriptions()
        for subscription_id in ended:
            self.send(event_frame(subscription_id, encode_event(Closed(code=ErrorCode.SESSION_EXPIRED.text))))

    def _drop_subscriptions(self) -> None:
        for subscription in self.subscriptions.values():
            self.desk.hub.unsubscribe(subscription)
        self.subscriptions.clear()

    def push(self, frame: bytes) -> bool:
        """Take an event of a subscription. False: there is no room, it was not taken."""
        taken = self._outbox.push(frame)
        if taken:
            EVENTS_PUSHED.inc()
        return taken

    async def room(self) -> None:
        """Return when there is room again. Raises ClosedResourceError when the connection is gone."""
        await self._outbox.room()

    def notify(self, kind: str, **members: Any) -> None:
        """Tell the client something about its session."""
        self.send(encode_notification("ledger_session", {"type": kind, **members}))

    # -- signs of life ------------------------------------------------------------------------------------------------

    def look_after(self, now: float) -> None:
        """Act on what has not happened. ``now`` is trio time; called about once a second."""
        if self._receiving.cancel_called:
            return
        config = self.desk.config
        since = self._stream.sending_since
        if since is not None and now - since >= config.send_timeout_s:
            SLOW_CONSUMERS.inc()
            log.warning("slow_consumer", address=self.address, unsent_bytes=self._outbox.size, **self.ids())
            self.end(Close(4503, "slow consumer", urgent=True))
            return
        self._watch_authentication(now)
        if not self._reading:
            return
        silence = now - self._stream.last_received
        if silence >= config.ping_after_s + config.pong_timeout_s:
            self.end(Close(4504, "no sign of life", urgent=True))
        elif silence < config.ping_after_s:
            self._pinged = False
        elif not self._pinged:
            self._pinged = True
            self._outbox.ping()

    def _watch_authentication(self, now: float) -> None:
        since, principal = self._unauthenticated_since, self.principal
        if since is not None and now - since >= self.desk.config.authentication_timeout_s:
            self.end(Close(4408, "not authenticated in time"))
        elif principal is not None and principal.expires_at_s is not None:
            if expired(principal):
                self.end(Close(4401, "the token has expired"))
            elif not self._expiry_told and principal.expires_at_s - now_s() <= EXPIRY_NOTICE_S:
                self._expiry_told = True
                self.notify("expiring", expires_at=text_of(principal.expires_at_s))
