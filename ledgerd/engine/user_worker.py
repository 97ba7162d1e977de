"""The worker of one acting user: keeps the user's commands in the order in which they arrived.

It takes everything that waits as one turn, submits it, and waits until all of it is answered before it takes more. A
bug met on the way fails the units in hand and nothing else: the worker starts again with what arrived behind them.
"""

from __future__ import annotations

from collections import deque

import structlog
import trio

from ledgerd.config import Config
from ledgerd.engine.commands import Outcome, Unit
from ledgerd.engine.committer import Committer
from ledgerd.metrics import USER_WORKERS, WORKER_CRASHES
from ledgerd_protocol.errors import ErrorCode

log = structlog.get_logger(__name__)


class UserWorker:
    """One task per active user. ``inbox`` is what waits; ``idle_since`` is trio time, meaningful while `idle`."""

    __slots__ = ("_bell", "_committer", "_config", "_in_hand", "_rested", "_retired", "idle_since", "inbox")

    def __init__(self, config: Config, committer: Committer) -> None:
        self.inbox: deque[Unit] = deque()
        self.idle_since = 0.0
        self._config = config
        self._committer = committer
        self._in_hand: list[Unit] = []
        self._retired = False
        self._bell = trio.lowlevel.ParkingLot()  # the task itself, while it has nothing to do
        self._rested = trio.lowlevel.ParkingLot()  # whoever waits until it has nothing to do

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is in hand."""
        return not self.inbox and not self._in_hand

    def submit(self, unit: Unit) -> None:
        """Take a unit in, or refuse it at once when too many wait already."""
        if len(self.inbox) >= self._config.user_inbox_max:
            unit.refuse(ErrorCode.OVERLOADED)
            return
        self.inbox.append(unit)
        self._bell.unpark()

    def retire(self) -> None:
        """Let the task end. Only for an idle worker that gets no more units."""
        self._retired = True
        self._bell.unpark()

    async def wait_idle(self) -> None:
        """Return once the worker is idle."""
        while not self.idle:
            await self._rested.park()

    async def run(self) -> None:
        """Work until retired. A bug fails the units in hand; with none in hand it is not theirs, and goes upwards."""
        USER_WORKERS.inc()
        try:
            while True:
                try:
                    await self._serve()
                    return
                except Exception:
                    WORKER_CRASHES.inc()
                    if not self._in_hand:
                        raise
                    log.exception("user_worker_crashed", units=len(self._in_hand), **self._in_hand[0].ids())
                    self._drop(self._in_hand, ErrorCode.INTERNAL_ERROR, applied=None)
        finally:
            USER_WORKERS.dec()
            # Cancelled: the daemon stops and did not wait. What is in hand may be committed yet.
            self._drop(self._in_hand, ErrorCode.SHUTTING_DOWN, applied=None)
            self._drop(self.inbox, ErrorCode.SHUTTING_DOWN, applied=False)

    async def _serve(self) -> None:
        while not self._retired:
            if self.inbox:
                self._take()
                await self._work()
                self._in_hand.clear()
            else:
                self.idle_since = trio.current_time()
                self._rested.unpark_all()
                await self._bell.park()

    def _take(self) -> None:
        """Move units from the inbox into the hand: a large one alone, else as many as one call may carry."""
        inbox, hand, room = self.inbox, self._in_hand, self._config.call_commands_max
        while inbox:
            unit = inbox[0]
            room -= len(unit.commands)
            if hand and (room < 0 or self._large(unit)):
                return
            hand.append(inbox.popleft())
            if self._large(unit):
                return

    async def _work(self) -> None:
        first = self._in_hand[0]
        if self._large(first):
            # One after the other: a later part may refer to what an earlier one posted.
            for part in split(first, self._config.unit_accounts_max, self._config.call_commands_max):
                await self._committer.commit([part])
            return
        await self._committer.commit(self._in_hand)

    def _large(self, unit: Unit) -> bool:
        config = self._config
        too_large = len(unit.accounts) > config.unit_accounts_max or len(unit.commands) > config.call_commands_max
        return too_large and not unit.atomic

    def _drop(self, units: list[Unit] | deque[Unit], code: ErrorCode, *, applied: bool | None) -> None:
        dropped = list(units)
        units.clear()
        for unit in dropped:
            try:
                unit.refuse(code, applied=applied)
            except Exception:
                log.exception("answer_failed", **unit.ids())


def split(unit: Unit, accounts_max: int, commands_max: int) -> list[Unit]:
    """Parts of a unit whose members are independent, small enough for one call each; together they answer it."""
    runs: list[list[int]] = []
    accounts: set[int] = set()
    for index, command in enumerate(unit.commands):
        named = {account for account in (command.debit_account, command.credit_account) if account}
        if not runs or len(accounts | named) > accounts_max or len(runs[-1]) == commands_max:
            runs.append([])
            accounts = set()
        runs[-1].append(index)
        accounts |= named
    outcomes: list[Outcome] = []
    parts: list[Unit] = []

    def collect(answers: list[Outcome]) -> None:
        # The parts are answered in order, because each is committed before the next is submitted.
        outcomes.extend(answers)
        if len(outcomes) == len(unit.commands):
            unit.answer(outcomes)

    for run in runs:
        part = Unit([unit.commands[index] for index in run], collect, deadline=unit.deadline, batch_id=unit.batch_id)
        part.gather_accounts()
        parts.append(part)
    return parts
