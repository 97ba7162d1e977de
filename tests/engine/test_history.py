"""SharedHistory: one reading serves all who want the same page."""

from __future__ import annotations

import pytest
import trio

from ledgerd.engine.commands import Record
from ledgerd.engine.history import SharedHistory
from ledgerd.engine.ports import StorageUnavailable
from tests.engine.fake_ledger import FakeLedger


@pytest.fixture
def ledger() -> FakeLedger:
    ledger = FakeLedger()
    ledger.open(1)
    for _ in range(5):
        ledger.credit(1)
    return ledger


async def test_equal_readings_at_one_time_are_one(ledger: FakeLedger, autojump_clock: object) -> None:
    history = SharedHistory(ledger)
    pages: list[list[Record]] = []

    async def read(after: int) -> None:
        pages.append(await history.read(1, after, 3))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(read, 0)
        nursery.start_soon(read, 3)
    assert sorted(ledger.reads) == [(1, 0, 3), (1, 3, 3)]
    assert sorted(map(len, pages)) == [2] + [3] * 10


async def test_a_later_reading_asks_again(ledger: FakeLedger, autojump_clock: object) -> None:
    history = SharedHistory(ledger)
    assert len(await history.read(1, 4, 3)) == 1
    ledger.credit(1)
    assert len(await history.read(1, 4, 3)) == 2


async def test_trouble_reaches_all_who_wait(ledger: FakeLedger, autojump_clock: object) -> None:
    history = SharedHistory(ledger)
    ledger.away = True
    failures = 0

    async def read() -> None:
        nonlocal failures
        with pytest.raises(StorageUnavailable):
            await history.read(1, 0, 3)
        failures += 1

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(read)
    assert failures == 3
    assert len(ledger.reads) == 1


async def test_when_who_reads_is_cancelled_another_goes_on(ledger: FakeLedger, autojump_clock: object) -> None:
    history = SharedHistory(ledger)
    first = trio.CancelScope()
    got: list[int] = []

    async def read_first() -> None:
        with first:
            await history.read(1, 0, 3)

    async def read() -> None:
        got.append(len(await history.read(1, 0, 3)))

    ledger.read_delay_s = 1.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_first)
        await trio.sleep(0.1)
        nursery.start_soon(read)
        nursery.start_soon(read)
        await trio.sleep(0.1)
        first.cancel()
    assert got == [3, 3]
    assert len(ledger.reads) == 2
