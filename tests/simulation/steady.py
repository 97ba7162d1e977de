"""Clients as they should be: the real `ledgerd_protocol` client, over connections that come and go.

What it promises its user is witnessed as what a daemon promises: a result is committed, a refusal with ``applied``
false is final, everything else is unknown. Its feeds raise FeedGap by themselves; what they deliver is checked as well.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
import trio

from ledgerd_protocol.call import OutcomeUnknown
from ledgerd_protocol.client import Client, open_client
from ledgerd_protocol.connection import CannotConnect, ConnectionEnded, Retry
from ledgerd_protocol.cursor import FeedGap
from ledgerd_protocol.errors import LedgerError
from tests.simulation.follower import Follower
from tests.simulation.orders import Orders, Person
from tests.simulation.store import Store
from tests.simulation.wire import End
from tests.simulation.witness import Witness, plain

RETRY = Retry(first_connect_s=120, reconnect_s=120, call_s=20, delay_s_max=1, connect_timeout_s=3)


class Steady:
    """One user with one client: it pays in two tasks and follows its account in a third."""

    def __init__(
        self,
        name: str,
        person: Person,
        *,
        rng: Random,
        orders: Orders,
        store: Store,
        witness: Witness,
        dial: Callable[[Random], tuple[str, End]],
    ) -> None:
        self.name = name
        self.person = person
        self.followers = [
            Follower(f"{name}.0", rng.choice(("stream", "latest")), None, [person.account_id], store, witness)
        ]
        self.stopping = trio.Event()
        self.finished = trio.Event()
        self._rng = rng
        self._orders = orders
        self._trace = store.trace
        self._witness = witness
        self._dial = dial

    async def run(self) -> None:
        """Pay until told to stop and all is answered; then only follow, until cancelled."""

        async def dial() -> trio.abc.Stream:
            await trio.lowlevel.checkpoint()
            return self._dial(self._rng)[1]

        try:
            async with (
                open_client("ws://localhost", token=self.person.secret, dial=dial, retry=RETRY) as client,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(self._follow, client, self.followers[0])
                async with trio.open_nursery() as paying:
                    paying.start_soon(self._pay, client)
                    paying.start_soon(self._pay, client)
                self.finished.set()
        except* (CannotConnect, ConnectionEnded) as group:
            self._trace.fail(f"{self.name} was let down: {group.exceptions[0]}")
        finally:
            self.finished.set()

    @property
    def satisfied(self) -> bool:
        """Whether it is owed nothing but events."""
        return self.finished.is_set()

    async def _pay(self, client: Client) -> None:
        while not self.stopping.is_set():
            (method, params), _ = self._orders.draw(self.person)
            sendings = self._witness.sends(method, params, None, counted=False, attentive=False)
            self._trace.note(self.name, "calls", method, sendings[0].transaction_id)
            try:
                raw = await client.call_raw(method, params)
            except LedgerError as error:
                self._trace.note(self.name, "refused", sendings[0].transaction_id, error.code.text, error.applied)
                self._witness.answered(sendings, None, plain(error.to_wire()))
            except OutcomeUnknown:
                self._trace.note(self.name, "does not know", sendings[0].transaction_id)
                self._witness.lost(sendings)
            else:
                self._trace.note(self.name, "paid", sendings[0].transaction_id)
                self._witness.answered(sendings, msgspec.json.decode(raw), None)
            await trio.sleep(self._rng.expovariate(6))

    async def _follow(self, client: Client, follower: Follower) -> None:
        options: dict[str, Any] = follower.params()["options"]
        try:
            async with client.subscribe("balances", **options) as feed:
                async for event in feed:
                    told = plain(event)
                    self._trace.note(self.name, "event", told["type"], told.get("version", ""))
                    follower.take(told)
        except FeedGap as gap:
            self._trace.fail(f"the feed of {self.name} has a gap: {gap}")
