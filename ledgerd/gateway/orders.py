"""The order of one connection's money commands, from their arrival to the router.

A command reaches the router in the call that begins it, while nothing that arrived earlier waits. Otherwise (the facts
of an account are not in memory, or a batch is under way that moves money between its reads) it takes its turn, and one
task per connection, there only while turns wait, sends them on one by one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import trio

from ledgerd.engine.commands import REFERRING, AccountFacts, AccountRef, Command, Outcome, Refused, Unit
from ledgerd.engine.ports import StorageUnavailable
from ledgerd.gateway.access import STRANGE_ACCOUNT, owns, owns_ref
from ledgerd.gateway.call import Desk, Plan
from ledgerd_protocol.errors import ErrorCode

Done = Callable[[list[Outcome]], None]
"""Called once with the outcomes, in the order of the commands; perhaps before `Orders.place` returns."""


class Turn:
    """The place of a whole batch in the order: come when everything earlier is routed; others wait until it is over."""

    __slots__ = ("come", "over")

    def __init__(self) -> None:
        self.come = trio.Event()
        self.over = trio.Event()


class _Order:
    """A plan on its way. ``unit`` is there once every command is judged."""

    __slots__ = ("done", "plan", "unit")

    def __init__(self, plan: Plan, done: Done) -> None:
        self.plan = plan
        self.done = done
        self.unit: Unit | None = None


class Orders:
    """Sends plans to the router in the order in which they are placed."""

    __slots__ = ("_desk", "_dispatching", "_start_soon", "_turns")

    def __init__(self, desk: Desk, start_soon: Callable[..., Any]) -> None:
        self._desk = desk
        self._start_soon = start_soon
        self._turns: deque[_Order | Turn] = deque()
        self._dispatching = False

    def place(self, plan: Plan, done: Done) -> None:
        """Send the plan to the router, now or in its turn."""
        order = _Order(plan, done)
        if self._dispatching or not self._place_now(order):
            self._wait(order)

    def hold(self) -> Turn:
        """Take a turn for a batch that places its commands by `place_in_turn`. It must set ``over``."""
        turn = Turn()
        self._wait(turn)
        return turn

    async def place_in_turn(self, plan: Plan, done: Done) -> None:
        """Send the plan of a batch whose turn has come. Returns when the router has it."""
        order = _Order(plan, done)
        if not self._place_now(order):
            await self._place(order)

    # -- the turns ----------------------------------------------------------------------------------------------------

    def _wait(self, turn: _Order | Turn) -> None:
        self._turns.append(turn)
        if not self._dispatching:
            self._dispatching = True
            self._start_soon(self._dispatch)

    async def _dispatch(self) -> None:
        turns = self._turns
        while turns:
            turn = turns.popleft()
            if isinstance(turn, Turn):
                turn.come.set()
                await turn.over.wait()
            elif not self._place_now(turn):
                await self._place(turn)
        self._dispatching = False

    # -- judging and routing ------------------------------------------------------------------------------------------

    def _place_now(self, order: _Order) -> bool:
        """Route the order if everything it takes is in memory."""
        if order.plan.prepare is not None or (order.unit is None and not self._judge(order, {})):
            return False
        return order.unit is None or self._desk.router.try_route(order.unit)

    async def _place(self, order: _Order) -> None:
        """Route the order; asks the database for what is not in memory."""
        if order.unit is None:
            try:
                if order.plan.prepare is not None:
                    await order.plan.prepare(self._desk)
            except StorageUnavailable:
                order.done([Refused(code=ErrorCode.UNAVAILABLE) for _ in order.plan.commands])
                return
            refs = [self._named(command) for command in order.plan.commands if self._takes_facts(command)]
            try:
                found = await self._desk.directory.find(refs)
            except StorageUnavailable:
                order.done([Refused(code=ErrorCode.UNAVAILABLE) for _ in order.plan.commands])
                return
            self._judge(order, dict(zip(refs, found, strict=True)))
        if order.unit is not None:
            await self._desk.router.route(order.unit)

    @staticmethod
    def _takes_facts(command: Command) -> bool:
        return command.kind not in REFERRING and owns_ref(command.principal, command.acting) is None

    def _named(self, command: Command) -> tuple[AccountRef, str]:
        return command.acting, command.currency or self._desk.config.default_currency

    def _judge(self, order: _Order, found: dict[tuple[AccountRef, str], AccountFacts | None]) -> bool:
        """Refuse what acts for an account that is not the caller's, and make the unit of the rest.

        What refers to a transaction is left to the kernel: to it a stranger's transaction is one that does not exist,
        and one that is still on its way is not known here.

        Answers False when that takes facts that are neither in memory nor in ``found``. Without a unit afterwards the
        order is settled.
        """
        plan = order.plan
        refused = plan.refused
        for index, command in enumerate(plan.commands):
            if command.kind in REFERRING:
                continue
            own = owns_ref(command.principal, command.acting)
            if own is None:
                named = self._named(command)
                facts = self._desk.directory.known(*named)
                if facts is None and named not in found:
                    return False
                own = owns(command.principal, facts or found.get(named))
            if not own and index not in refused:
                refused = {**refused, index: STRANGE_ACCOUNT}
        self._make_unit(order, refused)
        return True

    def _make_unit(self, order: _Order, refused: dict[int, Refused]) -> None:
        plan = order.plan
        if not plan.commands:
            order.done([])
            return
        if refused and (plan.atomic or len(refused) == len(plan.commands)):
            first = min(refused)
            if plan.atomic:
                blamed: Outcome = msgspec.structs.replace(refused[first], index=first)
                order.done([blamed] * len(plan.commands))
            else:
                order.done([refused[index] for index in range(len(plan.commands))])
            return
        admitted = [command for index, command in enumerate(plan.commands) if index not in refused]
        order.unit = Unit(
            admitted,
            partial(_merge, refused, order.done) if refused else order.done,
            deadline=admitted[0].arrived_at + self._desk.config.command_ttl_s,
            atomic=plan.atomic,
            batch_id=plan.batch_id,
        )


def _merge(refused: dict[int, Refused], done: Done, outcomes: list[Outcome]) -> None:
    """Put what was refused before the router back between the outcomes."""
    routed = iter(outcomes)
    done([refused[index] if index in refused else next(routed) for index in range(len(refused) + len(outcomes))])
