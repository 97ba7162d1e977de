"""Clients without manners: they send without waiting, repeat themselves elsewhere, break off anywhere, read when they
feel like it. What they are told is witnessed all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

import msgspec
import trio

from tests.simulation.follower import Follower
from tests.simulation.line import Ended, Line, frame
from tests.simulation.orders import Order, Orders, Person
from tests.simulation.store import Store
from tests.simulation.wire import End
from tests.simulation.witness import Sending, Witness

Reaction = Callable[[Any, Any], None]
"""Takes the result and the error of an answer."""

MODES = ("stream", "stream", "latest", "transactions")


class Rough:
    """One client, over as many connections as it takes. ``dial`` connects to some daemon, or raises OSError."""

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
        self.followers: list[Follower] = []
        self.stopping = trio.Event()
        self.finished = trio.Event()
        self._rng = rng
        self._orders = orders
        self._store = store
        self._trace = store.trace
        self._witness = witness
        self._dial = dial
        self._numbers = 0
        self._reactions: dict[int, tuple[Reaction, Callable[[], None]]] = {}
        self._routes: dict[str, Follower] = {}
        self._again: list[tuple[Order, int | None]] = []
        self._asleep_until = 0.0
        self._attentive = True
        self._line_sent: list[Sending] = []
        self._line: Line | None = None
        self._wants = rng.randrange(0, 3)
        """How many subscriptions it likes to have."""

    async def run(self) -> None:
        """Be a nuisance until told to stop; then wait for what is still owed, connected as long as it is."""
        while True:
            try:
                daemon, end = self._dial(self._rng)
                line = Line(end)
                status = await self._open(line)
            except (OSError, Ended):
                status = 0
            if status == 401:
                return  # the token was revoked, and there is nothing more to say
            if status == 101:
                self._trace.note(self.name, "connected to", daemon)
                await self._one_connection(line)
                self._trace.note(self.name, "disconnected", line.code)
            if self.stopping.is_set() and not self.followers and not self._again:
                return
            await trio.sleep(0.02 + 0.2 * self._rng.random())

    async def _open(self, line: Line) -> int:
        with trio.move_on_after(15):
            return await line.open(self.person.secret)
        line.cut()
        return 0

    async def _one_connection(self, line: Line) -> None:
        self._line, self._attentive, self._asleep_until = line, True, 0.0
        self._line_sent = []
        self._witness.lines.append(self._line_sent)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read, line, nursery.cancel_scope)
            with suppress(Ended):
                await self._act(line)
            nursery.cancel_scope.cancel()
        line.cut()
        self._line = None
        self._routes.clear()
        reactions, self._reactions = self._reactions, {}
        for _, on_lost in reactions.values():
            on_lost()

    @property
    def satisfied(self) -> bool:
        """Whether it is owed nothing but events."""
        return self.finished.is_set() or (self._line is not None and not self._reactions and not self._again)

    # -- reading --------------------------------------------------------------------------------------------------

    async def _read(self, line: Line, scope: trio.CancelScope) -> None:
        try:
            while True:
                if self._asleep_until > trio.current_time():
                    await trio.sleep_until(self._asleep_until)
                self._take(await line.receive())
        except Ended:
            scope.cancel()

    def _take(self, message: Any) -> None:
        for each in message if isinstance(message, list) else [message]:
            if "method" in each:
                if each["method"] == "ledger_subscription":
                    params = each["params"]
                    follower = self._routes.get(params["subscription"])
                    if follower is None:
                        self._trace.fail(f"{self.name} got an event of {params['subscription']}, which it has not")
                    else:
                        self._note_event(follower, params["result"])
                        follower.take(params["result"])
                continue
            reaction = self._reactions.pop(each["id"], None) if each["id"] is not None else None
            if reaction is None:
                if each["id"] is not None:
                    self._trace.fail(f"{self.name} got an answer to {each['id']}, which it did not ask or had answered")
                continue
            error = each.get("error")
            shown = error["data"]["code"] if error else ""
            self._trace.note(self.name, "answer", each["id"], shown)
            reaction[0](each.get("result"), error)

    def _note_event(self, follower: Follower, event: dict[str, Any]) -> None:
        self._trace.note(
            self.name, "event", follower.name, event["type"], event.get("account_id", ""), event.get("version", "")
        )

    # -- writing --------------------------------------------------------------------------------------------------

    def _request(
        self, method: str, params: dict[str, Any], reaction: Reaction, on_lost: Callable[[], None]
    ) -> dict[str, Any]:
        """A message, whose answer is awaited from now on."""
        self._numbers += 1
        self._reactions[self._numbers] = (reaction, on_lost)
        return {"jsonrpc": "2.0", "id": self._numbers, "method": method, "params": params}

    async def _send(self, message: Any) -> None:
        assert self._line is not None
        await self._line.write(frame(msgspec.json.encode(message)))

    async def _ask(self, method: str, params: dict[str, Any], reaction: Reaction, on_lost: Callable[[], None]) -> None:
        await self._send(self._request(method, params, reaction, on_lost))

    async def _act(self, line: Line) -> None:
        rng = self._rng
        for follower in self.followers:
            await self._subscribe(follower)
        again, self._again = self._again, []
        for order, acting in again:
            await self._order(order, acting)
        while not line.over.is_set():
            if self.stopping.is_set():
                self._asleep_until = 0.0
                if not self._reactions and not self.followers:
                    return
                for follower in self.followers:
                    if follower.closed is not None:
                        await self._subscribe(follower)
                await trio.sleep(0.2)
                continue
            await self._one_act(line, rng.random())
            if rng.random() < 0.7:
                await trio.sleep(rng.expovariate(5))

    async def _one_act(self, line: Line, draw: float) -> None:
        rng = self._rng
        if draw < 0.58:
            await self._order(*self._orders.draw(self.person))
        elif draw < 0.62:
            await self._orders_together()
        elif draw < 0.72:
            await self._read_something()
        elif draw < 0.80:
            await self._tend_subscriptions()
        elif draw < 0.82 and self._attentive:
            self._asleep_until = trio.current_time() + rng.choice((0.5, 3.0, 8.0))
            self._attentive = False
        elif draw < 0.84 and self.person.user_id is not None:
            params = {"currency": "EUR"}
            await self._ask("account_open", params, lambda _result, _error: None, lambda: None)
        elif draw < 0.86:
            await self._break_off(line)

    async def _order(self, order: Order, acting: int | None) -> None:
        message, _ = self._money(order, acting)
        await self._send(message)

    async def _orders_together(self) -> None:
        """Several in one message, a batch of JSON-RPC: one unit, in the line of whoever acts first in it."""
        drawn = [self._orders.draw(self.person) for _ in range(self._rng.randrange(2, 5))]
        messages = [self._money(order, None) for order, _ in drawn]
        self._witness.travel_together([sending for _, sendings in messages for sending in sendings])
        await self._send([message for message, _ in messages])

    def _money(self, order: Order, acting: int | None) -> tuple[dict[str, Any], list[Sending]]:
        method, params = order
        prompt = len(self._reactions) < self._store.config.in_flight_max
        sendings = self._witness.sends(method, params, acting, prompt=prompt)
        if acting is not None:
            self._line_sent += sendings
        self._trace.note(self.name, "sends", method, *(sending.transaction_id for sending in sendings))

        def lost() -> None:
            self._witness.lost(sendings)
            if not self.stopping.is_set() and self._rng.random() < 0.7:
                self._again.append((order, acting))

        def answered(result: Any, error: Any) -> None:
            for sending in sendings:
                sending.attentive = self._attentive
            self._witness.answered(sendings, result, error)

        return self._request(method, params, answered, lost), sendings

    async def _read_something(self) -> None:
        rng, sent_at = self._rng, trio.current_time()
        if self.person.user_id is None and self._witness.by_id and rng.random() < 0.5:
            transaction_id = rng.choice(list(self._witness.by_id))

            def found(result: Any, error: Any) -> None:
                if error is None or error["data"]["code"] == "not_found":
                    self._witness.read_transaction(transaction_id, sent_at, result)

            await self._ask("transaction_get", {"transaction_id": transaction_id}, found, lambda: None)
            return
        account = self.person.account_id
        params: dict[str, Any] = {"account_id": account}
        if rng.random() < 0.4:
            params["min_version"] = self._store.ledger.accounts[account].version + rng.randrange(0, 2)

        def read(result: Any, error: Any) -> None:
            if error is None:
                self._witness.read_balance(params, sent_at, result)

        await self._ask("balance_get", params, read, lambda: None)

    # -- subscriptions --------------------------------------------------------------------------------------------

    async def _tend_subscriptions(self) -> None:
        rng = self._rng
        ended = [follower for follower in self.followers if follower.closed is not None]
        if ended:
            await self._subscribe(ended[0])
        elif len(self.followers) < self._wants:
            await self._follow()
        elif self._routes and rng.random() < 0.4:
            subscription, follower = rng.choice(list(self._routes.items()))

            def ended_now(result: Any, error: Any) -> None:
                # Whatever comes for it from here on is answered by `_take`: it has no such subscription.
                if error is None or error["data"]["code"] == "subscription_not_found":
                    self._routes.pop(subscription, None)

            if follower in self.followers:
                self.followers.remove(follower)
            await self._ask("ledger_unsubscribe", {"subscription": subscription}, ended_now, lambda: None)

    async def _follow(self) -> None:
        rng, person = self._rng, self.person
        if person.user_id is None:
            mode = rng.choice(("all", "all", *MODES))
            accounts = sorted({each.account_id for each in rng.sample(self._orders.people, 2)})
        else:
            mode = rng.choice(MODES)
            accounts = [person.account_id]
        whole_user = person.user_id is not None and rng.random() < 0.6
        name = f"{self.name}.{len(self.followers)}"
        follower = Follower(name, mode, person.user_id, None if whole_user else accounts, self._store, self._witness)
        self.followers.append(follower)
        await self._subscribe(follower)

    async def _subscribe(self, follower: Follower) -> None:
        def answered(result: Any, error: Any) -> None:
            if error is None:
                self._routes[result] = follower
            else:
                follower.closed = error["data"]["code"]

        self._trace.note(self.name, "subscribes", follower.name, follower.mode)
        await self._ask("ledger_subscribe", follower.params(), answered, lambda: None)

    # -- bad manners ----------------------------------------------------------------------------------------------

    async def _break_off(self, line: Line) -> None:
        rng = self._rng
        how = rng.choice(("cut", "hang up", "half a frame", "garbage", "no JSON", "binary"))
        self._trace.note(self.name, "breaks off:", how)
        if how == "cut":
            line.cut()
        elif how == "hang up":
            await line.close()
        elif how == "half a frame":
            await line.write(frame(b'{"jsonrpc":"2.0","id":1,"method":"system_ping"}')[: rng.randrange(1, 30)])
            await trio.sleep(rng.random())
            line.cut()
        elif how == "garbage":
            await line.write(rng.randbytes(rng.randrange(1, 60)))
            await trio.sleep(0.5)
            line.cut()
        elif how == "binary":
            await line.write(frame(b"\0\1", 2))
        else:
            await line.write(
                frame(rng.choice((b"{", b"[]", b'{"id":1', b"\xff\xfe", b'{"jsonrpc":"2.0","method":"x"}')))
            )
        if line.over.is_set():
            raise Ended
