"""Collector: when it asks, what it tells of what was collected, and twelve weeks on a clock that jumps."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from ledgerd.config import Config
from ledgerd.engine.collector import PAYMENTS_MAX, Collector
from ledgerd.engine.commands import ActorInfo, Record, Side
from ledgerd.engine.ports import CallRefused, StorageUnavailable
from ledgerd.engine.states import Collected
from tests.advance_model import Advance

DAY_S = 86_400
WEEK_S = 7 * DAY_S
HOUR_S = 3_600.0
ACCOUNT = 7


class Bank:
    """One account and its advance, by the rules in plain Python, on Trio's clock."""

    def __init__(self, principal: int = 10_000) -> None:
        self.balance = principal
        self.advance = Advance(principal, interval=WEEK_S, now=trio.current_time())
        self.version = 1
        self.asked_at: list[float] = []
        self.troubles: list[Exception] = []
        self.more = False

    async def collect_due(self, limit: int) -> Collected:
        assert limit == PAYMENTS_MAX
        await trio.lowlevel.checkpoint()
        self.asked_at.append(trio.current_time())
        if self.troubles:
            raise self.troubles.pop()
        events = len(self.advance.events)
        records = [self._record(amount) for amount in self.advance.collect(trio.current_time(), self._take)]
        failed = sum(event.type == "failed" for event in self.advance.events[events:])
        more, self.more = self.more, False
        return Collected(records, failed, ["an advance"] if records or failed else [], more)

    def _take(self, amount: int) -> bool:
        if self.balance < amount:
            return False
        self.balance -= amount
        return True

    def _record(self, amount: int) -> Record:
        self.version += 1
        balance = self.balance
        side = Side(ACCOUNT, 1, "debit", self.version, balance, 0, balance, -amount, 0)
        return Record(
            transaction_id=f"payment {self.version}",
            kind="advance_payment",
            status="posted",
            amount=amount,
            currency="USD",
            scale=2,
            debit_account=ACCOUNT,
            credit_account=None,
            sides=(side,),
            reference=None,
            reason=None,
            metadata=None,
            created_at="",
            actor=ActorInfo(0, None, ()),
        )


async def test_twelve_weeks_with_a_failure_in_the_third_and_one_in_the_twelfth(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    bank = Bank()
    told: list[tuple[int, int]] = []
    began = trio.current_time()

    def publish(record: Record) -> None:
        told.append((round((trio.current_time() - began) / WEEK_S), record.amount))

    nursery.start_soon(Collector(Config(collect_interval_s=HOUR_S), bank, publish).run)
    bank.balance = 834 + 834
    for week in range(1, 14):
        await trio.sleep_until(began + week * WEEK_S + 2 * HOUR_S)
        if week == 3:
            bank.balance += sum([834] * 2 + [833] * 7)
        elif week == 12:
            bank.balance += 833
        assert bank.advance.faults() == []

    expected = [(1, 834), (2, 834), (4, 1_668), *((week, 833) for week in range(5, 12)), (13, 833)]
    assert told == expected
    assert [payment.status for payment in bank.advance.payments].count("failed") == 2
    assert bank.advance.payments[12].due_at == began + 13 * WEEK_S
    assert bank.advance.outstanding == bank.balance == 0
    assert bank.advance.events[-1].type == "completed"


async def test_it_looks_once_per_interval_and_at_once_again_when_there_is_more(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    bank = Bank()
    bank.more = True
    began = trio.current_time()
    nursery.start_soon(Collector(Config(collect_interval_s=2.0), bank, lambda _: None).run)
    await trio.sleep(5)

    assert [asked - began for asked in bank.asked_at] == [0, 0, 2, 4]


@pytest.mark.parametrize("trouble", [StorageUnavailable("others had the accounts"), CallRefused("a bug")])
async def test_what_goes_wrong_is_tried_again_at_the_next_look(
    nursery: trio.Nursery, autojump_clock: MockClock, trouble: Exception
) -> None:
    bank = Bank()
    bank.troubles = [trouble]
    told: list[Record] = []
    await trio.sleep(WEEK_S)
    nursery.start_soon(Collector(Config(), bank, told.append).run)
    await trio.sleep(0.5)
    assert told == []
    await trio.sleep(1)
    assert [record.amount for record in told] == [834]


async def test_a_subscriber_that_fails_does_not_keep_the_others_from_being_told(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    bank = Bank()
    told: list[int] = []

    def publish(record: Record) -> None:
        told.append(record.amount)
        raise ValueError("a broken subscriber")

    await trio.sleep(2 * WEEK_S)
    nursery.start_soon(Collector(Config(), bank, publish).run)
    await trio.sleep(0.5)
    assert told == [834, 834]


async def test_advances_that_were_looked_at_are_told_even_where_nothing_could_be_collected(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    bank = Bank()
    bank.balance = 0
    told: list[list[str]] = []
    await trio.sleep(WEEK_S)
    nursery.start_soon(Collector(Config(), bank, lambda _: None, told.append).run)
    await trio.sleep(0.5)
    assert told == [["an advance"]]


async def test_a_stopped_collector_takes_nothing_more(autojump_clock: MockClock) -> None:
    bank = Bank()
    collector = Collector(Config(), bank, lambda _: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collector.run)
        await trio.sleep(0.5)
        collector.stop()
        await trio.sleep(WEEK_S)
    assert len(bank.asked_at) == 1
