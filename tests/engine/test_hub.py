"""Hub and subscriptions: nothing skipped, nothing twice, whatever happens in between."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from ledgerd.engine.subscription import PAGE
from ledgerd.metrics import CATCH_UPS
from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.messages import Since
from tests.engine.fake_ledger import (
    OPERATOR,
    SERVICE,
    Engine,
    FakeLedger,
    FakeSink,
    open_engine,
    principal,
    settle,
)

Events = list[dict[str, Any]]


@pytest.fixture
def ledger() -> FakeLedger:
    ledger = FakeLedger()
    for account in range(1, 9):
        ledger.open(account, balance=10_000)
    return ledger


@pytest.fixture
async def engine(ledger: FakeLedger, autojump_clock: object) -> AsyncIterator[Engine]:
    async with open_engine(ledger, resume_max=1_000) as engine:
        yield engine


def types(events: Events) -> list[str]:
    return [event["type"] for event in events]


def versions(events: Events, account: int = 1) -> list[int]:
    return [event["version"] for event in events if event["type"] == "update" and event["account_id"] == account]


def since(versions: dict[int, int], epoch: str = "e1") -> Since:
    return Since(epoch=epoch, versions=versions)


async def follow_live(engine: Engine, *accounts: int, **more: Any) -> FakeSink:
    """A sink whose subscription is live; its first events are taken."""
    sink = FakeSink()
    engine.follow(sink, *accounts, **more)
    await settle()
    assert types(sink.take())[-1] == "live"
    return sink


def catching_up(engine: Engine) -> int:
    assert engine.hub._nursery is not None
    return len(engine.hub._nursery.child_tasks)


# -- beginning ------------------------------------------------------------------------------------------------------


async def test_a_subscription_begins_with_where_its_accounts_stand_and_goes_live(
    autojump_clock: object, engine: Engine
) -> None:
    engine.ledger.credit(2, 250)
    sink = FakeSink()
    engine.follow(sink, 1, 2)
    assert sink.frames == [], "the reply to the request comes first"
    await settle()
    start, live = sink.take()
    assert start == {
        "type": "start",
        "epoch": "e1",
        "accounts": [
            {
                "account_id": 1, "from": "snapshot", "version": 0, "balance": "100.00", "held": "0.00",
                "available": "100.00", "currency": "USD",
            },
            {
                "account_id": 2, "from": "snapshot", "version": 1, "balance": "102.50", "held": "0.00",
                "available": "102.50", "currency": "USD",
            },
        ],
    }  # fmt: skip
    assert live == {"type": "live"}
    assert catching_up(engine) == 0


async def test_frames_are_notifications_for_the_subscription(autojump_clock: object, engine: Engine) -> None:
    sink = FakeSink()
    engine.follow(sink, 1, subscription_id="sub_9")
    await settle()
    frame = json.loads(sink.frames[1])
    assert frame == {
        "jsonrpc": "2.0",
        "method": "ledger_subscription",
        "params": {"subscription": "sub_9", "result": {"type": "live"}},
    }


async def test_a_change_between_the_permission_and_the_snapshot_is_in_the_snapshot(
    autojump_clock: object, engine: Engine
) -> None:
    sink = FakeSink()
    engine.ledger.before_states = lambda: engine.hub.publish(engine.ledger.credit(1))
    engine.follow(sink, 1)
    await settle()
    start, live = sink.take()
    assert (start["accounts"][0]["version"], live["type"]) == (1, "live")


async def test_a_change_after_the_snapshot_was_read_and_before_live_is_an_update(
    autojump_clock: object, engine: Engine
) -> None:
    sink = FakeSink()
    sink.room_for = 0
    engine.follow(sink, 1)
    await settle()  # the snapshot is read and waits for room
    for _ in range(3):
        engine.hub.publish(engine.ledger.credit(1))
    sink.make_room()
    await settle()
    events = sink.take()
    assert types(events) == ["start", "update", "update", "update", "live"]
    assert events[0]["accounts"][0]["version"] == 0
    assert versions(events) == [1, 2, 3]


async def test_snapshot_and_updates_join_under_concurrent_writes(autojump_clock: object, engine: Engine) -> None:
    async def write() -> None:
        for number in range(200):
            engine.hub.publish(engine.ledger.move(1, 2) if number % 2 else engine.ledger.move(2, 1))
            await trio.sleep(0.0007)

    sinks = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        for _ in range(40):
            sinks.append(FakeSink())
            engine.follow(sinks[-1], 1, 2)
            await trio.sleep(0.003)
    await settle()
    for sink in sinks:
        events = sink.take()
        for index, account in enumerate((1, 2)):
            first = events[0]["accounts"][index]["version"]
            assert versions(events, account) == list(range(first + 1, 201))
        assert types(events).count("live") == 1


async def test_no_frame_passes_the_limit_however_many_accounts(ledger: FakeLedger, autojump_clock: object) -> None:
    for account in range(100, 200):
        ledger.open(account)
    async with open_engine(ledger, frame_out_bytes_max=4_096) as engine:
        sink = FakeSink()
        engine.follow(sink, *range(100, 200))
        await settle()
    assert max(map(len, sink.frames)) <= 4_096
    events = sink.take()
    starts = events[:-1]
    assert types(starts) == ["start"] * len(starts)
    assert len(starts) > 1
    assert [start.get("more", False) for start in starts] == [True] * (len(starts) - 1) + [False]
    assert [account["account_id"] for start in starts for account in start["accounts"]] == list(range(100, 200))


async def test_a_subscription_to_nothing_starts_empty_and_is_live(autojump_clock: object, engine: Engine) -> None:
    sink = FakeSink()
    engine.follow(sink, by=principal(50))
    await settle()
    assert sink.take() == [{"type": "start", "epoch": "e1", "accounts": []}, {"type": "live"}]


async def test_the_snapshot_waits_for_a_database_that_is_away(autojump_clock: object, engine: Engine) -> None:
    engine.ledger.away = True
    sink = FakeSink()
    engine.follow(sink, 1)
    await trio.sleep(60)
    assert sink.frames == []
    engine.ledger.away = False
    await trio.sleep(5)
    assert types(sink.take()) == ["start", "live"]


# -- resuming -------------------------------------------------------------------------------------------------------


async def test_a_resume_replays_exactly_what_was_missed(autojump_clock: object, engine: Engine) -> None:
    for _ in range(PAGE * 2 + 30):
        engine.ledger.credit(1)
    sink = FakeSink()
    engine.follow(sink, 1, since=since({1: 17}))
    await settle()
    events = sink.take()
    (account,) = events[0]["accounts"]
    assert (account["from"], account["version"]) == ("resumed", PAGE * 2 + 30)
    assert "reason" not in account
    assert versions(events) == list(range(18, PAGE * 2 + 31))
    assert types(events)[-1] == "live"


async def test_a_resume_with_nothing_missed_is_live_at_once(autojump_clock: object, engine: Engine) -> None:
    engine.ledger.credit(1)
    sink = FakeSink()
    engine.follow(sink, 1, since=since({1: 1}))
    await settle()
    events = sink.take()
    assert types(events) == ["start", "live"]
    assert events[0]["accounts"][0]["from"] == "resumed"
    assert engine.ledger.reads == []


@pytest.mark.parametrize(
    ("asked", "origin", "reason"),
    [
        (since({1: 5}, epoch="older"), "snapshot", "epoch_changed"),
        (since({1: 1_201}), "snapshot", "version_ahead"),
        (since({1: 199}), "snapshot", "too_far_behind"),
        (since({1: 200}), "resumed", None),
        (since({2: 0}), "snapshot", None),
    ],
)
async def test_an_account_that_cannot_resume_starts_with_a_snapshot_and_the_reason(
    autojump_clock: object, engine: Engine, asked: Since, origin: str, reason: str | None
) -> None:
    for _ in range(1_200):
        engine.ledger.credit(1, 1)
    sink = FakeSink()
    engine.follow(sink, 1, since=asked)
    await settle()
    events = sink.take()
    (account,) = events[0]["accounts"]
    assert (account["from"], account.get("reason")) == (origin, reason)
    assert len(versions(events)) == (1_000 if origin == "resumed" else 0)
    engine.hub.publish(engine.ledger.credit(1))
    assert versions(sink.take()) == [1_201]


async def test_resume_is_judged_account_by_account(autojump_clock: object, engine: Engine) -> None:
    for account in (1, 2, 3):
        engine.ledger.credit(account)
        engine.ledger.credit(account)
    sink = FakeSink()
    engine.follow(sink, 1, 2, 3, since=since({1: 1, 2: 9}))
    await settle()
    events = sink.take()
    assert [(start["from"], start.get("reason")) for start in events[0]["accounts"]] == [
        ("resumed", None),
        ("snapshot", "version_ahead"),
        ("snapshot", None),
    ]
    assert [versions(events, account) for account in (1, 2, 3)] == [[2], [], []]


# -- live -----------------------------------------------------------------------------------------------------------


async def test_both_sides_of_a_transfer_are_pushed(autojump_clock: object, engine: Engine) -> None:
    sink = await follow_live(engine, 1, 2)
    record = engine.ledger.move(1, 2, 150)
    engine.hub.publish(record)
    events = sink.take()
    assert [(event["account_id"], event["balance_change"], event["balance"]) for event in events] == [
        (1, "-1.50", "98.50"),
        (2, "1.50", "101.50"),
    ]
    assert {event["transaction_id"] for event in events} == {record.transaction_id}


async def test_a_version_that_comes_twice_is_pushed_once(autojump_clock: object, engine: Engine) -> None:
    sink = await follow_live(engine, 1)
    record = engine.ledger.credit(1)
    engine.hub.publish(record)
    engine.hub.publish(record)
    await settle()
    assert versions(sink.take()) == [1]


async def test_a_version_after_a_hole_is_not_pushed_before_the_hole_is_read_from_the_table(
    autojump_clock: object, engine: Engine
) -> None:
    sink = await follow_live(engine, 1)
    engine.ledger.credit(1)
    engine.ledger.credit(1)  # two changes by another daemon
    engine.hub.publish(engine.ledger.credit(1))
    assert sink.take() == []
    await settle()
    assert versions(sink.take()) == [1, 2, 3]
    assert catching_up(engine) == 0
    engine.hub.publish(engine.ledger.credit(1))
    assert versions(sink.take()) == [4], "live again"


async def test_a_change_of_another_daemon_is_read_when_its_version_is_heard_of(
    autojump_clock: object, engine: Engine
) -> None:
    sink = await follow_live(engine, 1)
    engine.ledger.credit(1)
    engine.hub.advance_heads(await engine.ledger.heads(engine.hub.followed_accounts()))
    await settle()
    assert versions(sink.take()) == [1]


async def test_a_version_heard_of_just_before_it_is_published_makes_nobody_read(
    autojump_clock: object, engine: Engine
) -> None:
    sink = await follow_live(engine, 1)
    record = engine.ledger.credit(1)
    before = CATCH_UPS._value.get()
    engine.hub.advance_heads({1: 1})
    await trio.sleep(0.005)
    engine.hub.publish(record)
    await settle()
    assert versions(sink.take()) == [1]
    assert engine.ledger.reads == []
    assert CATCH_UPS._value.get() == before


async def test_ten_thousand_live_subscribers_have_no_task_and_a_hole_is_read_once_for_all(
    autojump_clock: object, engine: Engine
) -> None:
    sinks = [FakeSink() for _ in range(10_000)]
    for sink in sinks:
        engine.follow(sink, 1)
    await settle()
    assert catching_up(engine) == 0
    engine.ledger.credit(1)
    engine.hub.publish(engine.ledger.credit(1))
    await settle()
    assert all(len(sink.frames) == 4 for sink in sinks)
    assert len(engine.ledger.reads) == 1


async def test_one_event_is_the_same_bytes_for_all_with_the_same_subscription_id(
    autojump_clock: object, engine: Engine
) -> None:
    one, two = await follow_live(engine, 1), await follow_live(engine, 1)
    engine.hub.publish(engine.ledger.credit(1))
    assert one.frames[0] is two.frames[0]


async def test_a_bug_in_one_subscription_ends_it_and_not_the_others(autojump_clock: object, engine: Engine) -> None:
    class Broken(FakeSink):
        broken = False

        def push(self, frame: bytes) -> bool:
            if self.broken:
                raise ZeroDivisionError
            return super().push(frame)

    broken = Broken()
    subscription = engine.follow(broken, 1)
    good = await follow_live(engine, 1)
    broken.broken = True
    engine.hub.publish(engine.ledger.credit(1))
    assert versions(good.take()) == [1]
    assert subscription.closed


async def test_a_version_that_one_subscriber_finds_in_its_snapshot_reaches_the_others_too(
    autojump_clock: object, engine: Engine
) -> None:
    early = await follow_live(engine, 1)
    engine.ledger.credit(1)  # by another daemon, and nothing is heard of it
    await follow_live(engine, 1)
    await settle()
    assert versions(early.take()) == [1]


# -- slow readers ---------------------------------------------------------------------------------------------------


async def test_a_slow_reader_reads_on_from_the_table_at_its_own_pace(autojump_clock: object, engine: Engine) -> None:
    slow, quick = await follow_live(engine, 1, 2), await follow_live(engine, 1, 2)
    slow.room_for = 3
    for _ in range(300):
        engine.hub.publish(engine.ledger.move(1, 2, 1))
    assert len(quick.take()) == 600
    await settle()
    got = slow.take()
    assert len(got) == 3
    for room in [5, 1, 100, None]:
        slow.make_room(room)
        await settle()
        got += slow.take()
    for account in (1, 2):
        assert versions(got, account) == list(range(1, 301))
    engine.hub.publish(engine.ledger.move(1, 2, 1))
    assert versions(slow.take()) == [301]
    assert types(got).count("live") == 0, "live is said once"


async def test_a_slow_reader_costs_no_reading_while_it_has_no_room(autojump_clock: object, engine: Engine) -> None:
    sink = await follow_live(engine, 1)
    sink.room_for = 0
    engine.hub.publish(engine.ledger.credit(1))
    await settle()
    reads = len(engine.ledger.reads)
    for _ in range(50):
        engine.hub.publish(engine.ledger.credit(1))
        await settle()
    assert len(engine.ledger.reads) == reads <= 1


async def test_a_database_that_goes_away_while_catching_up_costs_no_version(
    autojump_clock: object, engine: Engine
) -> None:
    sink = await follow_live(engine, 1)
    for _ in range(PAGE + 50):
        engine.ledger.credit(1)
    engine.hub.publish(engine.ledger.credit(1))
    await trio.sleep(engine.ledger.read_delay_s * 1.5)
    assert len(sink.frames) == PAGE
    engine.ledger.away = True
    await trio.sleep(30)
    engine.ledger.away = False
    await trio.sleep(5)
    assert versions(sink.take()) == list(range(1, PAGE + 52))


async def test_a_version_that_the_table_does_not_show_yet_is_waited_for(autojump_clock: object, engine: Engine) -> None:
    sink = await follow_live(engine, 1)
    engine.hub.advance_heads({1: 1})
    await settle()
    assert sink.take() == []
    assert len(engine.ledger.reads) < 20, "it is not asked for in a tight loop"
    engine.ledger.credit(1)
    await settle()
    assert versions(sink.take()) == [1]


async def test_a_sink_that_is_gone_ends_the_subscription(autojump_clock: object, engine: Engine) -> None:
    sink = FakeSink()
    subscription = engine.follow(sink, 1)
    await settle()
    sink.room_for = 0
    engine.hub.publish(engine.ledger.credit(1))
    await settle()
    sink.disconnect()
    await settle()
    assert subscription.closed
    assert engine.hub.followed_accounts() == []
    assert catching_up(engine) == 0


# -- latest ---------------------------------------------------------------------------------------------------------


async def test_latest_shows_every_change_while_there_is_room(autojump_clock: object, engine: Engine) -> None:
    sink = await follow_live(engine, 1, mode="latest")
    for _ in range(3):
        engine.hub.publish(engine.ledger.credit(1))
    events = sink.take()
    assert versions(events) == [1, 2, 3]
    assert not any("skipped" in event for event in events)


async def test_latest_keeps_the_newest_balance_per_account_and_counts_what_it_skipped(
    autojump_clock: object, engine: Engine
) -> None:
    sink = await follow_live(engine, 1, 2, 3, mode="latest")
    sink.room_for = 0
    for _ in range(10):
        engine.hub.publish(engine.ledger.move(1, 2))
    engine.hub.publish(engine.ledger.credit(3))
    await settle()
    sink.make_room()
    await settle()
    events = sink.take()
    shown = {event["account_id"]: (event["version"], event.get("skipped"), event["balance"]) for event in events}
    assert shown == {1: (10, 9, "90.00"), 2: (10, 9, "110.00"), 3: (1, None, "101.00")}
    assert len(events) == 3
    assert engine.ledger.reads == [], "what is newest was in memory"
    engine.hub.publish(engine.ledger.move(1, 2))
    assert [event["version"] for event in sink.take()] == [11, 11]


async def test_latest_sees_over_a_hole_and_counts_it(autojump_clock: object, engine: Engine) -> None:
    sink = await follow_live(engine, 1, mode="latest")
    engine.ledger.credit(1)
    engine.ledger.credit(1)
    engine.hub.publish(engine.ledger.credit(1))
    (event,) = sink.take()
    assert (event["version"], event["skipped"]) == (3, 2)


async def test_latest_reads_one_record_when_another_daemon_made_the_newest(
    autojump_clock: object, engine: Engine
) -> None:
    sink = await follow_live(engine, 1, mode="latest")
    for _ in range(5):
        engine.ledger.credit(1)
    engine.hub.advance_heads({1: 5})
    await settle()
    (event,) = sink.take()
    assert (event["version"], event["skipped"], event["balance"]) == (5, 4, "105.00")
    assert engine.ledger.reads == [(1, 4, 1)]


async def test_latest_shows_what_another_daemon_made_instead_of_an_older_change_of_ours(
    autojump_clock: object, engine: Engine
) -> None:
    sink = await follow_live(engine, 1, mode="latest")
    sink.room_for = 0
    engine.hub.publish(engine.ledger.credit(1))
    engine.ledger.credit(1)
    engine.hub.advance_heads({1: 2})
    await settle()
    sink.make_room()
    await settle()
    (event,) = sink.take()
    assert (event["version"], event["skipped"]) == (2, 1)


async def test_latest_resumes_with_the_newest_balance_only(autojump_clock: object, engine: Engine) -> None:
    for _ in range(5):
        engine.ledger.credit(1)
    sink = FakeSink()
    engine.follow(sink, 1, mode="latest", since=since({1: 2}))
    await settle()
    start, update, live = sink.take()
    assert start["accounts"][0]["from"] == "resumed"
    assert (update["version"], update["skipped"], live["type"]) == (5, 2, "live")


async def test_latest_is_for_balances_only(autojump_clock: object, engine: Engine) -> None:
    with pytest.raises(LedgerError) as caught:
        engine.follow(FakeSink(), 1, mode="latest", channel="transactions")
    assert caught.value.code is ErrorCode.INVALID_PARAMS
    assert engine.hub.followed_accounts() == []


# -- transactions ---------------------------------------------------------------------------------------------------


def transaction_ids(events: Events) -> list[str]:
    return [event["transaction"]["transaction_id"] for event in events if event["type"] == "transaction"]


async def test_a_transaction_between_two_followed_accounts_comes_once(autojump_clock: object, engine: Engine) -> None:
    sink = await follow_live(engine, 1, 2, channel="transactions")
    record = engine.ledger.move(1, 2)
    engine.hub.publish(record)
    await settle()
    (event,) = sink.take()
    assert event["transaction"]["transaction_id"] == record.transaction_id
    assert [entry["version"] for entry in event["transaction"]["entries"]] == [1, 1]


async def test_transactions_are_shown_as_each_subscriber_may_see_them(autojump_clock: object, engine: Engine) -> None:
    payer = await follow_live(engine, 1, channel="transactions", by=principal(1))
    receiver = await follow_live(engine, 2, channel="transactions", by=principal(2))
    operator = await follow_live(engine, 1, channel="transactions", by=OPERATOR)
    engine.hub.publish(engine.ledger.move(1, 2))
    seen = [sink.take()[0]["transaction"] for sink in (payer, receiver, operator)]
    assert [[entry["account_id"] for entry in view["entries"]] for view in seen] == [[1], [2], [1, 2]]
    assert ["actor" in view for view in seen] == [False, False, True]


async def test_missed_transactions_come_once_each_in_an_order_that_respects_every_accounts_versions(
    autojump_clock: object, engine: Engine
) -> None:
    # A chain through all accounts: each one needs the one before it.
    records = [engine.ledger.move(1 + number % 4, 1 + (number + 1) % 4, 1) for number in range(400)]
    sink = FakeSink()
    engine.follow(sink, 1, 2, 3, 4, channel="transactions", since=since({1: 0, 2: 0, 3: 0, 4: 0}))
    await settle()
    events = sink.take()
    assert transaction_ids(events) == [record.transaction_id for record in records]
    assert types(events)[-1] == "live"


async def test_the_merge_learns_of_versions_nobody_announced(autojump_clock: object, engine: Engine) -> None:
    sink = await follow_live(engine, 1, 2, channel="transactions")
    first = engine.ledger.credit(2)
    second = engine.ledger.move(1, 2)
    engine.hub.advance_heads({1: 1})  # of account 2 nothing was heard
    await settle()
    assert transaction_ids(sink.take()) == [first.transaction_id, second.transaction_id]


async def test_a_slow_reader_of_transactions_gets_each_once(autojump_clock: object, engine: Engine) -> None:
    sink = await follow_live(engine, 1, 2, 3, channel="transactions")
    sink.room_for = 1
    records = []
    for number in range(60):
        records.append(engine.ledger.move(1 + number % 3, 1 + (number + 1) % 3, 1))
        engine.hub.publish(records[-1])
    got: Events = []
    for room in [3, 1, 7, None]:
        await settle()
        got += sink.take()
        sink.make_room(room)
    await settle()
    got += sink.take()
    assert transaction_ids(got) == [record.transaction_id for record in records]


async def test_a_transaction_with_an_account_opened_while_reading_comes_once(
    autojump_clock: object, engine: Engine
) -> None:
    sink = await follow_live(engine, 1, channel="transactions", by=principal(1))
    first = engine.ledger.credit(1)
    second = engine.ledger.credit(1)
    engine.hub.publish(second)  # the first is missing: it is being read
    await trio.sleep(engine.ledger.read_delay_s / 2)
    engine.hub.announce_account(engine.ledger.open(9, user_id=1))
    third = engine.ledger.move(1, 9)
    engine.hub.publish(third)
    await settle()
    events = sink.take()
    assert transaction_ids(events) == [record.transaction_id for record in (first, second, third)]
    assert types(events)[0] == "account_added"


# -- ending ---------------------------------------------------------------------------------------------------------


async def test_unsubscribe_is_the_last_word_of_a_live_subscription(autojump_clock: object, engine: Engine) -> None:
    sink = FakeSink()
    subscription = engine.follow(sink, 1, heartbeat_ms=1000)
    await settle()
    sink.take()
    engine.hub.unsubscribe(subscription)
    engine.hub.publish(engine.ledger.credit(1))
    await trio.sleep(10)
    assert sink.frames == []
    engine.hub.unsubscribe(subscription)  # a second time is harmless
    assert engine.hub.followed_accounts() == []


@pytest.mark.parametrize("moment_s", [0.0, 0.0005, 0.0015, 0.0025, 0.1])
async def test_unsubscribe_is_the_last_word_while_catching_up(
    autojump_clock: object, engine: Engine, moment_s: float
) -> None:
    for _ in range(500):
        engine.ledger.credit(1)
    sink = FakeSink()
    subscription = engine.follow(sink, 1, since=since({1: 0}))
    await trio.sleep(moment_s)
    engine.hub.unsubscribe(subscription)
    frames = len(sink.frames)
    await settle()
    assert len(sink.frames) == frames
    assert catching_up(engine) == 0


async def test_unsubscribe_is_the_last_word_when_room_is_made_at_the_same_moment(
    autojump_clock: object, engine: Engine
) -> None:
    sink = FakeSink()
    subscription = engine.follow(sink, 1)
    await settle()
    sink.take()
    sink.room_for = 0
    engine.hub.publish(engine.ledger.credit(1))
    await settle()
    sink.make_room()  # the task is on its way already, and cannot be cancelled any more
    engine.hub.unsubscribe(subscription)
    await settle()
    assert sink.frames == []


async def test_unsubscribe_is_the_last_word_when_the_start_gets_its_room_at_the_same_moment(
    autojump_clock: object, engine: Engine
) -> None:
    sink = FakeSink()
    sink.room_for = 0
    subscription = engine.follow(sink, 1)
    await settle()
    sink.make_room()
    engine.hub.unsubscribe(subscription)
    await settle()
    assert sink.frames == []


async def test_unsubscribing_from_within_a_push_is_survived(autojump_clock: object, engine: Engine) -> None:
    others = [await follow_live(engine, 1) for _ in range(2)]
    sink = await follow_live(engine, 1)
    victims = list(engine.hub._subscriptions)[:2]
    real = sink.push

    def push(frame: bytes) -> bool:
        for victim in victims:
            engine.hub.unsubscribe(victim)
        return real(frame)

    sink.push = push  # type: ignore[method-assign]
    engine.hub.publish(engine.ledger.credit(1))
    engine.hub.publish(engine.ledger.credit(1))
    assert versions(sink.take()) == [1, 2]
    assert [versions(other.take()) for other in others] == [[1], [1]]


async def test_a_subscription_the_daemon_ends_says_why(autojump_clock: object, engine: Engine) -> None:
    sink = FakeSink()
    subscription = engine.follow(sink, 1)
    await settle()
    sink.take()
    engine.hub.close(subscription, ErrorCode.SESSION_EXPIRED)
    assert sink.take() == [{"type": "closed", "code": "session_expired"}]
    engine.hub.close(subscription, ErrorCode.UNAVAILABLE)
    engine.hub.publish(engine.ledger.credit(1))
    await settle()
    assert sink.take() == []


async def test_why_it_ended_is_said_when_there_is_room_unless_it_is_unsubscribed_before(
    autojump_clock: object, engine: Engine
) -> None:
    sinks = [await follow_live(engine, 1), await follow_live(engine, 1), await follow_live(engine, 1)]
    subscriptions = list(engine.hub._subscriptions)
    for sink, subscription in zip(sinks, subscriptions, strict=True):
        sink.room_for = 0
        engine.hub.close(subscription, ErrorCode.SESSION_EXPIRED)
    await settle()
    engine.hub.unsubscribe(subscriptions[1])
    sinks[2].make_room()
    engine.hub.unsubscribe(subscriptions[2])
    sinks[0].make_room()
    sinks[1].make_room()
    await settle()
    assert [types(sink.take()) for sink in sinks] == [["closed"], [], []]
    assert catching_up(engine) == 0


async def test_when_the_epoch_changes_subscriptions_end_so_that_clients_begin_anew(
    autojump_clock: object, engine: Engine
) -> None:
    engine.hub.advance_heads({})
    sink = await follow_live(engine, 1)
    for _ in range(3):
        engine.hub.publish(engine.ledger.credit(1))
    sink.take()
    engine.ledger.epoch = "e2"
    engine.ledger.open(1, balance=5)  # the restored data is younger
    engine.hub.advance_heads({1: 0})
    assert sink.take() == [{"type": "closed", "code": "unavailable"}]
    again = FakeSink()
    engine.follow(again, 1, since=since({1: 3}))
    await settle()
    start, live = again.take()
    assert start["epoch"] == "e2"
    assert start["accounts"][0]["reason"] == "epoch_changed"
    assert live == {"type": "live"}
    engine.hub.publish(engine.ledger.credit(1))
    assert versions(again.take()) == [1]


async def test_when_the_epoch_changes_while_the_snapshot_is_read_it_is_read_again(
    autojump_clock: object, engine: Engine
) -> None:
    engine.ledger.credit(1)
    sink = FakeSink()
    engine.follow(sink, 1, since=since({1: 1}))
    await trio.sleep(engine.ledger.read_delay_s / 2)
    engine.ledger.epoch = "e2"
    await settle()
    start, _ = sink.take()
    assert start["epoch"] == "e2"
    assert start["accounts"][0]["reason"] == "epoch_changed"


async def test_versions_of_an_older_epoch_keep_nobody_from_going_live(autojump_clock: object, engine: Engine) -> None:
    for _ in range(3):
        engine.ledger.credit(1)
    engine.hub.advance_heads({})
    sink = FakeSink()
    engine.ledger.away = True
    engine.follow(sink, 1)
    await settle()
    engine.ledger.epoch = "e2"
    engine.ledger.open(1)
    engine.ledger.away = False
    engine.hub.advance_heads({1: 0})
    await trio.sleep(5)
    assert types(sink.take()) == ["start", "live"]


async def test_the_first_look_at_the_heads_lets_nobody_forget_what_is_missing(
    autojump_clock: object, engine: Engine
) -> None:
    sink = await follow_live(engine, 1)
    sink.room_for = 0
    for _ in range(3):
        engine.hub.publish(engine.ledger.credit(1))
    engine.hub.advance_heads({})
    sink.make_room()
    await settle()
    assert versions(sink.take()) == [1, 2, 3]


async def test_the_first_look_at_the_heads_ends_nothing(autojump_clock: object, engine: Engine) -> None:
    sink = await follow_live(engine, 1)
    engine.hub.advance_heads({1: 0})
    engine.hub.publish(engine.ledger.credit(1))
    assert versions(sink.take()) == [1]


async def test_with_nobody_left_nothing_is_kept(autojump_clock: object, engine: Engine) -> None:
    sink = FakeSink()
    kinds: list[dict[str, Any]] = [
        {"by": principal(1)},
        {"channel": "transactions"},
        {"mode": "latest"},
        {"all": True, "by": OPERATOR},
        {"heartbeat_ms": 1000},
    ]
    subscriptions = [engine.follow(sink, 1, 2, **kind) for kind in kinds]
    await settle()
    for subscription in subscriptions:
        engine.hub.unsubscribe(subscription)
    await trio.sleep(5)
    hub = engine.hub
    kept = [hub._subscriptions, hub._followers, hub.heads, hub._of_user, hub._everything, hub._beating, hub._doubted]
    assert kept == [{}] * len(kept)
    assert catching_up(engine) == 0


# -- new accounts ---------------------------------------------------------------------------------------------------


async def test_a_new_account_of_the_followed_user_is_added(autojump_clock: object, engine: Engine) -> None:
    mine = await follow_live(engine, 1, by=principal(1))
    asked = await follow_live(engine, 1, by=SERVICE, user_id=1)
    named = await follow_live(engine, 1, by=principal(1), account_ids=[1])
    limited = await follow_live(engine, 1, by=principal(1, account_id=1))
    other = await follow_live(engine, 2, by=principal(2))
    engine.hub.announce_account(engine.ledger.open(9, user_id=1, currency="EUR"))
    engine.hub.publish(engine.ledger.credit(9))
    for sink in (mine, asked):
        added, update = sink.take()
        assert added["type"] == "account_added"
        assert (added["account"]["account_id"], added["account"]["version"]) == (9, 0)
        assert (update["account_id"], update["version"]) == (9, 1)
    for sink in (named, limited, other):
        assert sink.take() == []


async def test_an_account_opened_while_the_subscription_is_behind_is_added_before_its_updates(
    autojump_clock: object, engine: Engine
) -> None:
    sink = await follow_live(engine, 1, by=principal(1))
    sink.room_for = 0
    engine.hub.publish(engine.ledger.credit(1))
    engine.hub.announce_account(engine.ledger.open(9, user_id=1))
    engine.hub.publish(engine.ledger.credit(9))
    await settle()
    sink.make_room()
    await settle()
    events = sink.take()
    mine = [event for event in events if event.get("account_id") == 9 or event["type"] == "account_added"]
    assert types(mine) == ["account_added", "update"]
    assert versions(events) == [1]


async def test_an_account_opened_before_the_snapshot_is_read_is_in_it_and_not_added_again(
    autojump_clock: object, engine: Engine
) -> None:
    sink = FakeSink()
    engine.follow(sink, 1, by=principal(1))
    engine.hub.announce_account(engine.ledger.open(9, user_id=1))
    engine.hub.publish(engine.ledger.credit(9))
    await settle()
    start, live = sink.take()
    assert [account["account_id"] for account in start["accounts"]] == [1, 9]
    assert live == {"type": "live"}
    engine.hub.publish(engine.ledger.credit(9))
    assert versions(sink.take(), 9) == [2]


async def test_an_account_opened_while_the_snapshot_is_read_is_added_after_the_start(
    autojump_clock: object, engine: Engine
) -> None:
    sink = FakeSink()
    engine.follow(sink, 1, by=principal(1))
    await trio.sleep(engine.ledger.read_delay_s / 2)
    engine.hub.announce_account(engine.ledger.open(9, user_id=1))
    await settle()
    assert types(sink.take()) == ["start", "account_added", "live"]


async def test_an_account_opened_after_the_callers_list_was_read_is_followed_all_the_same(
    autojump_clock: object, engine: Engine
) -> None:
    engine.hub.announce_account(engine.ledger.open(9, user_id=1))
    engine.hub.announce_account(engine.ledger.open(10, user_id=2))
    engine.hub.publish(engine.ledger.credit(9))
    sink = FakeSink()
    engine.follow(sink, 1, by=principal(1))
    await settle()
    start, _ = sink.take()
    assert [(account["account_id"], account["version"]) for account in start["accounts"]] == [(1, 0), (9, 1)]
    engine.hub.publish(engine.ledger.credit(9))
    assert versions(sink.take(), 9) == [2]


async def test_a_new_account_is_not_remembered_for_long(autojump_clock: object, engine: Engine) -> None:
    for number in range(20, 30):
        engine.hub.announce_account(engine.ledger.open(number, user_id=number % 3))
        await trio.sleep(5)
    assert len(engine.hub._opened_at) <= 4
    assert sum(map(len, engine.hub._opened.values())) == len(engine.hub._opened_at)


async def test_an_account_that_is_followed_already_is_not_added_again(autojump_clock: object, engine: Engine) -> None:
    sink = await follow_live(engine, 1, by=principal(1))
    engine.hub.announce_account(engine.ledger.accounts[1])
    assert sink.take() == []


async def test_more_accounts_than_a_subscription_may_follow_end_it(ledger: FakeLedger, autojump_clock: object) -> None:
    async with open_engine(ledger, accounts_per_subscription_max=2) as engine:
        sink = await follow_live(engine, 1, by=principal(1))
        for account in (9, 10):
            engine.hub.announce_account(ledger.open(account, user_id=1))
    assert [event.get("code") for event in sink.take()] == [None, "too_many_subscriptions"]


async def discover(engine: Engine) -> None:
    """Poll for new accounts."""
    for user in engine.hub.followed_users():
        known = list(engine.hub.known_accounts(user))
        for state in await engine.ledger.unknown_accounts([user], known, 1_000):
            engine.hub.discover_account(state)


async def test_an_account_that_another_daemon_opened_is_followed_from_its_first_version(
    autojump_clock: object, engine: Engine
) -> None:
    mine = await follow_live(engine, 1, by=principal(1))
    engine.ledger.open(9, user_id=1)
    for _ in range(3):
        engine.ledger.credit(9, 50)
    await discover(engine)
    await settle()
    events = mine.take()
    assert types(events) == ["account_added", "update", "update", "update"]
    assert (events[0]["account"]["version"], events[0]["account"]["balance"]) == (0, "0.00")
    assert versions(events, 9) == [1, 2, 3]
    await discover(engine)
    engine.hub.publish(engine.ledger.credit(9))
    assert versions(mine.take(), 9) == [4]


async def test_a_discovered_account_that_another_subscriber_follows_already_is_read_from_its_opening(
    autojump_clock: object, engine: Engine
) -> None:
    mine = await follow_live(engine, 1, by=principal(1))
    engine.ledger.open(9, user_id=1)
    engine.ledger.credit(9)
    await follow_live(engine, 9)
    await discover(engine)
    await settle()
    assert versions(mine.take(), 9) == [1]


async def test_a_discovered_account_with_a_long_history_begins_where_it_is(
    autojump_clock: object, engine: Engine
) -> None:
    mine = await follow_live(engine, 1, by=principal(1))
    engine.ledger.open(9, user_id=1)
    for _ in range(1_001):
        engine.ledger.credit(9, 1)
    await discover(engine)
    await settle()
    (added,) = mine.take()
    assert (added["account"]["version"], added["account"]["balance"]) == (1_001, "10.01")


async def test_an_account_counts_as_known_when_all_who_follow_its_user_know_it(
    autojump_clock: object, engine: Engine
) -> None:
    early = await follow_live(engine, 1, by=principal(1))
    engine.ledger.open(9, user_id=1)
    late = await follow_live(engine, 1, 9, by=principal(1))
    assert engine.hub.known_accounts(1) == {1}
    await discover(engine)
    assert types(early.take()) == ["account_added"]
    assert late.take() == []
    assert engine.hub.known_accounts(1) == {1, 9}


async def test_other_daemons_are_told_of_accounts_opened_here_and_not_of_those_discovered(
    autojump_clock: object, engine: Engine
) -> None:
    told: list[int] = []
    engine.hub.on_account_opened = lambda state: told.append(state.account_id)
    engine.hub.announce_account(engine.ledger.open(9, user_id=1))
    engine.hub.discover_account(engine.ledger.open(10, user_id=1))
    assert told == [9]


# -- heartbeats -----------------------------------------------------------------------------------------------------


async def test_a_heartbeat_comes_after_silence_and_only_then(autojump_clock: object, engine: Engine) -> None:
    sink = FakeSink()
    engine.follow(sink, 1, 2, heartbeat_ms=3000)
    await trio.sleep(0.1)
    sink.take()
    for _ in range(5):
        await trio.sleep(2)
        engine.hub.publish(engine.ledger.credit(1))
    assert types(sink.take()) == ["update"] * 5
    await trio.sleep(3.01)
    assert sink.take() == [{"type": "heartbeat", "versions": {"1": 5, "2": 0}}]
    await trio.sleep(9.01)
    assert types(sink.take()) == ["heartbeat"] * 3


async def test_one_task_serves_all_heartbeats_and_ends_with_the_last(autojump_clock: object, engine: Engine) -> None:
    assert catching_up(engine) == 0
    sinks = [FakeSink() for _ in range(20)]
    subscriptions = [engine.follow(sink, 1, heartbeat_ms=1000 + 100 * number) for number, sink in enumerate(sinks)]
    await settle()
    assert catching_up(engine) == 1
    await trio.sleep(30)
    for number, sink in enumerate(sinks):
        assert types(sink.take()).count("heartbeat") == pytest.approx(30.5 / (1 + number / 10), abs=1)
    for subscription in subscriptions:
        engine.hub.unsubscribe(subscription)
    await trio.sleep(2)
    assert catching_up(engine) == 0
    late = FakeSink()
    engine.follow(late, 1, heartbeat_ms=1000)
    await trio.sleep(1.5)
    assert types(late.take()) == ["start", "live", "heartbeat"]


async def test_a_sink_without_room_gets_no_heartbeat_and_loses_nothing(autojump_clock: object, engine: Engine) -> None:
    sink = FakeSink()
    engine.follow(sink, 1, heartbeat_ms=1000)
    await settle()
    sink.take()
    sink.room_for = 0
    await trio.sleep(5)
    sink.make_room()
    engine.hub.publish(engine.ledger.credit(1))
    assert versions(sink.take()) == [1]


# -- nobody ---------------------------------------------------------------------------------------------------------


async def test_publishing_what_nobody_follows_looks_at_nothing(autojump_clock: object, engine: Engine) -> None:
    engine.hub.publish(None)  # type: ignore[arg-type]
    await follow_live(engine, 2)
    engine.hub.publish(engine.ledger.credit(1))
    assert engine.hub.heads == {2: 0}
