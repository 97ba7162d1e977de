"""One followed feed on the client's side: what has arrived and waits to be read, and where to resume.

Rules of this file:

- Nothing here waits for a socket. The connection's reader offers events; a full queue refuses them, the feed lets go
  of its subscription, and reads on from its cursor once its consumer has caught up. Memory stays bounded, other calls
  on the connection are not slowed, and nothing is lost, because the daemon's table remembers.
- Subscribing again is done by the consumer's own task, when it has nothing left to read. There is no task to leak.
- There are two positions: what has arrived (to resume from) and what has been read (for the consumer to store).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import trio

from ledgerd_protocol.cursor import Cursor, FeedGap
from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.events import Closed, Event

KNOWN_EVENTS = frozenset(
    ("start", "live", "update", "transaction", "monitor", "advance", "alert", "account_added", "heartbeat", "closed")
)

HEARTBEAT_MS = 10_000
"""On the channel of monitors, unless the caller chose another: where few events come, they tell where to resume."""

_decode_event = msgspec.json.Decoder(Event).decode


class _Kind(msgspec.Struct):
    type: str = ""


_decode_kind = msgspec.json.Decoder(_Kind).decode


def read_event(raw: msgspec.Raw | bytes) -> Event | None:
    """The event in a notification's result; None for a type this version does not know.

    Raises msgspec.ValidationError if it is a known type and not well formed.
    """
    try:
        event: Event = _decode_event(raw)
    except msgspec.ValidationError:
        if _decode_kind(raw).type in KNOWN_EVENTS:
            raise
        return None
    return event


class Feed:
    """An async iterator over the events of one subscription. It outlives connections; read it from one task.

    ``attach`` is given by the client: it waits for a connection and asks for the subscription.
    """

    def __init__(
        self,
        channel: str,
        options: Mapping[str, Any],
        attach: Callable[[Feed], Awaitable[None]],
        *,
        events_max: int,
    ) -> None:
        since = options.get("since") or {}
        everything = options.get("all") is True
        versions = {int(account): int(version) for account, version in since.get("versions", {}).items()}
        position = since.get("position")
        self._channel = channel
        self._options = {name: value for name, value in options.items() if name != "since"}
        crossings = channel == "monitors"
        if crossings:
            self._options.setdefault("heartbeat_ms", HEARTBEAT_MS)
        advances = since.get("advances", {}) if channel == "advances" else None
        self._arrived, self._read = (
            Cursor(
                since.get("epoch"), versions, position, everything=everything, crossings=crossings, advances=advances
            )
            for _ in range(2)
        )
        self._attach = attach
        self._events_max = events_max
        self._queue: deque[Event] = deque()
        self._changed = trio.Event()
        self._failure: Exception | None = None
        self.subscription: str | None = None
        self.asked = False
        self.closed = False
        self.attach_at = 0.0
        self.refused_since: float | None = None

    @property
    def epoch(self) -> str | None:
        """The epoch of what has been read."""
        return self._read.epoch

    @property
    def versions(self) -> dict[int, int]:
        """The last version read of each account; with `epoch` this is the ``since`` of a later run."""
        return dict(self._read.versions)

    @property
    def advances(self) -> dict[str, int]:
        """On the channel of advances: the last event read of each that runs; with `epoch` the ``since``."""
        return dict(self._read.advances)

    @property
    def position(self) -> str | None:
        """Of a feed of everything: where what has been read ends, or a little before; with `epoch` the ``since``."""
        return self._read.position

    def params(self) -> dict[str, Any]:
        """Parameters of the `ledger_subscribe` that continues after what has arrived."""
        since = self._arrived.since()
        return {
            "channel": self._channel,
            "options": self._options if since is None else {**self._options, "since": since},
        }

    # -- from the connection; none of these wait ---------------------------------------------------------------------

    def attached(self, subscription: str) -> None:
        """The daemon has answered: events of this subscription follow."""
        self.subscription, self.asked, self.refused_since = subscription, False, None
        self._wake()

    def detach(self) -> None:
        """The subscription is gone, with its connection or because the queue is full; the consumer will ask again."""
        self.subscription, self.asked = None, False
        self._wake()

    def fail(self, error: Exception) -> None:
        """There will be no more events: after those that have arrived, the consumer gets this error."""
        self._failure = self._failure or error
        self.detach()

    def offer(self, raw: msgspec.Raw | bytes) -> bool:
        """Take an event. False means that the feed has let go of its subscription: unsubscribe, route nothing more."""
        if len(self._queue) >= self._events_max:
            self.detach()
            return False
        try:
            event = read_event(raw)
            if event is None:
                return True
            if isinstance(event, Closed):
                return self._closed_by_daemon(event)
            if not self._arrived.apply(event):
                return True
        except (FeedGap, msgspec.MsgspecError) as error:
            self.fail(error)
            return False
        self._queue.append(event)
        self._wake()
        return True

    def _closed_by_daemon(self, event: Closed) -> bool:
        """A reason that may pass leads to a new subscription from the same place; any other ends the feed."""
        code = ErrorCode.__members__.get(event.code.upper())
        if code is not None and code.retryable:
            self.detach()
        else:
            self.fail(LedgerError(code or ErrorCode.of_wire(0, event.code, retryable=False, sentence=event.code)))
        return False

    def _wake(self) -> None:
        self._changed.set()

    # -- for the consumer --------------------------------------------------------------------------------------------

    def __aiter__(self) -> Feed:
        """Itself: a feed is read once, by one task."""
        return self

    async def __anext__(self) -> Event:
        """The next event, however many reconnections it takes.

        Raises FeedGap (the feed was not complete), LedgerError (the daemon refuses or ended the subscription),
        ConnectionEnded or CannotConnect (see `ledgerd_protocol.client`). Cancelling loses no event.
        """
        if self._queue:
            await trio.lowlevel.checkpoint()
        while not self._queue:
            await self.settled()
            if not self._queue:
                self._changed = trio.Event()
                await self._changed.wait()
        event = self._queue.popleft()
        self._read.apply(event)
        return event

    async def settled(self) -> None:
        """Return once the subscription stands. Raises what `__anext__` raises."""
        while self.subscription is None and not self._queue:
            if self._failure is not None:
                raise self._failure
            if not self.asked:
                await trio.sleep_until(self.attach_at)
                await self._attach(self)
            self._changed = trio.Event()
            await self._changed.wait()
