"""Following everything: every transaction of every daemon, in order per account, at the reader's own pace."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from ledgerd.engine.everything import PAGE, PAUSE_S
from ledgerd_protocol.messages import Since
from tests.engine.fake_ledger import OPERATOR, Engine, FakeLedger, FakeSink, open_engine, settle

Events = list[dict[str, Any]]


@pytest.fixture
def ledger() -> FakeLedger:
    ledger = FakeLedger()
    for account in range(1, 9):
        ledger.open(account, balance=10_000)
    return ledger


@pytest.fixture
async def engine(ledger: FakeLedger, autojump_clock: object) -> AsyncIterator[Engine]:
    async with open_engine(ledger) as engine:
        yield engine


def changes(events: Events) -> list[tuple[int, int]]:
    return [(event["account_id"], event["version"]) for event in events if event["type"] == "update"]


def types(events: Events) -> list[str]:
    return [event["type"] for event in events]


async def follow(engine: Engine, **more: Any) -> FakeSink:
    """A sink that follows everything; its first events are taken."""
    sink = FakeSink()
    engine.follow(sink, by=OPERATOR, all=True, **more)
    await settle()
    assert types(sink.take()) == ["start", "live"]
    return sink


async def test_it_begins_without_a_snapshot_and_with_a_position(autojump_clock: object, engine: Engine) -> None:
    engine.ledger.credit(1)
    sink = FakeSink()
    engine.follow(sink, by=OPERATOR, all=True)
    await settle()
    assert sink.take() == [{"type": "start", "epoch": "e1", "accounts": [], "position": "1"}, {"type": "live"}]


async def test_what_is_committed_after_the_reply_is_seen(autojump_clock: object, engine: Engine) -> None:
    sink = FakeSink()
    engine.follow(sink, by=OPERATOR, all=True)
    engine.hub.publish(engine.ledger.credit(1))
    await settle()
    assert types(sink.take()) == ["start", "update", "live"]


async def test_an_operator_follows_everything_as_it_is_committed_here(autojump_clock: object, engine: Engine) -> None:
    balances = await follow(engine)
    transactions = await follow(engine, channel="transactions")
    records = [engine.ledger.move(1, 2), engine.ledger.credit(7)]
    for record in records:
        engine.hub.publish(record)
    await trio.sleep(engine.ledger.read_delay_s * 1.1)
    assert changes(balances.take()) == [(1, 1), (2, 1), (7, 1)]
    events = transactions.take()
    assert [event["transaction"]["transaction_id"] for event in events] == [each.transaction_id for each in records]
    assert [event["position"] for event in events] == ["0", "0"]


async def test_what_other_daemons_commit_comes_when_it_is_heard_of(autojump_clock: object, engine: Engine) -> None:
    sink = await follow(engine)
    engine.ledger.credit(1)
    engine.ledger.credit(2)
    await settle()
    assert sink.take() == []
    engine.hub.look()
    await settle()
    assert changes(sink.take()) == [(1, 1), (2, 1)]


async def test_changes_of_several_daemons_come_in_order_per_account(autojump_clock: object, engine: Engine) -> None:
    sink = await follow(engine)
    for number in range(200):
        record = engine.ledger.move(1, 2, 1)
        if number % 3 == 0:
            engine.hub.publish(record)
        await trio.sleep(0.0007)
    engine.hub.look()
    await settle()
    seen = changes(sink.take())
    for account in (1, 2):
        assert [version for number, version in seen if number == account] == list(range(1, 201))


async def test_a_transaction_that_others_leave_open_delays_no_event_and_holds_the_position(
    autojump_clock: object, engine: Engine
) -> None:
    sink = await follow(engine)
    engine.ledger.low_water = 0
    positions = []
    for version in range(1, 4):
        engine.hub.publish(engine.ledger.credit(1))
        await trio.sleep(2 * PAUSE_S)
        (event,) = sink.take()
        assert event["version"] == version
        positions.append(event["position"])
    assert positions == ["0", "0", "0"]
    assert engine.ledger.stretches[-3:] == ["0", "1", "2"], "what was delivered is not read again"


async def test_under_load_a_reading_serves_many_transactions(autojump_clock: object, engine: Engine) -> None:
    await follow(engine)
    before = len(engine.ledger.stretches)
    for _ in range(1_000):
        engine.hub.publish(engine.ledger.credit(1, 1))
        await trio.sleep(0.0001)
    await settle()
    assert len(engine.ledger.stretches) - before <= 0.1 / PAUSE_S + 3


async def test_all_who_stand_at_the_same_place_share_readings_and_bytes(autojump_clock: object, engine: Engine) -> None:
    sinks = [FakeSink() for _ in range(20)]
    for sink in sinks:
        engine.follow(sink, by=OPERATOR, all=True)
    await settle()
    before = len(engine.ledger.stretches)
    engine.hub.publish(engine.ledger.credit(1))
    await settle()
    assert len(engine.ledger.stretches) - before == 1
    assert len({id(sink.frames[-1]) for sink in sinks}) == 1


async def test_who_has_no_room_reads_on_at_its_own_pace_and_holds_up_nobody(
    autojump_clock: object, engine: Engine
) -> None:
    slow, quick = await follow(engine), await follow(engine)
    slow.room_for = 3
    for _ in range(PAGE + 50):
        engine.hub.publish(engine.ledger.move(1, 2, 1))
        await trio.sleep(0.001)
    await settle()
    assert len(quick.take()) == 2 * (PAGE + 50)
    got = slow.take()
    assert len(got) == 3
    for room in [5, 1, 100, None]:
        slow.make_room(room)
        await settle()
        got += slow.take()
    for account in (1, 2):
        assert [version for number, version in changes(got) if number == account] == list(range(1, PAGE + 51))
    assert "closed" not in types(got)


async def test_while_it_has_no_room_nothing_is_read_for_it(autojump_clock: object, engine: Engine) -> None:
    sink = await follow(engine)
    sink.room_for = 0
    engine.hub.publish(engine.ledger.credit(1))
    await settle()
    before = len(engine.ledger.stretches)
    for _ in range(50):
        engine.hub.publish(engine.ledger.credit(1))
        await settle()
    assert len(engine.ledger.stretches) == before


async def test_a_database_that_goes_away_costs_nothing_but_time(autojump_clock: object, engine: Engine) -> None:
    sink = await follow(engine)
    engine.ledger.away = True
    engine.hub.publish(engine.ledger.credit(1))
    await trio.sleep(30)
    assert sink.take() == []
    engine.ledger.credit(1)
    engine.ledger.away = False
    await trio.sleep(5)
    assert changes(sink.take()) == [(1, 1), (1, 2)]


# -- resuming ---------------------------------------------------------------------------------------------------------


async def test_a_resume_misses_nothing_and_may_repeat(autojump_clock: object, engine: Engine) -> None:
    for _ in range(2 * PAGE):
        engine.ledger.credit(1, 1)
    sink = FakeSink()
    engine.follow(sink, by=OPERATOR, all=True, since=Since(epoch="e1", position="17"))
    await settle()
    events = sink.take()
    assert events[0] == {"type": "start", "epoch": "e1", "accounts": [], "position": "17"}
    assert types(events)[-1] == "live"
    assert [version for _, version in changes(events)] == list(range(18, 2 * PAGE + 1))
    positions = {event["position"] for event in events if event["type"] == "update"}
    assert positions == {"17", str(17 + PAGE)}


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (Since(epoch="older", position="0"), "epoch_changed"),
        (Since(epoch="e1", position="99"), "position_unknown"),
        (Since(epoch="e1", position="x"), "position_unknown"),
    ],
)
async def test_what_cannot_be_resumed_says_why_and_goes_on_from_now(
    autojump_clock: object, engine: Engine, asked: Since, reason: str
) -> None:
    engine.ledger.credit(1)
    sink = FakeSink()
    engine.follow(sink, by=OPERATOR, all=True, since=asked)
    await settle()
    start = {"type": "start", "epoch": "e1", "accounts": [], "position": "1", "reason": reason}
    assert sink.take() == [start, {"type": "live"}]
    engine.hub.publish(engine.ledger.credit(1))
    await settle()
    assert changes(sink.take()) == [(1, 2)]


async def test_other_data_than_before_ends_it_before_any_event_of_it(autojump_clock: object, engine: Engine) -> None:
    engine.hub.look()
    sink = await follow(engine)
    engine.ledger.epoch = "e2"
    engine.hub.publish(engine.ledger.credit(1))
    await settle()
    assert sink.take() == []
    engine.hub.look()
    await settle()
    assert sink.take() == [{"type": "closed", "code": "unavailable"}]


async def test_data_that_changes_before_the_start_is_begun_where_the_new_data_is(
    autojump_clock: object, engine: Engine
) -> None:
    engine.ledger.credit(1)
    sink = FakeSink()
    engine.follow(sink, by=OPERATOR, all=True)
    engine.ledger.commits.clear()
    engine.ledger.epoch = "e2"
    await settle()
    assert sink.take() == [{"type": "start", "epoch": "e2", "accounts": [], "position": "0"}, {"type": "live"}]


# -- ending -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment_s", [0.0, 0.0005, 0.0015, 0.1])
async def test_unsubscribe_is_the_last_word(autojump_clock: object, engine: Engine, moment_s: float) -> None:
    for _ in range(500):
        engine.ledger.credit(1)
    sink = FakeSink()
    subscription = engine.follow(sink, by=OPERATOR, all=True, since=Since(epoch="e1", position="0"))
    await trio.sleep(moment_s)
    engine.hub.unsubscribe(subscription)
    frames = len(sink.frames)
    engine.hub.publish(engine.ledger.credit(1))
    await settle()
    assert len(sink.frames) == frames
    assert engine.hub._nursery is not None
    assert not engine.hub._nursery.child_tasks


async def test_a_connection_that_is_gone_ends_it(autojump_clock: object, engine: Engine) -> None:
    sink = FakeSink()
    subscription = engine.follow(sink, by=OPERATOR, all=True)
    await settle()
    sink.disconnect()
    engine.hub.publish(engine.ledger.credit(1))
    await settle()
    assert subscription.closed


async def test_a_heartbeat_comes_after_silence(autojump_clock: object, engine: Engine) -> None:
    sink = await follow(engine, heartbeat_ms=1000)
    await trio.sleep(1.1)
    assert sink.take() == [{"type": "heartbeat", "versions": {}, "position": "0"}]
