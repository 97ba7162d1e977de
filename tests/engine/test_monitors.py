"""Monitors: what crosses one, how the channel tells it exactly once, and how a daemon knows which are set."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any, Literal

import pytest
import structlog
import trio
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ledgerd.engine.commands import Record
from ledgerd.engine.monitors import PAGE, POLL_S, Monitors, crosses
from ledgerd.engine.states import MonitorState
from ledgerd.metrics import CATCH_UPS, MONITOR_CROSSINGS, MONITORS
from ledgerd_protocol.errors import LedgerError
from ledgerd_protocol.messages import Since
from tests.engine.fake_ledger import (
    OPERATOR,
    Engine,
    FakeLedger,
    FakeSink,
    Fault,
    open_engine,
    principal,
    settle,
    transfer,
)

Events = list[dict[str, Any]]
Direction = Literal["below", "above"]


@pytest.fixture
def ledger() -> FakeLedger:
    ledger = FakeLedger()
    for account in range(1, 5):
        ledger.open(account, balance=10_000)
    return ledger


@pytest.fixture
async def engine(ledger: FakeLedger, autojump_clock: object) -> AsyncIterator[Engine]:
    async with open_engine(ledger, resume_max=1_000) as engine:
        yield engine


def a_monitor(number: int, account: int, direction: Direction, amount: int, *, after_version: int = 0) -> MonitorState:
    """A monitor as the database has it; its revision is its number."""
    return MonitorState(
        monitor_id=number,
        account_id=account,
        user_id=account,
        currency="USD",
        scale=2,
        direction=direction,
        amount=amount,
        after_version=after_version,
        label=None,
        set_by=account,
        created_at="then",
        removed=False,
        revision=number,
    )


def below(engine: Engine, number: int, amount: int, account: int = 1) -> MonitorState:
    """A monitor that was set here, now."""
    state = a_monitor(number, account, "below", amount, after_version=engine.ledger.version(account))
    engine.hub.learn_monitor(state)
    return state


async def follow(engine: Engine, *accounts: int, **more: Any) -> FakeSink:
    """A sink whose subscription to monitors is live; its first events are taken."""
    sink = FakeSink()
    engine.follow(sink, *accounts, channel="monitors", **more)
    await settle()
    assert sink.take()[-1] == {"type": "live"}
    return sink


def crossings(events: Events) -> list[tuple[int, int]]:
    """Monitor and version of what was told."""
    return [(event["monitor_id"], event["version"]) for event in events if event["type"] == "monitor"]


def debit(engine: Engine, amount: int, account: int = 1) -> Record:
    """Money leaves an account, committed by a lane of ours."""
    record = engine.ledger.post([("debit", account, -amount)], kind="debit")
    engine.hub.publish(record)
    return record


def logged(caught: list[Any]) -> list[tuple[int, int]]:
    return [(event["monitor_id"], event["version"]) for event in caught if event["event"] == "monitor_crossed"]


# -- what crosses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("direction", "before", "after", "crossed"),
    [
        ("below", 101, 99, True),
        ("below", 100, 99, True),
        ("below", 101, 100, False),
        ("below", 99, 98, False),
        ("below", 99, 101, False),
        ("above", 99, 101, True),
        ("above", 100, 101, True),
        ("above", 99, 100, False),
        ("above", 101, 102, False),
        ("above", 101, 99, False),
    ],
)
def test_a_crossing_leaves_the_amount_itself_behind(
    direction: Direction, before: int, after: int, crossed: bool
) -> None:
    assert crosses(direction, 100, before, after) is crossed


balances = st.integers(-50, 50)


@given(amount=st.integers(0, 50), walk=st.lists(balances, min_size=2))
def test_along_any_walk_a_monitor_is_crossed_exactly_where_its_side_changes(amount: int, walk: list[int]) -> None:
    steps = list(pairwise(walk))
    assert [crosses("below", amount, *step) for step in steps] == [
        (step[0] < amount, step[1] < amount) == (False, True) for step in steps
    ]
    assert [crosses("above", amount, *step) for step in steps] == [
        (step[0] > amount, step[1] > amount) == (False, True) for step in steps
    ]


@given(amount=st.integers(0, 50), before=balances, after=balances)
def test_no_change_crosses_both_ways_and_none_at_all_crosses_nothing(amount: int, before: int, after: int) -> None:
    assert not (crosses("below", amount, before, after) and crosses("above", amount, before, after))
    assert not crosses("below", amount, after, after)
    assert not crosses("above", amount, after, after)


async def test_a_change_of_what_is_held_crosses_nothing(autojump_clock: object, engine: Engine) -> None:
    below(engine, 1, 10_000)
    record = debit(engine, 1)
    held = replace(record.sides[0], version=2, balance_change=0, held_change=5_000, held=5_000, available=0)
    assert engine.hub.monitors.crossed_by(record.sides[0])
    assert engine.hub.monitors.crossed_by(held) == []


# -- the channel ------------------------------------------------------------------------------------------------------


async def test_a_crossing_is_told_once_and_what_stays_below_is_not(autojump_clock: object, engine: Engine) -> None:
    below(engine, 5, 5_000)
    sink = await follow(engine, 1, 2)
    record = [debit(engine, 2_500) for _ in range(3)][2]
    assert sink.take() == [
        {
            "type": "monitor", "monitor_id": 5, "account_id": 1, "version": 3, "balance": "25.00", "currency": "USD",
            "transaction_id": record.transaction_id, "created_at": "now", "below": "50.00",
        }
    ]  # fmt: skip
    debit(engine, 100)
    debit(engine, -5_000)
    assert sink.take() == []
    debit(engine, 5_000)
    assert crossings(sink.take()) == [(5, 6)]


async def test_it_begins_as_the_other_channels_do(autojump_clock: object, engine: Engine) -> None:
    sink = FakeSink()
    engine.follow(sink, 1, channel="monitors")
    await settle()
    start, live = sink.take()
    assert (start["type"], start["epoch"], start["accounts"][0]["from"]) == ("start", "e1", "snapshot")
    assert live == {"type": "live"}


async def test_mode_latest_is_not_for_monitors(autojump_clock: object, engine: Engine) -> None:
    with pytest.raises(LedgerError):
        engine.follow(FakeSink(), 1, channel="monitors", mode="latest")


async def test_one_change_may_cross_several_and_all_but_the_last_are_marked(
    autojump_clock: object, engine: Engine
) -> None:
    for number in (3, 1, 2):
        below(engine, number, 5_000 + number)
    sink = await follow(engine, 1)
    debit(engine, 9_000)
    events = sink.take()
    assert crossings(events) == [(1, 1), (2, 1), (3, 1)]
    assert [event.get("more", False) for event in events] == [True, True, False]


async def test_a_sink_without_room_in_the_middle_of_a_version_gets_the_rest_of_it_once(
    autojump_clock: object, engine: Engine
) -> None:
    for number in range(1, 6):
        below(engine, number, 5_000 + number)
    sink = await follow(engine, 1)
    sink.room_for = 2
    debit(engine, 9_000)
    debit(engine, -9_000)
    debit(engine, 9_000)
    await settle()
    events = sink.take()
    for room in (1, 3, None):
        sink.make_room(room)
        await settle()
        events += sink.take()
    assert crossings(events) == [(number, version) for version in (1, 3) for number in range(1, 6)]
    assert [event.get("more", False) for event in events] == [True, True, True, True, False] * 2


async def test_both_sides_of_a_transfer_may_cross(autojump_clock: object, engine: Engine) -> None:
    below(engine, 1, 5_000)
    engine.hub.learn_monitor(a_monitor(2, 2, "above", 15_000))
    sink = await follow(engine, 1, 2)
    engine.hub.publish(engine.ledger.move(1, 2, 6_000))
    assert crossings(sink.take()) == [(1, 1), (2, 1)]


async def test_a_change_from_before_the_monitor_was_set_crosses_nothing_in_a_resume_either(
    autojump_clock: object, engine: Engine
) -> None:
    debit(engine, 9_000)
    debit(engine, -9_000)
    below(engine, 1, 5_000)
    debit(engine, 9_000)
    sink = FakeSink()
    engine.follow(sink, 1, channel="monitors", since=Since(epoch="e1", versions={1: 0}))
    await settle()
    events = sink.take()
    assert [event["type"] for event in events] == ["start", "monitor", "live"]
    assert crossings(events) == [(1, 3)]


async def test_a_removed_monitor_tells_nothing_any_more(autojump_clock: object, engine: Engine) -> None:
    state = below(engine, 1, 5_000)
    sink = await follow(engine, 1)
    engine.hub.learn_monitor(replace(state, removed=True, revision=2))
    debit(engine, 9_000)
    assert sink.take() == []
    engine.follow(sink, 1, channel="monitors", since=Since(epoch="e1", versions={1: 0}))
    await settle()
    assert crossings(sink.take()) == []


async def test_a_resume_tells_every_missed_crossing_once_and_then_goes_live(
    autojump_clock: object, engine: Engine
) -> None:
    below(engine, 1, 5_000)
    for _ in range(150):
        debit(engine, 9_000)
        debit(engine, -9_000)
    sink = FakeSink()
    engine.follow(sink, 1, channel="monitors", since=Since(epoch="e1", versions={1: 101}))
    await settle()
    debit(engine, 9_000)
    events = sink.take()
    assert events[0]["accounts"][0]["from"] == "resumed"
    assert crossings(events) == [(1, version) for version in range(103, 302, 2)]
    assert [event["type"] for event in events].index("live") == len(events) - 2


async def test_where_no_monitor_looks_nothing_is_read_from_the_table(autojump_clock: object, engine: Engine) -> None:
    sink = await follow(engine, 1, heartbeat_ms=1_000)
    before = CATCH_UPS._value.get()
    for _ in range(5):
        engine.ledger.credit(1)  # by another daemon: our next one is not the next version
        debit(engine, 1)
    assert CATCH_UPS._value.get() == before
    engine.ledger.credit(1)
    engine.hub.advance_heads({1: 11})
    await trio.sleep(3)
    assert {"type": "heartbeat", "versions": {"1": 11}} in sink.take()
    assert engine.ledger.reads == []


async def test_what_another_daemon_committed_is_read_and_told_in_order(autojump_clock: object, engine: Engine) -> None:
    below(engine, 1, 5_000)
    sink = await follow(engine, 1)
    engine.ledger.move(1, 2, 9_000)  # elsewhere
    engine.ledger.move(2, 1, 9_000)
    debit(engine, 9_000)
    await settle()
    assert crossings(sink.take()) == [(1, 1), (1, 3)]
    engine.ledger.move(2, 1, 9_000)
    engine.ledger.move(1, 2, 9_000)
    engine.hub.advance_heads({1: 5})
    await settle()
    assert crossings(sink.take()) == [(1, 5)]


async def test_heartbeats_carry_the_versions_that_were_passed_in_silence(
    autojump_clock: object, engine: Engine
) -> None:
    below(engine, 1, 5_000)
    sink = await follow(engine, 1, heartbeat_ms=1_000)
    for _ in range(7):
        debit(engine, 1)
    await trio.sleep(2.5)
    assert sink.take()[0] == {"type": "heartbeat", "versions": {"1": 7}}


async def test_an_account_opened_later_is_followed(autojump_clock: object, engine: Engine) -> None:
    sink = await follow(engine, 1, by=principal(1))
    engine.hub.announce_account(engine.ledger.open(9, user_id=1, balance=10_000))
    below(engine, 1, 5_000, account=9)
    debit(engine, 9_000, account=9)
    added, told = sink.take()
    assert (added["type"], crossings([told])) == ("account_added", [(1, 1)])


async def test_operators_follow_the_crossings_of_every_account_from_a_position(
    autojump_clock: object, engine: Engine
) -> None:
    for number in (1, 2):
        below(engine, number, 5_000 + number)
    engine.hub.learn_monitor(a_monitor(3, 4, "above", 15_000))
    sink = await follow(engine, by=OPERATOR, all=True, heartbeat_ms=1_000)
    debit(engine, 9_000)
    engine.ledger.move(3, 4, 6_000)  # by another daemon
    engine.hub.look()
    await settle()
    events = sink.take()
    assert crossings(events) == [(1, 1), (2, 1), (3, 1)]
    assert [event.get("more", False) for event in events] == [True, False, False]
    assert events[0]["position"] == "0"
    await trio.sleep(3)
    (beat, *_) = sink.take()
    assert beat == {"type": "heartbeat", "versions": {}, "position": "2"}


async def test_followers_of_balances_are_told_nothing_of_monitors(autojump_clock: object, engine: Engine) -> None:
    below(engine, 1, 5_000)
    sink = FakeSink()
    engine.follow(sink, 1)
    await settle()
    sink.take()
    debit(engine, 9_000)
    assert [event["type"] for event in sink.take()] == ["update"]


# -- the log ----------------------------------------------------------------------------------------------------------


async def test_what_we_commit_is_logged_and_counted_whether_anybody_follows_or_not(
    autojump_clock: object, engine: Engine
) -> None:
    below(engine, 7, 5_000)
    before = MONITOR_CROSSINGS._value.get()
    with structlog.testing.capture_logs() as caught:
        debit(engine, 1_000)
        record = debit(engine, 8_000)
        debit(engine, 10)
    assert [event for event in caught if event["event"] == "monitor_crossed"] == [
        {
            "event": "monitor_crossed", "log_level": "info", "monitor_id": 7, "account_id": 1, "version": 2,
            "balance_minor": 1_000, "currency": "USD", "direction": "below", "amount_minor": 5_000,
            "transaction_id": record.transaction_id,
        }
    ]  # fmt: skip
    assert MONITOR_CROSSINGS._value.get() == before + 1


async def test_what_another_daemon_committed_is_told_and_not_logged(autojump_clock: object, engine: Engine) -> None:
    below(engine, 1, 5_000)
    sink = await follow(engine, 1)
    with structlog.testing.capture_logs() as caught:
        engine.ledger.move(1, 2, 9_000)
        engine.hub.advance_heads({1: 1})
        await settle()
    assert crossings(sink.take()) == [(1, 1)]
    assert logged(caught) == []


async def test_a_command_that_is_sent_again_fires_nothing_again(autojump_clock: object, engine: Engine) -> None:
    below(engine, 1, 5_000)
    sink = await follow(engine, 1)
    engine.start_lane()
    sent = [transfer(1, 2, "90.00", transaction_id="018f0000-0000-7000-8000-000000000001") for _ in range(3)]
    with structlog.testing.capture_logs() as caught:
        for unit in sent:
            await engine.send(unit)
            await engine.answers(unit)
    assert logged(caught) == crossings(sink.take()) == [(1, 1)]


@pytest.mark.parametrize("own_are_replays", [False, True])
async def test_a_commit_whose_answer_was_lost_is_logged_once(
    autojump_clock: object, engine: Engine, own_are_replays: bool
) -> None:
    engine.ledger.own_are_replays = own_are_replays
    below(engine, 1, 5_000)
    sink = await follow(engine, 1)
    id_ = "018f0000-0000-7000-8000-000000000001"
    with structlog.testing.capture_logs() as caught:
        for _ in range(2):  # the second time, the lost call is answered with a replay of what was logged before
            engine.start_lane("dying", 0.01, Fault.LOST_AFTER_COMMIT)
            unit = transfer(1, 2, "90.00", transaction_id=id_)
            await engine.send(unit)
            await settle()
            engine.start_lane()
            await engine.answers(unit)
            await settle()
    assert logged(caught) == crossings(sink.take()) == [(1, 1)]


# -- knowing what is set ----------------------------------------------------------------------------------------------


class Table:
    """The monitors as the database has them."""

    def __init__(self, *states: MonitorState) -> None:
        self.states = {state.monitor_id: state for state in states}
        self.asked: list[int] = []

    async def monitors_since(self, revision: int, limit: int, *, removed: bool) -> list[MonitorState]:
        await trio.lowlevel.checkpoint()
        self.asked.append(revision)
        found = sorted(self.states.values(), key=lambda state: state.revision)
        return [state for state in found if state.revision > revision and (removed or not state.removed)][:limit]

    def change(self, number: int, **members: Any) -> MonitorState:
        revision = 1 + max(state.revision for state in self.states.values())
        self.states[number] = replace(self.states[number], revision=revision, **members)
        return self.states[number]


def known(monitors: Monitors, account: int = 1) -> list[int]:
    return sorted(monitors._of_account.get(account, {}))


async def test_all_that_are_set_are_known_before_it_has_started_however_many_pages(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    table = Table(*(a_monitor(number, 1, "below", number) for number in range(1, 2 * PAGE + 2)))
    table.change(2, removed=True)
    monitors = Monitors()
    await nursery.start(monitors.run, table)
    assert len(monitors) == 2 * PAGE
    assert 2 not in known(monitors)
    assert MONITORS._value.get() == 2 * PAGE


async def test_what_other_daemons_set_and_remove_is_known_within_two_seconds(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    table = Table(a_monitor(1, 1, "below", 100))
    monitors = Monitors()
    await nursery.start(monitors.run, table)
    table.states[2] = a_monitor(2, 1, "above", 100)
    table.change(1, removed=True)
    await trio.sleep(2 * POLL_S)
    assert known(monitors) == [2]
    table.change(2, removed=True)
    await trio.sleep(2 * POLL_S)
    assert (known(monitors), len(monitors), monitors.looks_from(1)) == ([], 0, None)


async def test_a_late_word_of_one_that_was_removed_since_does_not_bring_it_back(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    table = Table(a_monitor(1, 1, "below", 100))
    monitors = Monitors()
    await nursery.start(monitors.run, table)
    made = table.states[2] = a_monitor(2, 1, "above", 100)
    table.change(2, removed=True)
    await trio.sleep(2 * POLL_S)
    monitors.learn(made)
    assert known(monitors) == [1]


async def test_a_new_generation_begins_with_what_its_database_has(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    monitors = Monitors()
    async with trio.open_nursery() as generation:
        await generation.start(monitors.run, Table(a_monitor(8, 1, "below", 100), a_monitor(9, 2, "below", 100)))
        generation.cancel_scope.cancel()
    await nursery.start(monitors.run, Table(a_monitor(3, 1, "below", 100)))  # restored: its revisions begin earlier
    assert (known(monitors), known(monitors, 2), len(monitors)) == ([3], [], 1)


async def test_there_is_room_until_the_ledger_has_as_many_as_it_may(ledger: FakeLedger, autojump_clock: object) -> None:
    async with open_engine(ledger, monitors_max=2) as engine:
        first = below(engine, 1, 100)
        below(engine, 1, 100)  # the same again
        assert engine.hub.has_room_for_monitor()
        below(engine, 2, 200)
        assert not engine.hub.has_room_for_monitor()
        engine.hub.learn_monitor(replace(first, removed=True, revision=3))
        assert engine.hub.has_room_for_monitor()
