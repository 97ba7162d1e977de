"""Ends holds whose time is over, as ordinary commands of the daemon itself.

Every daemon does this, without asking the others. The id of an expiry follows from the hold's, so two that meet at one
hold post one transaction, and the other is answered from the record. Whoever has seen the hold can work that id out
and use it first: then the expiry gets an id that nobody can know. Versions, pushes and what happens when a connection
breaks are those of any command.

Lives as long as a database generation.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol
from uuid import UUID, uuid4, uuid5

import structlog
import trio
from uuid_utils import uuid7

from ledgerd.config import Config
from ledgerd.engine.commands import SYSTEM, AccountRef, Command, Outcome, Posted, Refused, Unit
from ledgerd.engine.ports import Holds, StorageUnavailable
from ledgerd.engine.states import DueHold
from ledgerd.metrics import HOLDS_EXPIRED
from ledgerd_protocol.errors import ErrorCode

HOLDS_MAX = 500
"""Asked for at once; with as many found there are probably more."""

_PASSING = frozenset(
    {
        ErrorCode.HOLD_NOT_ACTIVE,  # another daemon, or a capture that began in time
        ErrorCode.OVERLOADED,
        ErrorCode.TIMEOUT,
        ErrorCode.UNAVAILABLE,
        ErrorCode.SHUTTING_DOWN,
    }
)
"""Why an expiry may be refused without anything being wrong: it is tried again while the hold is there."""

_TAKEN = frozenset({ErrorCode.TRANSACTION_ID_REUSED, ErrorCode.TRANSACTION_ID_CANCELLED})
"""Somebody has used the id of an expiry for something else, or cancelled it."""

log = structlog.get_logger(__name__)


class Router(Protocol):
    """Takes units to where they are executed."""

    async def route(self, unit: Unit) -> None:
        """Hand over; the unit is answered later."""


class Expirer:
    """Looks for due holds once per ``expiry_interval_s`` and sends an expiry for each."""

    def __init__(self, config: Config, holds: Holds, router: Router) -> None:
        self._config = config
        self._holds = holds
        self._router = router
        self._stopped = False
        self._taken: set[str] = set()  # holds whose expiry has to have another id

    def stop(self) -> None:
        """Send nothing more: the daemon is stopping."""
        self._stopped = True

    async def run(self) -> None:
        """Work until stopped. While the database does not answer, so do those who wait for it; nothing is raised."""
        while not self._stopped:
            try:
                more = await self._look()
            except StorageUnavailable:
                more = False
            if not more:
                await trio.sleep(self._config.expiry_interval_s)

    async def _look(self) -> bool:
        """Expire what is due; whether to look again at once. Raises StorageUnavailable."""
        due = await self._holds.expired_holds(HOLDS_MAX)
        self._taken.intersection_update([hold.hold_id for hold in due])
        if not due or self._stopped:
            return False
        expired = await self._expire(due)
        # Without any progress asking again at once would only ask for the same.
        return expired > 0 and len(due) == HOLDS_MAX

    async def _expire(self, due: list[DueHold]) -> int:
        """Send an expiry for each hold, and wait for the answers; how many holds are ended by them."""
        by_account: dict[int, list[DueHold]] = {}
        for hold in due:
            by_account.setdefault(hold.account_id, []).append(hold)
        ended = 0
        waiting = len(by_account)
        answered = trio.Event()

        def note(commands: list[Command], outcomes: list[Outcome]) -> None:
            nonlocal ended, waiting
            ended += self._count(commands, outcomes)
            waiting -= 1
            if not waiting:
                answered.set()

        for holds in by_account.values():
            now = trio.current_time()
            commands = [_expiry(hold, self._id_of(hold), now) for hold in holds]
            unit = Unit(commands, partial(note, commands), deadline=now + self._config.command_ttl_s)
            await self._router.route(unit)
        await answered.wait()
        return ended

    def _id_of(self, hold: DueHold) -> str:
        return str(uuid4() if hold.hold_id in self._taken else uuid5(UUID(hold.hold_id), "expiry"))

    def _count(self, commands: list[Command], outcomes: list[Outcome]) -> int:
        """How many of the holds are ended."""
        posted = [outcome for outcome in outcomes if isinstance(outcome, Posted)]
        fresh = sum(not outcome.replayed for outcome in posted)
        HOLDS_EXPIRED.inc(fresh)
        if fresh:
            acting = commands[0].debit
            log.info("holds_expired", holds=fresh, account_id=None if acting is None else acting.account_id)
        for command, outcome in zip(commands, outcomes, strict=True):
            if not isinstance(outcome, Refused) or outcome.code in _PASSING:
                continue
            assert command.refers_to is not None
            if outcome.code in _TAKEN and command.refers_to not in self._taken:
                self._taken.add(command.refers_to)
                log.warning("expiry_id_taken", hold_id=command.refers_to, transaction_id=command.transaction_id)
            else:
                log.error("expiry_refused", hold_id=command.refers_to, code=outcome.code.text)
        return len(posted)


def _expiry(hold: DueHold, transaction_id: str, now: float) -> Command:
    return Command(
        kind="expiry",
        principal=SYSTEM,
        transaction_id=transaction_id,
        attempt_id=str(uuid7()),
        debit=AccountRef(account_id=hold.account_id),
        credit=None,
        amount=None,
        currency=None,
        reference=None,
        reason=None,
        metadata=None,
        arrived_at=now,
        refers_to=hold.hold_id,
    )
