"""Reconciler and alerts: each difference is told once, again when it changes, and forgotten when it is mended."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
import trio
from structlog.testing import capture_logs

from ledgerd.config import Config
from ledgerd.engine import reconciler as module
from ledgerd.engine.alerts import OPEN_MAX, Alerts
from ledgerd.engine.ports import StorageUnavailable
from ledgerd.engine.reconciler import ADVANCE_MISMATCH, Reconciler
from ledgerd.engine.states import Audited
from ledgerd.metrics import ALERTS
from ledgerd_protocol.errors import ErrorCode
from tests.engine.fake_ledger import OPERATOR, Engine, FakeLedger, FakeSink, open_engine, settle

INTERVAL_S = 60.0


def advance(number: int) -> str:
    return str(UUID(int=number))


class FakeAudits:
    """Advances, some of them wrong."""

    def __init__(self, count: int = 3) -> None:
        self.ids = [advance(number) for number in range(1, count + 1)]
        self.wrong: dict[str, str] = {}
        self.looks: list[tuple[str | None, float]] = []
        self.away = False

    async def audit_advances(self, first_id: str | None, limit: int) -> Audited:
        """See ports.Audits."""
        self.looks.append((first_id, trio.current_time()))
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StorageUnavailable("away")
        left = [number for number in self.ids if number >= (first_id or "")]
        wrong = {number: self.wrong[number] for number in left[:limit] if number in self.wrong}
        return Audited(wrong, left[limit] if len(left) > limit else None)


def told_by(sink: FakeSink) -> list[dict[str, Any]]:
    events = [json.loads(frame)["params"]["result"] for frame in sink.frames]
    sink.frames.clear()
    return events


def counted() -> float:
    return ALERTS.labels(ADVANCE_MISMATCH)._value.get()


@pytest.fixture
def books() -> FakeAudits:
    return FakeAudits()


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with open_engine(FakeLedger()) as engine:
        yield engine


@pytest.fixture
async def alerts(engine: Engine, books: FakeAudits, nursery: trio.Nursery) -> Alerts:
    """The alerts of an engine whose reconciler runs."""
    config = Config(reconcile_interval_s=INTERVAL_S)
    nursery.start_soon(Reconciler(config, books, engine.hub.alerts).run)
    await settle()
    return engine.hub.alerts


async def next_look() -> None:
    await trio.sleep(INTERVAL_S)
    await settle()


async def test_a_difference_is_told_once_in_every_way(
    autojump_clock: object, engine: Engine, alerts: Alerts, books: FakeAudits
) -> None:
    sink = FakeSink()
    engine.follow(sink, channel="alerts", by=OPERATOR)
    await settle()
    assert told_by(sink) == [{"type": "start", "epoch": "e1", "accounts": []}, {"type": "live"}]
    before = counted()

    books.wrong[advance(2)] = "10 is not 11"
    with capture_logs() as logs:
        for _ in range(3):
            await next_look()

    (event,) = told_by(sink)
    assert event.pop("created_at").endswith("Z")
    assert event == {"type": "alert", "alert": "advance_mismatch", "advance_id": advance(2), "detail": "10 is not 11"}
    (line,) = [line for line in logs if line["log_level"] == "error"]
    assert (line["event"], line["advance_id"]) == ("advance_mismatch", advance(2))
    assert counted() == before + 1


async def test_it_is_told_again_when_it_changes_and_when_it_comes_back(
    autojump_clock: object, engine: Engine, alerts: Alerts, books: FakeAudits
) -> None:
    sink = FakeSink()
    engine.follow(sink, channel="alerts", by=OPERATOR)
    await settle()
    sink.frames.clear()

    for detail in ("10 is not 11", "10 is not 12", None, "10 is not 12"):
        books.wrong = {} if detail is None else {advance(1): detail}
        await next_look()

    assert [event["detail"] for event in told_by(sink)] == ["10 is not 11", "10 is not 12", "10 is not 12"]


async def test_who_subscribes_late_is_told_what_is_open_and_not_what_was_mended(
    autojump_clock: object, engine: Engine, alerts: Alerts, books: FakeAudits
) -> None:
    books.wrong = dict.fromkeys(books.ids, "wrong")
    await next_look()
    del books.wrong[advance(2)]
    await next_look()

    sink = FakeSink()
    engine.follow(sink, channel="alerts", by=OPERATOR)
    await settle()
    events = told_by(sink)
    assert [event["type"] for event in events] == ["start", "live", "alert", "alert"]
    assert [event["advance_id"] for event in events[2:]] == [advance(1), advance(3)]


async def test_a_slow_operator_is_told_in_order_and_never_what_was_mended_meanwhile(
    autojump_clock: object, engine: Engine, alerts: Alerts, books: FakeAudits
) -> None:
    sink = FakeSink()
    engine.follow(sink, channel="alerts", by=OPERATOR)
    await settle()
    sink.make_room(0)
    books.wrong = {advance(1): "first"}
    await next_look()
    books.wrong = {advance(1): "first", advance(2): "second", advance(3): "third"}
    await next_look()
    del books.wrong[advance(3)]
    await next_look()
    sink.frames.clear()
    sink.make_room()
    await settle()
    assert [event["detail"] for event in told_by(sink)] == ["first", "second"]


async def test_an_unsubscribed_and_a_closed_one_hear_nothing(
    autojump_clock: object, engine: Engine, alerts: Alerts, books: FakeAudits
) -> None:
    left, closed = FakeSink(), FakeSink()
    for sink in (left, closed):
        engine.follow(sink, channel="alerts", by=OPERATOR)
    await settle()
    first, second = engine.hub._subscriptions
    engine.hub.unsubscribe(first)
    engine.hub.close(second, ErrorCode.SESSION_EXPIRED)
    books.wrong = {advance(1): "wrong"}
    await next_look()
    assert [event["type"] for event in told_by(left)] == ["start", "live"]
    assert [event["type"] for event in told_by(closed)] == ["start", "live", "closed"]


async def test_heartbeats_are_pushed_in_silence(autojump_clock: object, engine: Engine, alerts: Alerts) -> None:
    sink = FakeSink()
    engine.follow(sink, channel="alerts", by=OPERATOR, heartbeat_ms=1_000)
    await trio.sleep(3.5)
    assert {"type": "heartbeat", "versions": {}} in told_by(sink)


async def test_while_the_database_is_away_nothing_is_mended_and_nothing_is_raised(
    autojump_clock: object, alerts: Alerts, books: FakeAudits
) -> None:
    books.wrong = {advance(1): "wrong"}
    await next_look()
    books.away = True
    looks = len(books.looks)
    await next_look()
    assert len(books.looks) == looks + 1
    assert alerts.about(ADVANCE_MISMATCH) == [advance(1)]


async def test_slices_cover_everything_and_a_look_goes_on_where_the_last_one_stopped(
    autojump_clock: object, engine: Engine, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLICE", 2)
    monkeypatch.setattr(module, "SLICES_MAX", 2)
    books = FakeAudits(7)
    books.wrong = {advance(1): "wrong", advance(7): "wrong"}
    nursery.start_soon(Reconciler(Config(reconcile_interval_s=INTERVAL_S), books, engine.hub.alerts).run)
    await settle()
    assert [first for first, _ in books.looks] == [None, advance(3)]
    assert engine.hub.alerts.about(ADVANCE_MISMATCH) == [advance(1)]
    await next_look()
    assert [first for first, _ in books.looks[2:]] == [advance(5), advance(7)]
    assert engine.hub.alerts.about(ADVANCE_MISMATCH) == [advance(1), advance(7)]
    books.wrong = {}
    await next_look()
    assert engine.hub.alerts.about(ADVANCE_MISMATCH) == [advance(7)]
    await next_look()
    assert engine.hub.alerts.about(ADVANCE_MISMATCH) == []


async def test_no_more_alerts_are_kept_than_anybody_can_read() -> None:
    alerts = Alerts()
    news = [alerts.raise_alert(ADVANCE_MISMATCH, advance(number), "wrong") for number in range(OPEN_MAX + 1)]
    assert news == [True] * OPEN_MAX + [False]
    assert alerts.raise_alert(ADVANCE_MISMATCH, advance(0), "changed")
    assert alerts.withdraw(ADVANCE_MISMATCH, advance(0))
    assert not alerts.withdraw(ADVANCE_MISMATCH, advance(0))
    assert alerts.raise_alert(ADVANCE_MISMATCH, advance(OPEN_MAX), "wrong")
