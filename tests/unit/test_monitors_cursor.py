"""A cursor on the channel of monitors: most versions are not shown; those that are may not be lost or come twice."""

from __future__ import annotations

import pytest
from msgspec import UNSET

from ledgerd_protocol.cursor import Cursor, FeedGap
from ledgerd_protocol.events import AccountStart, Event, Heartbeat, Live, MonitorCrossed, Start
from ledgerd_protocol.feed import HEARTBEAT_MS, Feed


def start(version: int, origin: str = "snapshot", *, epoch: str = "e1") -> Start:
    return Start(epoch, [AccountStart(7, origin, version, "0.00", "0.00", "0.00", "USD")])  # type: ignore[arg-type]


def crossed(version: int, monitor: int = 1, *, more: bool = False, position: str | None = None) -> MonitorCrossed:
    return MonitorCrossed(
        monitor, 7, version, "1.00", "USD", "id", "2026", below="2.00",
        more=more or UNSET, position=UNSET if position is None else position,
    )  # fmt: skip


def cursor(*events: Event, everything: bool = False) -> Cursor:
    made = Cursor(crossings=True, everything=everything)
    for event in events:
        assert made.apply(event)
    return made


def test_versions_without_a_crossing_are_no_gap():
    assert cursor(start(41), Live(), crossed(45), crossed(60)).since() == {"epoch": "e1", "versions": {7: 60}}


@pytest.mark.parametrize("version", [60, 59, 41])
def test_a_version_that_was_told_does_not_come_again(version: int):
    made = cursor(start(41), Live(), crossed(60))
    with pytest.raises(FeedGap):
        made.apply(crossed(version, monitor=2))
    assert made.versions == {7: 60}


def test_a_crossing_before_the_accounts_start_is_a_gap():
    with pytest.raises(FeedGap):
        Cursor(crossings=True).apply(crossed(1))


def test_live_says_that_a_resumed_account_is_where_it_stood():
    made = Cursor("e1", {7: 41}, crossings=True)
    for event in (start(90, "resumed"), crossed(50), Live()):
        made.apply(event)
    assert made.versions == {7: 90}


def test_heartbeats_move_it_on_and_never_back():
    made = cursor(start(41), Live(), crossed(60), Heartbeat({7: 75}), Heartbeat({7: 60}), Heartbeat({99: 5}))
    assert made.versions == {7: 75}
    with pytest.raises(FeedGap):
        made.apply(crossed(70))


def test_a_version_is_delivered_only_with_the_last_of_its_crossings():
    made = cursor(start(41), Live(), crossed(42, 1, more=True), crossed(42, 2, more=True))
    assert made.versions == {7: 41}
    made.apply(crossed(42, 3))
    assert made.versions == {7: 42}


def test_what_came_of_a_version_before_the_connection_was_lost_is_dropped_when_it_comes_again():
    made = cursor(start(41), Live(), crossed(42, 1, more=True))
    made.apply(start(43, "resumed"))
    assert [made.apply(event) for event in (crossed(42, 1, more=True), crossed(42, 2))] == [False, True]
    assert made.versions == {7: 42}


def test_the_last_crossing_of_a_version_may_be_gone_with_its_monitor_when_it_is_resumed():
    made = cursor(start(41), Live(), crossed(42, 1, more=True))
    made.apply(start(42, "resumed"))
    assert not made.apply(crossed(42, 1))
    assert made.versions == {7: 42}


def test_the_same_version_of_another_epoch_is_another_version():
    made = cursor(start(41), Live(), crossed(42, 1, more=True))
    made.apply(start(41, epoch="e2"))
    assert made.apply(crossed(42, 1))


def test_everything_is_resumed_from_its_position_and_what_comes_again_is_dropped():
    made = cursor(Start("e1", [], position="5"), Live(), crossed(42, 1, more=True, position="6"), everything=True)
    assert made.since() == {"epoch": "e1", "position": "6"}
    again = (crossed(42, 1, more=True), crossed(42, 2), crossed(42, 2), crossed(41), crossed(43))
    assert [made.apply(event) for event in again] == [False, True, False, False, True]
    made.apply(Heartbeat({}, position="9"))
    assert made.since() == {"epoch": "e1", "position": "9"}


def test_a_feed_of_monitors_asks_for_heartbeats_unless_it_is_told_which():
    async def attach(feed: Feed) -> None: ...

    def asked(channel: str, **options: int) -> object:
        return Feed(channel, options, attach, events_max=1).params()["options"].get("heartbeat_ms")

    assert asked("monitors") == HEARTBEAT_MS
    assert asked("monitors", heartbeat_ms=1_000) == 1_000
    assert asked("balances") is None
