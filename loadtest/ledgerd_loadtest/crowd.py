"""Many subscribed connections in one process, served from one poll loop; and the pulse of transfers they are shown.

Rules of this file:

- Whoever waits for something pumps: pings are answered and events are taken in the meantime, by one loop.
- An event is timed from the instant its transfer was sent, so the figure holds the command and the push; what the crowd
  itself needs to read so many sockets is in it too. It is for comparing, not for boasting.
- Every version must reach every connection once and in order, in a benchmark too.
"""

from __future__ import annotations

import itertools
import select
import time
from collections.abc import Callable, Sequence
from types import TracebackType

import msgspec
from msgspec import UNSET, Struct, UnsetType
from uuid_utils import uuid7

from ledgerd_loadtest.commands import Transfer, single_request
from ledgerd_loadtest.socket_client import ConnectionFailed, SocketClient, text_frame
from ledgerd_protocol.codec import encode_request
from ledgerd_protocol.errors import LedgerError

SUBSCRIBE_TIMEOUT_S = 120
DRAIN_S = 20.0
"""For the last event of a pulse to reach everybody."""

_PUMP_EVERY = 50
"""Connections opened between two looks at those that are open already."""

_POLL_S = 0.02


class _Event(Struct, gc=False):
    type: str
    account_id: int = 0
    version: int = 0


class _Params(Struct, gc=False):
    result: _Event | UnsetType = UNSET


class _Message(Struct, gc=False):
    id: int | None = None
    error: msgspec.Raw | UnsetType = UNSET
    params: _Params | UnsetType = UNSET


_MESSAGE = msgspec.json.Decoder(_Message)


class _Member:
    """One subscribed connection. ``last`` is the last version it was shown of the account of the pulse."""

    __slots__ = ("client", "last", "live")

    def __init__(self, client: SocketClient) -> None:
        self.client = client
        self.live = False
        self.last = 0


class Crowd:
    """Connections that each follow accounts. Leaving the context closes them."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._token = token
        self._poll = select.epoll()
        self._members: dict[int, _Member] = {}
        self._others: dict[int, tuple[SocketClient, Callable[[bytes], None]]] = {}
        self._not_live = 0
        self.on_update: Callable[[_Member, _Event], None] | None = None

    def __enter__(self) -> Crowd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for member in self._members.values():
            member.client.close()
        self._poll.close()

    def __len__(self) -> int:
        return len(self._members)

    def join(self, followed: Sequence[list[int]]) -> None:
        """Open a connection for each list of accounts; returns when all are live.

        Raises, as everything here, ConnectionFailed, LedgerError (a subscription is refused), OSError.
        """
        for number, accounts in enumerate(followed):
            member = _Member(SocketClient(self._url, self._token))
            self._members[member.client.socket.fileno()] = member
            self._poll.register(member.client.socket, select.EPOLLIN)
            self._not_live += 1
            params = {"channel": "balances", "options": {"account_ids": accounts}}
            member.client.send(text_frame(encode_request(1, "ledger_subscribe", params)))
            if number % _PUMP_EVERY == 0:
                self.pump(0)
        deadline = time.monotonic() + SUBSCRIBE_TIMEOUT_S
        while self._not_live:
            if time.monotonic() > deadline:
                raise ConnectionFailed(f"{self._not_live} subscriptions were not live in {SUBSCRIBE_TIMEOUT_S} s")
            self.pump(_POLL_S)

    def watch(self, client: SocketClient, hear: Callable[[bytes], None]) -> None:
        """Serve another connection in the same loop."""
        self._others = {client.socket.fileno(): (client, hear)}
        self._poll.register(client.socket, select.EPOLLIN)

    def unwatch(self, client: SocketClient) -> None:
        """Stop serving it."""
        self._others = {}
        self._poll.unregister(client.socket)

    def pump(self, timeout_s: float) -> None:
        """Take what has arrived; wait at most so long for something to."""
        for number, _ in self._poll.poll(timeout_s):
            member = self._members.get(number)
            if member is None:
                client, hear = self._others[number]
                for message in client.receive():
                    hear(message)
                continue
            for message in member.client.receive():
                self._hear(member, _MESSAGE.decode(message))

    def rest(self, seconds: float) -> None:
        """Do nothing but what must be done."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.pump(min(left, _POLL_S))

    def _hear(self, member: _Member, message: _Message) -> None:
        if message.error is not UNSET:
            raise LedgerError.from_wire(msgspec.json.decode(message.error))
        if message.params is UNSET or message.params.result is UNSET:
            return
        event = message.params.result
        if event.type == "update":
            if self.on_update is not None:
                self.on_update(member, event)
        elif event.type == "live" and not member.live:
            member.live = True
            self._not_live -= 1
        elif event.type == "closed":
            raise ConnectionFailed("the daemon ended a subscription")


# -- the pulse ---------------------------------------------------------------------------------------------------------


class Beat(Struct, frozen=True):
    """Transfers at an even rate for some seconds between two accounts; the crowd follows ``followed``, if it is one."""

    source: int
    destination: int
    followed: int | None
    rate_per_s: float
    seconds: float


class Pulse(Struct, frozen=True):
    """What came of a beat: transfers answered, events taken, and the seconds of each from sending to arrival."""

    transfers: int
    pushes: int
    latencies: list[float]
    problems: list[str]


class _Reply(Struct):
    id: int
    result: msgspec.Raw | UnsetType = UNSET
    error: msgspec.Raw | UnsetType = UNSET


_REPLY = msgspec.json.Decoder(_Reply)


class _Beating:
    """Sends the beat and takes the time."""

    def __init__(self, crowd: Crowd, client: SocketClient, beat: Beat, version: int) -> None:
        self._crowd = crowd
        self._client = client
        self._beat = beat
        self._first = version + 1
        self._numbers = itertools.count(1)
        self._sent_at: list[float] = []
        self._answered = 0
        self._latencies: list[float] = []
        self._problems: list[str] = []

    def run(self) -> Pulse:
        beat, started = self._beat, time.perf_counter()
        while (now := time.perf_counter()) < started + beat.seconds:
            due_at = started + len(self._sent_at) / beat.rate_per_s
            if now >= due_at:
                self._send()
            self._crowd.pump(max(0.0, min(_POLL_S, due_at - now)))
        deadline = time.perf_counter() + DRAIN_S
        while not self._complete() and time.perf_counter() < deadline:
            self._crowd.pump(_POLL_S)
        if not self._complete():
            self._problems.append(f"{len(self._latencies)} events arrived of {self._due()} within {DRAIN_S:g} s")
        return Pulse(self._answered, len(self._latencies), self._latencies, self._problems)

    def hear_reply(self, message: bytes) -> None:
        reply = _REPLY.decode(message)
        if reply.error is not UNSET:
            raise LedgerError.from_wire(msgspec.json.decode(reply.error))
        self._answered += 1

    def hear_update(self, member: _Member, event: _Event) -> None:
        if event.account_id != self._beat.followed:
            return
        if event.version != max(member.last, self._first - 1) + 1:
            self._problems.append(f"version {event.version} came after {member.last}")
        member.last = event.version
        # One sender and one payer: versions are given in the order of sending.
        self._latencies.append(time.perf_counter() - self._sent_at[event.version - self._first])

    def _send(self) -> None:
        request = single_request(next(self._numbers), Transfer(str(uuid7()), self._beat.source, self._beat.destination))
        self._sent_at.append(time.perf_counter())
        self._client.send(request.frame)

    def _due(self) -> int:
        return 0 if self._beat.followed is None else len(self._crowd) * len(self._sent_at)

    def _complete(self) -> bool:
        return self._answered == len(self._sent_at) and len(self._latencies) >= self._due()


def beat(crowd: Crowd, url: str, token: str, tempo: Beat, version: int) -> Pulse:
    """Send a beat to a crowd whose followed account is at ``version`` now."""
    with SocketClient(url, token) as client:
        return beat_on(client, crowd, tempo, version)


def beat_on(client: SocketClient, crowd: Crowd, tempo: Beat, version: int) -> Pulse:
    """`beat` on a connection that is open already."""
    beating = _Beating(crowd, client, tempo, version)
    crowd.watch(client, beating.hear_reply)
    crowd.on_update = beating.hear_update
    try:
        return beating.run()
    finally:
        crowd.on_update = None
        crowd.unwatch(client)
