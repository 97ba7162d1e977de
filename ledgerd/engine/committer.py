"""Many users, one commit: a few lanes that take what waits and send it to the kernel.

A unit is in one of three places, and this file is about the moves between them:

- it *waits*, in the order of arrival, until a lane is free and nothing that must go before it is in its way;
- it is *in flight*: part of the one call its lane is making;
- it is *recovering*: the call it was part of was lost with its connection, and perhaps committed. The same call goes
  again, with the same ids, before anything that waits; the kernel answers with what is true.

Nobody waits for a timer: an idle lane takes the first unit at once, and what arrives meanwhile goes together in the
next call. Two things are kept in order: the units of one account, because a unit that cannot go yet bars its accounts
to all that arrived later; and the units of one turn (what one user's worker submitted), for which the same holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import structlog
import trio

from ledgerd.config import Config
from ledgerd.engine.commands import Outcome, Posted, Record, Unit
from ledgerd.engine.ports import CallRefused, Lane, StorageUnavailable
from ledgerd.masking import error_text
from ledgerd.metrics import (
    CALL_COMMANDS,
    CALLS,
    CALLS_LOST,
    FEED_LAG_SECONDS,
    LANES,
    LANES_BUSY,
    LOOP_LAG_SECONDS,
    OLDEST_WAIT_SECONDS,
    UNITS_WAITING,
    UNITS_WAITING_PEAK,
)
from ledgerd_protocol.errors import ErrorCode

log = structlog.get_logger(__name__)

PASSED_OVER_MAX = 2
"""A unit that was passed over this often goes next and alone. Twice lets a hot account's calls overlap with others' and
still bounds the wait of a unit that needs many accounts at once."""

SWEEP_S = 0.25
"""Between two looks for units that waited too long; small beside the second that 'unavailable' may be late."""

_REFUSED_HINT = "A bug, or a database that was changed by hand: `ledgerd verify` looks at what is stored."

_OK = CALLS.labels("ok")
_REFUSED = CALLS.labels("refused")
_UNAVAILABLE = CALLS.labels("unavailable")


class Turn:
    """Units that one user's worker submitted together: sent in order, by one lane at a time."""

    __slots__ = ("busy", "done", "left")

    def __init__(self, left: int) -> None:
        self.left = left
        self.busy = False
        self.done = trio.Event()


class Call:
    """Units that are sent together. ``lost`` once a connection died under it, ``unknown`` if it may be committed."""

    __slots__ = ("accounts", "lost", "sent_at", "units", "unknown")

    def __init__(self, units: list[Unit], *, lost: bool = False, unknown: bool = False) -> None:
        self.units = units
        self.accounts: set[int] = set().union(*(unit.accounts for unit in units))
        self.lost = lost
        self.unknown = unknown
        self.sent_at = 0.0


class _Bars:
    """What a lane looking for work may not touch: accounts and turns in flight, and those of units before in line."""

    __slots__ = ("accounts", "busy", "turns")

    def __init__(self, busy: set[int]) -> None:
        self.busy = busy
        self.accounts: set[int] = set()
        self.turns: set[Turn] = set()

    def stop(self, unit: Unit) -> bool:
        turn = _turn(unit)
        return (
            turn.busy
            or not self.busy.isdisjoint(unit.accounts)
            or turn in self.turns
            or not self.accounts.isdisjoint(unit.accounts)
        )

    def add(self, unit: Unit) -> None:
        self.accounts |= unit.accounts
        self.turns.add(_turn(unit))


def _turn(unit: Unit) -> Turn:
    assert isinstance(unit.turn, Turn)
    return unit.turn


class Committer:
    """Brings units to the lanes and outcomes back."""

    def __init__(self, config: Config, publish: Callable[[Record], None]) -> None:
        """``publish`` is called, after the answers, with every transaction that a call has just committed."""
        self._config = config
        self._publish = publish
        self._waiting: deque[Unit] = deque()
        self._in_flight: list[Call] = []
        self._recovering: deque[Call] = deque()
        self._busy: set[int] = set()  # accounts of the calls in flight
        self._lanes = 0
        self._idle = trio.lowlevel.ParkingLot()
        self._woken = False  # an idle lane has been called and has not looked yet
        self._waiting_peak = 0
        self._elsewhere: Callable[[], Iterable[Unit]] = tuple

    # -- the side of the user workers ----------------------------------------------------------------------------

    async def commit(self, units: list[Unit]) -> None:
        """Submit units in order; returns when each is answered. Their accounts and facts are filled in already."""
        turn = Turn(len(units))
        for unit in units:
            unit.turn = turn
        self._waiting.extend(units)
        if len(self._waiting) > self._waiting_peak:
            self._waiting_peak = len(self._waiting)
            UNITS_WAITING_PEAK.set(self._waiting_peak)
        # The first one decides: the others may not go before it.
        if self._busy.isdisjoint(units[0].accounts):
            self._wake()
        await turn.done.wait()

    def watch(self, elsewhere: Callable[[], Iterable[Unit]]) -> None:
        """Have the sweeper also look at units that wait before they reach the committer, in the workers' inboxes."""
        self._elsewhere = elsewhere

    def gives_up_on(self, unit: Unit) -> bool:
        """Whether it has waited too long already, for a database that is away: who comes late waits for no sweep."""
        long_ago = trio.current_time() - self._config.unavailable_after_s
        return unit.commands[0].arrived_at <= long_ago and self._is_away(long_ago)

    # -- the side of the lanes -----------------------------------------------------------------------------------

    async def run_lane(self, lane: Lane) -> None:
        """Make calls on one connection until it is lost. Raises StorageUnavailable; its call is kept for the next."""
        self._lanes += 1
        try:
            while True:
                call = self._take()
                if call is None:
                    await self._idle.park()
                else:
                    await self._send(lane, call)
        finally:
            self._lanes -= 1
            # If it was called and did not come to look, another one must.
            self._woken = False
            self._wake()

    def _wake(self) -> None:
        """Call one idle lane, unless one is on its way."""
        if self._idle and not self._woken:
            self._woken = True
            self._idle.unpark()

    async def _send(self, lane: Lane, call: Call) -> None:
        outcomes = await self._post(lane, call)
        if outcomes is None:
            return
        if self._waiting and self._idle:
            # Answering takes as long as Postgres needs for the next call: let an idle lane send that first. Its
            # answer cannot overtake ours, because it comes through the event loop once more and we do not.
            self._wake()
            await trio.lowlevel.cancel_shielded_checkpoint()
        self._finish(call, outcomes)

    async def _post(self, lane: Lane, call: Call) -> list[list[Outcome]] | None:
        """Make the call; what came of it, or None if it was refused as a whole and its units are dealt with."""
        self._begin(call)
        try:
            outcomes = await lane.post(call.units, resent=call.lost)
            assert len(outcomes) == len(call.units)
        except StorageUnavailable as error:
            _UNAVAILABLE.inc()
            self._recover(call, unknown=error.applied is None)
            raise
        except CallRefused as error:
            _REFUSED.inc()
            self._isolate(call, error)
            return None
        except Exception:
            # A bug between here and the database. It ends the generation; nobody may be left waiting for it.
            for unit in call.units:
                self._refuse(unit, ErrorCode.INTERNAL_ERROR, applied=None)
            raise
        except BaseException:
            # Cancelled: the generation ends because of another lane, and this call may be committed all the same.
            self._recover(call, unknown=True)
            raise
        finally:
            self._end(call)
        _OK.inc()
        took_s = trio.current_time() - call.sent_at
        if took_s > self._config.slow_call_s:
            log.warning("slow_call", seconds=round(took_s, 3), units=len(call.units), **call.units[0].ids())
        return outcomes

    def _begin(self, call: Call) -> None:
        call.sent_at = trio.current_time()
        self._in_flight.append(call)
        self._busy |= call.accounts
        for unit in call.units:
            _turn(unit).busy = True
        CALL_COMMANDS.observe(sum(len(unit.commands) for unit in call.units))

    def _end(self, call: Call) -> None:
        self._in_flight.remove(call)
        self._busy -= call.accounts
        for unit in call.units:
            _turn(unit).busy = False

    def _recover(self, call: Call, *, unknown: bool) -> None:
        """Keep a lost call to be sent again. What was unknown once stays unknown until the database answers."""
        call.lost = True
        call.unknown = call.unknown or unknown
        # In front: whatever stands there and shares an account or a turn with it had to wait for it.
        self._recovering.appendleft(call)
        CALLS_LOST.inc()
        log.warning("call_lost", unknown=unknown, units=len(call.units), **call.units[0].ids())

    def _isolate(self, call: Call, error: CallRefused) -> None:
        """Find the unit for which the database refused the whole call: each goes alone."""
        if len(call.units) > 1:
            alone = [Call([unit], lost=call.lost, unknown=call.unknown) for unit in call.units]
            self._recovering.extendleft(reversed(alone))
            return
        unit = call.units[0]
        log.error("call_refused", error=error_text(error), hint=_REFUSED_HINT, **unit.ids())
        self._refuse(unit, ErrorCode.INTERNAL_ERROR, applied=None if call.unknown else False)

    def _finish(self, call: Call, outcomes: list[list[Outcome]]) -> None:
        """Answer everybody, then tell the subscribers: the reply to a command comes before its event."""
        committed_at = trio.current_time()
        if call.lost:
            log.info("call_recovered", units=len(call.units), **call.units[0].ids())
        for unit, answers in zip(call.units, outcomes, strict=True):
            self._answer(unit, answers)
        for record in _committed(outcomes, lost=call.lost):
            try:
                self._publish(record)
            except Exception:
                log.exception("publish_failed", **record.ids())
        FEED_LAG_SECONDS.observe(trio.current_time() - committed_at)

    # -- choosing what to send next ------------------------------------------------------------------------------

    def _take(self) -> Call | None:
        """What a free lane sends next, or None if nothing can go now."""
        self._woken = False
        now = trio.current_time()
        bars = _Bars(self._busy)
        call = self._take_recovering(bars, now)
        if call is not None:
            self._wake()  # the other lanes may have something to do beside it
            return call
        return self._take_waiting(bars, now)

    def _take_recovering(self, bars: _Bars, now: float) -> Call | None:
        """The first lost call whose accounts are free; the others bar theirs to all that waits."""
        for call in list(self._recovering):
            call.units = [unit for unit in call.units if not self._overdue(unit, now, call)]
            if not call.units:
                self._recovering.remove(call)
            elif any(map(bars.stop, call.units)):
                for unit in call.units:
                    bars.add(unit)
            else:
                self._recovering.remove(call)
                return call
        return None

    def _take_waiting(self, bars: _Bars, now: float) -> Call | None:
        """Units from the front of the line, as many as one call may carry, leaving those that something bars."""
        config, waiting = self._config, self._waiting
        taken: list[Unit] = []
        passed: list[Unit] = []
        accounts: set[int] = set()
        commands = 0
        overtaken = more = False
        while waiting and len(passed) < config.call_commands_max:
            unit = waiting[0]
            if self._overdue(unit, now):
                waiting.popleft()
                continue
            starved = unit.passed_over >= PASSED_OVER_MAX
            if bars.stop(unit):
                if starved:
                    break  # everybody waits for it
                passed.append(waiting.popleft())
                bars.add(unit)
                continue
            commands += len(unit.commands)
            accounts |= unit.accounts
            full = commands > config.call_commands_max or len(accounts) > config.call_accounts_max
            if taken and (full or starved):
                more = True
                break
            taken.append(waiting.popleft())
            overtaken = overtaken or bool(passed)
            if starved:
                more = True
                break
        waiting.extendleft(reversed(passed))
        if overtaken:
            # Only the first of those that were left grows impatient. Were it all of them, a hot account's units would
            # each go alone in the end, and batching would stop just where it is needed most.
            passed[0].passed_over += 1
        if more:
            self._wake()
        return Call(taken) if taken else None

    def _overdue(self, unit: Unit, now: float, call: Call | None = None) -> bool:
        """Whether the unit is answered, if need be now because its deadline has passed, and must not be sent."""
        if unit.answered:
            self._settle(unit)
            return True
        unknown = call is not None and call.unknown
        # A call must be over by the deadline, not begin by it. One that may be committed can only be found out about.
        if now <= (unit.deadline if unknown else unit.deadline - self._config.call_reserve_s):
            return False
        if call is not None and call.lost:
            self._refuse(unit, ErrorCode.UNAVAILABLE, applied=None if unknown else False)
        else:
            self._refuse(unit, ErrorCode.TIMEOUT)
        return True

    # -- not waiting for ever ------------------------------------------------------------------------------------

    async def run_sweeper(self) -> None:
        """Answer units that waited too long, above all while no lane runs. Outlives the database's generations."""
        while True:
            due = trio.current_time() + SWEEP_S
            await trio.sleep_until(due)
            now = trio.current_time()
            LOOP_LAG_SECONDS.observe(now - due)
            self._sweep(now)
            self._measure(now)

    def _measure(self, now: float) -> None:
        """What an operator looks at when commands are slow: who waits, since when, and whether the lanes work."""
        UNITS_WAITING.set(len(self._waiting))
        LANES.set(self._lanes)
        LANES_BUSY.set(len(self._in_flight))
        calls = [*self._in_flight, *self._recovering]
        not_answered = chain(self._waiting, *(call.units for call in calls), self._elsewhere())
        oldest = min((unit.commands[0].arrived_at for unit in not_answered if not unit.answered), default=now)
        OLDEST_WAIT_SECONDS.set(now - oldest)

    def _is_away(self, long_ago: float) -> bool:
        """A database that hangs is away as much as one that is gone."""
        return len(self._in_flight) == self._lanes and all(call.sent_at <= long_ago for call in self._in_flight)

    def _sweep(self, now: float) -> None:
        long_ago = now - self._config.unavailable_after_s
        away = self._is_away(long_ago)

        def drop(unit: Unit, call: Call | None = None) -> bool:
            if away and unit.commands[0].arrived_at <= long_ago and not (call is not None and call.unknown):
                self._tell(unit, ErrorCode.UNAVAILABLE, applied=False)
            return self._overdue(unit, now, call)

        waiting = len(self._waiting)
        self._waiting = deque(unit for unit in self._waiting if not drop(unit))
        for call in list(self._recovering):
            call.units = [unit for unit in call.units if not drop(unit, call)]
            if not call.units:
                self._recovering.remove(call)
        if away:
            for unit in list(self._elsewhere()):  # who is told may send the next command at once
                if unit.commands[0].arrived_at <= long_ago:
                    self._tell(unit, ErrorCode.UNAVAILABLE, applied=False)
        if len(self._waiting) < waiting:
            self._wake()  # what was dropped may have barred others

    # -- answering -----------------------------------------------------------------------------------------------

    def _answer(self, unit: Unit, outcomes: list[Outcome]) -> None:
        try:
            unit.answer(outcomes)
        except Exception:
            log.exception("answer_failed", **unit.ids())
        self._settle(unit)

    def _refuse(self, unit: Unit, code: ErrorCode, *, applied: bool | None = False) -> None:
        self._tell(unit, code, applied=applied)
        self._settle(unit)

    def _tell(self, unit: Unit, code: ErrorCode, *, applied: bool | None) -> None:
        # Who is told can fail: it must not take the lane or the sweeper along.
        try:
            unit.refuse(code, applied=applied)
        except Exception:
            log.exception("answer_failed", **unit.ids())

    def _settle(self, unit: Unit) -> None:
        """The unit has left the committer; the last one of its turn lets the worker go on."""
        turn = _turn(unit)
        turn.left -= 1
        if turn.left == 0:
            turn.done.set()


def _committed(outcomes: list[list[Outcome]], *, lost: bool) -> Iterator[Record]:
    """The transactions that the call committed. After a lost call also those it had committed before it was lost:
    they were never published, and a subscriber that has seen them knows it by their versions.
    """
    for answers in outcomes:
        for outcome in answers:
            if isinstance(outcome, Posted) and (lost or not outcome.replayed):
                yield outcome.record
