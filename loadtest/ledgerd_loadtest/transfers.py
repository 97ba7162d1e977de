"""The money that moves during a soak test: random transfers at a bounded rate, each sent until it is answered."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

import trio
from msgspec import Struct
from uuid_utils import uuid7

from ledgerd_loadtest.commands import CURRENCY, SCALE
from ledgerd_loadtest.witness import Sent
from ledgerd_protocol.call import PASSING, OutcomeUnknown
from ledgerd_protocol.client import Client, open_client
from ledgerd_protocol.connection import Retry
from ledgerd_protocol.errors import LedgerError
from ledgerd_protocol.money import to_text
from ledgerd_protocol.results import Transaction

IN_FLIGHT_MAX = 64
"""Transfers that wait for their answer at once; while a daemon is away, they wait and no more are sent."""

BURSTS = (1, 1, 1, 1, 6)
"""Transfers sent at once: mostly one, now and then several."""

HURRIED = 24
"""Transfers sent at once just before something is broken, so that it leaves some of them unanswered."""

AMOUNT_MINOR_MAX = 999
ASK_AGAIN_S = 0.2

_PATIENT = Retry(first_connect_s=60.0, reconnect_s=3_600.0, call_s=15.0, delay_s_max=1.0)


class Reply(Struct, frozen=True):
    """When a transfer was answered (monotonic clock, seconds), through which daemon, and in which phase of the test."""

    daemon: int
    at: float
    phase: str


class Payments:
    """Sends transfers through several daemons. ``replies`` has those that were not answered by a stored outcome."""

    def __init__(self, clients: Sequence[Client], accounts: Sequence[int], dice: random.Random) -> None:
        self.sent: dict[str, Sent] = {}
        self.replies: dict[str, Reply] = {}
        self.refused: list[str] = []
        self.unknown = 0
        self.replayed = 0
        self.asked_again = 0
        self._hurry = trio.Event()
        self._clients = clients
        self._accounts = accounts
        self._dice = dice

    @property
    def acknowledged(self) -> int:
        """Transfers answered as posted."""
        return sum(transfer.versions is not None for transfer in self.sent.values())

    def hurry(self) -> None:
        """Send many at once, now."""
        self._hurry.set()

    async def run(self, rate_per_s: float, seconds: float, phase: str) -> None:
        """Send for so long; returns when everything sent is answered."""
        room = trio.Semaphore(IN_FLIGHT_MAX)
        until = trio.current_time() + seconds
        async with trio.open_nursery() as nursery:
            while trio.current_time() < until:
                with trio.move_on_after(self._dice.expovariate(rate_per_s * len(BURSTS) / sum(BURSTS))) as pause:
                    await self._hurry.wait()
                self._hurry = trio.Event()
                for _ in range(self._dice.choice(BURSTS) if pause.cancelled_caught else HURRIED):
                    await room.acquire()
                    nursery.start_soon(self._pay, room, phase)

    async def _pay(self, room: trio.Semaphore, phase: str) -> None:
        source, destination = self._dice.sample(self._accounts, 2)
        name = str(uuid7())
        self.sent[name] = transfer = Sent(source, destination, self._dice.randint(1, AMOUNT_MINOR_MAX))
        try:
            await self._until_answered(name, transfer, phase)
        finally:
            room.release()

    async def _until_answered(self, name: str, transfer: Sent, phase: str) -> None:
        """The same id again and again, through any daemon, until there is an answer."""
        doubted = False
        while True:
            daemon = self._dice.randrange(len(self._clients))
            try:
                posted = await self._clients[daemon].transfer(
                    transaction_id=name,
                    source_account_id=transfer.source,
                    destination_account_id=transfer.destination,
                    amount=to_text(transfer.amount, SCALE),
                    currency=CURRENCY,
                )
            except (LedgerError, OutcomeUnknown) as error:
                unsure = isinstance(error, OutcomeUnknown) or error.applied is None
                if isinstance(error, LedgerError) and error.code not in PASSING and not unsure:
                    self.refused.append(f"{name} was refused: {error}")
                    return
                self.unknown += unsure and not doubted
                self.asked_again += 1
                doubted = doubted or unsure
                await trio.sleep(ASK_AGAIN_S)
            else:
                self._answered(name, transfer, posted, Reply(daemon, time.monotonic(), phase))
                return

    def _answered(self, name: str, transfer: Sent, posted: Transaction, reply: Reply) -> None:
        transfer.versions = {entry.account_id: entry.version for entry in posted.entries}
        if posted.replayed is True:
            self.replayed += 1
        else:
            self.replies[name] = reply


async def patient_clients(stack: AsyncExitStack, urls: Sequence[str], token: str) -> list[Client]:
    """A client for each daemon, which outlives the daemon. Raises CannotConnect, ConnectionEnded."""
    return [await stack.enter_async_context(open_client(url, token=token, retry=_PATIENT)) for url in urls]
