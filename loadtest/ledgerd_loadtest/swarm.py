"""A process full of subscribers that come and go, read slowly, and check everything they are told.

Each subscriber is one task: connect to any of the daemons, resume from the witness's cursor, listen until the daemon
ends the connection or we leave, and again.
"""

from __future__ import annotations

import math
import random
import sys
import time

import msgspec
import trio
from msgspec import UNSET, Struct, UnsetType

from ledgerd_loadtest.lean_socket import LeanSocket, connect
from ledgerd_loadtest.socket_client import ConnectionFailed
from ledgerd_loadtest.swarm_orders import (
    Disturb,
    Follower,
    LineReader,
    Order,
    Progress,
    Report,
    Sample,
    StandingBy,
    Told,
    ToSwarm,
    line_of,
)
from ledgerd_loadtest.witness import Counts, Witness, limited
from ledgerd_protocol.call import PASSING
from ledgerd_protocol.codec import encode_request
from ledgerd_protocol.errors import LedgerError
from ledgerd_protocol.events import Closed, Event, Live, Update

PROGRESS_S = 2.0
LOOK_S = 0.05
"""How often it is looked whether everybody is where they should be."""

RETRY_S = (0.1, 0.5)
SLOW_AFTER_S = 10.0
"""Mean time until a sluggish subscriber stops reading for a while."""

SLOW_S = (1.0, 15.0)
SLUGGISH_BUFFER_BYTES = 16_384

BLAME = frozenset({1002, 1003, 1007, 1009, 1011, 400, 401, 403, *range(4400, 4500)})
"""Close codes and HTTP statuses that say that we, or the daemon's programmers, did something wrong."""


class _Params(Struct):
    subscription: str = ""
    result: Event | UnsetType = UNSET


class _Message(Struct):
    """A reply or a notification, as far as a subscriber looks at it."""

    id: int | None = None
    result: str | UnsetType = UNSET
    error: msgspec.Raw | UnsetType = UNSET
    method: str | UnsetType = UNSET
    params: _Params | UnsetType = UNSET


_MESSAGE = msgspec.json.Decoder(_Message)


class _Subscriber:
    """One of many."""

    def __init__(self, order: Order, follower: Follower, swarm: Swarm) -> None:
        self.witness = Witness()
        self.live = False
        self.follower = follower
        self._order = order
        self._swarm = swarm
        self._dice = random.Random(f"{order.seed} {follower.number}")
        self._life = trio.CancelScope()
        self._subscription = ""

    async def run(self) -> None:
        """Subscribe over and over, until cancelled."""
        counts = self.witness.counts
        while True:
            daemon = self._dice.randrange(len(self._order.urls))
            self._life = trio.CancelScope()
            self.plan_life()
            try:
                with self._life:
                    await self._one_connection(daemon)
            except (ConnectionFailed, OSError) as error:
                counts.losses += 1
                if isinstance(error, ConnectionFailed) and error.code in BLAME:
                    self.witness.problems.append(f"a connection ended with {error.code}: {error}")
            except LedgerError as error:
                counts.passing_refusals[error.code.text] = counts.passing_refusals.get(error.code.text, 0) + 1
                if error.code not in PASSING:
                    self.witness.problems.append(f"a subscription was refused: {error}")
            except msgspec.MsgspecError as error:
                self.witness.problems.append(f"a message is not what the protocol says: {error}")
            finally:
                self.live = False
            if self._life.cancelled_caught:
                counts.disconnects += 1
            else:
                await trio.sleep(self._dice.uniform(*RETRY_S))

    def plan_life(self) -> None:
        """Decide when the present connection ends by our own will."""
        disturbed = self._swarm.disturbed
        lifetime = self._dice.expovariate(1 / self._order.connection_s) if disturbed else math.inf
        self._life.deadline = trio.current_time() + lifetime

    async def _one_connection(self, daemon: int) -> None:
        buffer = SLUGGISH_BUFFER_BYTES if self.follower.sluggish else None
        opened = await connect(self._order.urls[daemon], self._order.token, receive_buffer=buffer)
        self.witness.counts.connections += 1
        self._subscription = ""
        try:
            await opened.send(self._request())
            await self._listen(opened, daemon)
        finally:
            opened.close()

    def _request(self) -> str:
        options: dict[str, object] = {"account_ids": self.follower.accounts}
        since = self.witness.cursor.since()
        if since is not None:
            options["since"] = since
        return encode_request(1, "ledger_subscribe", {"channel": "balances", "options": options})

    async def _listen(self, opened: LeanSocket, daemon: int) -> None:
        slow_at = trio.current_time() + self._dice.expovariate(1 / SLOW_AFTER_S)
        while True:
            # No checkpoint between receiving and hearing: a life that ends here ends between two messages.
            for message in await opened.receive():
                self._hear(_MESSAGE.decode(message), daemon)
            if self.follower.sluggish and self._swarm.disturbed and trio.current_time() > slow_at:
                self.witness.counts.slow_spells += 1
                await trio.sleep(self._dice.uniform(*SLOW_S))
                slow_at = trio.current_time() + self._dice.expovariate(1 / SLOW_AFTER_S)

    def _hear(self, message: _Message, daemon: int) -> None:
        if message.error is not UNSET:
            raise LedgerError.from_wire(msgspec.json.decode(message.error))
        if message.id is not None and message.result is not UNSET:
            self._subscription = message.result
        elif message.method == "ledger_subscription" and message.params is not UNSET:
            if not self._subscription or message.params.subscription != self._subscription:
                self.witness.problems.append("an event came before the reply to its subscription, or for another one")
            elif message.params.result is not UNSET:
                self._take(message.params.result, daemon)

    def _take(self, event: Event, daemon: int) -> None:
        if isinstance(event, Closed):
            raise ConnectionFailed(f"the daemon ended the subscription: {event.code}")
        self.witness.take(event)
        if isinstance(event, Live):
            self.live = True
        elif isinstance(event, Update) and self.live and self._is_sampled(event):
            self._swarm.samples.append(Sample(event.transaction_id, daemon, time.monotonic()))

    def _is_sampled(self, update: Update) -> bool:
        """Other versions at each subscriber, so that every transaction is looked at somewhere."""
        return not self.follower.sluggish and (update.version + self.follower.number) % self._order.sample_stride == 0


class Swarm:
    """All subscribers of this process."""

    def __init__(self, order: Order) -> None:
        self.disturbed = False
        self.samples: list[Sample] = []
        self._turn = trio.Lock()
        self._subscribers = [_Subscriber(order, follower, self) for follower in order.followers]

    async def run(self, orders: LineReader, answers: trio.abc.SendStream) -> None:
        """Subscribe, obey, report. Returns when nobody gives orders any more."""
        async with trio.open_nursery() as nursery:
            for subscriber in self._subscribers:
                nursery.start_soon(subscriber.run)
            nursery.start_soon(self._obey, orders, answers, nursery.cancel_scope)
            while not all(subscriber.live for subscriber in self._subscribers):  # noqa: ASYNC110  once, at the start
                await trio.sleep(LOOK_S)
            await self._say(answers, StandingBy())

    async def _obey(self, orders: LineReader, answers: trio.abc.SendStream, everything: trio.CancelScope) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_progress, answers)
            while line := await orders.next():
                order = msgspec.json.decode(line, type=ToSwarm)
                if isinstance(order, Disturb):
                    self._disturb(on=order.on)
                    continue
                with trio.move_on_after(order.timeout_s):
                    while not all(each.witness.reached(order.versions) for each in self._subscribers):  # noqa: ASYNC110
                        await trio.sleep(LOOK_S)
                await self._say(answers, self._report())
            everything.cancel()

    async def _say(self, answers: trio.abc.SendStream, message: Struct) -> None:
        async with self._turn:
            await answers.send_all(line_of(message))

    def _disturb(self, *, on: bool) -> None:
        self.disturbed = on
        for subscriber in self._subscribers:
            subscriber.plan_life()

    async def _tell_progress(self, answers: trio.abc.SendStream) -> None:
        while True:
            await trio.sleep(PROGRESS_S)
            live = sum(subscriber.live for subscriber in self._subscribers)
            problems = sum(len(subscriber.witness.problems) for subscriber in self._subscribers)
            await self._say(answers, Progress(self._counts(), live, problems))

    def _counts(self) -> Counts:
        counts = Counts()
        for subscriber in self._subscribers:
            counts.merge(subscriber.witness.counts)
        return counts

    def _report(self) -> Report:
        told = [
            Told(each.follower.number, each.witness.standings, limited(each.witness.problems))
            for each in self._subscribers
        ]
        return Report(self._counts(), told, self.samples)


async def _main() -> None:
    """Read orders from standard input, report on standard output."""
    answers = trio.lowlevel.FdStream(sys.stdout.fileno())
    orders = LineReader(trio.lowlevel.FdStream(sys.stdin.fileno()))
    if first := await orders.next():
        await Swarm(msgspec.json.decode(first, type=Order)).run(orders, answers)


if __name__ == "__main__":
    trio.run(_main)
