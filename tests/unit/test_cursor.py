"""Where a subscriber stands: what moves it on, and what it must refuse."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from ledgerd_protocol.cursor import Cursor, FeedGap
from ledgerd_protocol.events import AccountAdded, AccountStart, Heartbeat, Live, Start, TransactionEvent, Update
from ledgerd_protocol.results import Entry, Transaction


def account(account_id: int, version: int, origin: str = "snapshot") -> AccountStart:
    return AccountStart(account_id, origin, version, "0.00", "0.00", "0.00", "USD")


def update(account_id: int, version: int) -> Update:
    money = ("1.00", "0.00", "1.00", "USD", "1.00", "0.00")
    return Update(account_id, version, *money, "id", "credit", "2026-01-01T00:00:00.000000Z")


def transaction(*versions: tuple[int, int]) -> TransactionEvent:
    entries = [Entry(number, "debit", "1.00", "0.00", "1.00", "0.00", "1.00", version) for number, version in versions]
    made = Transaction("id", "transfer", "posted", "1.00", "USD", 1, 2, entries, None, None, None, "2026")
    return TransactionEvent(made)


def test_a_cursor_that_saw_nothing_has_nothing_to_resume_from():
    assert Cursor().since() is None


def test_a_cursor_resumes_from_the_epoch_and_every_version_it_saw():
    cursor = Cursor()
    for event in (Start("e1", [account(7, 41)], more=True), Start("e1", [account(8, 3)]), Live(), update(7, 42)):
        cursor.apply(event)
    assert cursor.since() == {"epoch": "e1", "versions": {7: 42, 8: 3}}


def test_a_transaction_moves_every_followed_side_and_no_other():
    cursor = Cursor("e1", {7: 1, 8: 1})
    cursor.apply(transaction((7, 2), (8, 2)))
    cursor.apply(transaction((7, 3), (99, 50)))
    assert cursor.versions == {7: 3, 8: 2}


def test_a_transaction_with_one_side_out_of_order_moves_nothing():
    cursor = Cursor("e1", {7: 1, 8: 1})
    with pytest.raises(FeedGap) as gap:
        cursor.apply(transaction((7, 2), (8, 3)))
    assert (gap.value.account_id, gap.value.expected, gap.value.received) == (8, 2, 3)
    assert cursor.versions == {7: 1, 8: 1}


def test_a_refused_update_moves_nothing():
    cursor = Cursor("e1", {7: 41})
    for version in (41, 43, 0):
        with pytest.raises(FeedGap):
            cursor.apply(update(7, version))
    assert cursor.versions == {7: 41}


def test_a_new_account_begins_where_it_is_added():
    cursor = Cursor("e1", {7: 41})
    cursor.apply(AccountAdded(account(9, 0)))
    cursor.apply(update(9, 1))
    assert cursor.versions == {7: 41, 9: 1}


@pytest.mark.parametrize(("known", "resumed_at"), [({}, 5), ({7: 6}, 5)])
def test_an_account_cannot_be_resumed_where_the_client_never_was(known: dict[int, int], resumed_at: int):
    with pytest.raises(FeedGap):
        Cursor("e1", known).apply(Start("e1", [account(7, resumed_at, "resumed")]))


def test_a_promise_of_an_interrupted_start_is_dropped_when_a_snapshot_replaces_it():
    cursor = Cursor("e1", {7: 41})
    cursor.apply(Start("e1", [account(7, 45, "resumed")], more=True))
    cursor.apply(Start("e2", [account(7, 2)]))
    cursor.apply(Live())
    assert cursor.since() == {"epoch": "e2", "versions": {7: 2}}


def test_a_heartbeat_moves_nothing():
    cursor = Cursor("e1", {7: 41})
    cursor.apply(Heartbeat({7: 41}))
    assert cursor.versions == {7: 41}


def test_a_cursor_of_everything_checks_from_the_first_sight_of_an_account():
    cursor = Cursor(everything=True)
    for event in (Start("e1", [], position="5"), update(7, 12), update(7, 13)):
        assert cursor.apply(event)
    with pytest.raises(FeedGap):
        cursor.apply(update(7, 15))


def test_a_cursor_of_everything_resumes_from_its_position_and_knows_what_comes_again():
    cursor = Cursor(everything=True)
    assert cursor.since() is None
    for event in (Start("e1", [], position="5"), replace(update(7, 12), position="6"), update(8, 1)):
        cursor.apply(event)
    assert cursor.since() == {"epoch": "e1", "position": "6"}
    cursor.apply(Start("e1", [], position="6"))
    assert not cursor.apply(replace(update(7, 12), position="6"))
    assert cursor.apply(update(7, 13))
    with pytest.raises(FeedGap):
        cursor.apply(update(8, 3))


def test_a_transaction_comes_again_as_a_whole():
    cursor = Cursor("e1", {7: 2, 8: 4}, "6", everything=True)
    cursor.apply(Start("e1", [], position="6"))
    assert not cursor.apply(transaction((7, 2), (8, 4)))
    assert not cursor.apply(transaction((7, 1), (9, 1))), "of before the first sight of 7"
    assert cursor.apply(transaction((7, 3), (9, 2)))
    assert cursor.versions == {7: 3, 8: 4, 9: 2}


@pytest.mark.parametrize("reason", ["epoch_changed", "position_unknown"])
def test_a_cursor_of_everything_that_could_not_resume_compares_with_nothing_older(reason: str):
    cursor = Cursor("e1", {7: 12}, "6", everything=True)
    cursor.apply(Start("e2", [], position="9", reason=reason))
    assert cursor.apply(update(7, 3))
    assert cursor.since() == {"epoch": "e2", "position": "9"}
