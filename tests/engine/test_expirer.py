"""Expirer: what it asks for, what it sends, and when it asks again."""

from __future__ import annotations

from uuid import UUID, uuid5

import pytest
import trio
from structlog.testing import capture_logs

from ledgerd.config import Config
from ledgerd.engine.commands import SYSTEM, Outcome, Posted, Refused, Unit
from ledgerd.engine.expirer import HOLDS_MAX, Expirer
from ledgerd.engine.ports import StorageUnavailable
from ledgerd.engine.states import DueHold
from ledgerd_protocol.errors import ErrorCode
from tests.engine.fake_ledger import FakeLedger


class FakeHolds:
    """Holds by their time, on a fake clock, and the road on which expiries go."""

    def __init__(self) -> None:
        self.due: dict[str, tuple[int, float]] = {}
        self.looks: list[float] = []
        self.units: list[Unit] = []
        self.away = False
        self.refusal: ErrorCode | None = None
        self.answer_s = 0.01
        self._ledger = FakeLedger()
        self._ledger.open(1)

    def place(self, number: int, *, account_id: int = 1, expires_at: float = 0.0) -> str:
        hold_id = str(UUID(int=number))
        self.due[hold_id] = (account_id, expires_at)
        return hold_id

    async def expired_holds(self, limit: int) -> list[DueHold]:
        """See ports.Holds."""
        self.looks.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StorageUnavailable("away")
        over = [(at, hold, account) for hold, (account, at) in self.due.items() if at <= trio.current_time()]
        return [DueHold(hold, account) for _, hold, account in sorted(over)][:limit]

    async def route(self, unit: Unit) -> None:
        """See router.Router."""
        await trio.sleep(self.answer_s)
        self.units.append(unit)
        outcomes: list[Outcome] = []
        for command in unit.commands:
            assert command.refers_to is not None
            if self.refusal is None:
                ended = self.due.pop(command.refers_to, None)
                outcomes.append(Posted(self._ledger.credit(1), replayed=ended is None))
            else:
                outcomes.append(Refused(self.refusal))
        unit.answer(outcomes)


@pytest.fixture
def holds() -> FakeHolds:
    return FakeHolds()


def expirer(holds: FakeHolds) -> Expirer:
    return Expirer(Config(), holds, holds)


async def test_a_due_hold_is_expired_within_the_interval_by_the_daemon_itself(
    autojump_clock: object, holds: FakeHolds, nursery: trio.Nursery
) -> None:
    hold_id = holds.place(1, account_id=7, expires_at=trio.current_time() + 10)
    started = trio.current_time()
    nursery.start_soon(expirer(holds).run)
    await trio.sleep(9.9)
    assert holds.units == []
    await trio.sleep(1.5)
    ((command,),) = [unit.commands for unit in holds.units]
    assert (command.kind, command.refers_to, command.principal) == ("expiry", hold_id, SYSTEM)
    assert command.transaction_id == str(uuid5(UUID(hold_id), "expiry")), "the same at every daemon"
    assert command.debit is not None
    assert command.debit.account_id == 7
    assert command.amount is None
    assert holds.units[0].deadline <= started + 12 + Config().command_ttl_s
    assert holds.due == {}


async def test_holds_of_one_account_go_together_and_those_of_others_on_their_own(
    autojump_clock: object, holds: FakeHolds, nursery: trio.Nursery
) -> None:
    for number in range(1, 7):
        holds.place(number, account_id=number % 2 + 1)
    nursery.start_soon(expirer(holds).run)
    await trio.sleep(0.5)
    assert [len(unit.commands) for unit in holds.units] == [3, 3]
    assert not any(unit.atomic for unit in holds.units)


async def test_while_there_are_more_it_goes_on_without_a_pause(
    autojump_clock: object, holds: FakeHolds, nursery: trio.Nursery
) -> None:
    for number in range(1, 2 * HOLDS_MAX + 11):
        holds.place(number)
    nursery.start_soon(expirer(holds).run)
    await trio.sleep(0.5)
    assert holds.due == {}
    assert [len(unit.commands) for unit in holds.units] == [HOLDS_MAX, HOLDS_MAX, 10]


@pytest.mark.parametrize("code", [ErrorCode.HOLD_NOT_ACTIVE, ErrorCode.UNAVAILABLE, ErrorCode.ACCOUNT_CLOSED])
async def test_what_is_refused_is_tried_again_with_the_next_interval_and_not_sooner(
    autojump_clock: object, holds: FakeHolds, nursery: trio.Nursery, code: ErrorCode
) -> None:
    for number in range(1, HOLDS_MAX + 1):
        holds.place(number)
    holds.refusal = code
    with capture_logs() as logs:
        nursery.start_soon(expirer(holds).run)
        await trio.sleep(3.5)
    assert 3 <= len(holds.looks) <= 4
    errors = [entry for entry in logs if entry["log_level"] == "error"]
    assert bool(errors) is (code == ErrorCode.ACCOUNT_CLOSED), "only what should not happen is an error"


async def test_a_replay_counts_as_progress_because_another_daemon_was_first(
    autojump_clock: object, holds: FakeHolds, nursery: trio.Nursery
) -> None:
    other = FakeHolds()
    other.due = holds.due
    holds.answer_s = 0.02
    for number in range(1, 2 * HOLDS_MAX):
        holds.place(number)
    for each in (holds, other):
        nursery.start_soon(expirer(each).run)
    with capture_logs() as logs:
        await trio.sleep(0.9)
    assert holds.due == {}
    assert [entry for entry in logs if entry["log_level"] != "info"] == []


async def test_a_database_that_is_away_is_asked_again(
    autojump_clock: object, holds: FakeHolds, nursery: trio.Nursery
) -> None:
    holds.place(1)
    holds.away = True
    nursery.start_soon(expirer(holds).run)
    await trio.sleep(5.5)
    assert len(holds.looks) == 6
    holds.away = False
    await trio.sleep(1)
    assert holds.due == {}


async def test_once_stopped_it_sends_nothing_more_and_ends(autojump_clock: object, holds: FakeHolds) -> None:
    for number in range(1, 3 * HOLDS_MAX):
        holds.place(number)
    holds.answer_s = 5.0
    worker = expirer(holds)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.run)
        await trio.sleep(1)
        worker.stop()
    assert len(holds.units) == 1, "what was on its way is waited for"
