"""Cursors: signed, bound to their list, its filters, the caller's view and the database, and good for a day."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledgerd.engine.states import LedgerFacts
from ledgerd.gateway.cursors import Cursors
from ledgerd_protocol.errors import ErrorCode, LedgerError


def facts(epoch: str = "e1", key: bytes = b"k" * 32) -> LedgerFacts:
    return LedgerFacts(epoch=epoch, deployment=1, currencies={}, cursor_key=key)


def ago(**passed: float) -> str:
    return (datetime.now(UTC) - timedelta(**passed)).isoformat(timespec="microseconds").replace("+00:00", "Z")


CURSORS = Cursors(facts)
FILTERS: list[Any] = [11, None, "2026-03-07T00:00:00.000000Z", "newest_first", 1, None, False]
VALUES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=50) | st.binary(max_size=300)


def refused(cursors: Cursors, cursor: str, method: str = "a_list", filters: list[Any] = FILTERS) -> bool:
    with pytest.raises(LedgerError) as caught:
        cursors.read(method, filters, cursor)
    return caught.value.code is ErrorCode.INVALID_CURSOR


@given(st.lists(VALUES, max_size=8))
def test_a_cursor_gives_back_its_position(values: list[Any]) -> None:
    position = [*values, ago()]
    cursor = CURSORS.write("a_list", FILTERS, position)
    assert CURSORS.read("a_list", FILTERS, cursor) == position
    assert set(cursor) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@given(st.text(max_size=200))
def test_text_that_is_no_cursor_is_refused(text: str) -> None:
    assert refused(CURSORS, text)


@given(st.integers(0, 1000), st.integers(1, 255))
def test_a_cursor_of_which_one_byte_is_another_is_refused(place: int, change: int) -> None:
    cursor = CURSORS.write("a_list", FILTERS, [5, b"bytes", "text", ago()])
    data = bytearray(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    data[place % len(data)] ^= change
    assert refused(CURSORS, base64.urlsafe_b64encode(data).rstrip(b"=").decode())


def test_a_cursor_cut_short_or_made_longer_is_refused() -> None:
    cursor = CURSORS.write("a_list", FILTERS, [5, ago()])
    for length in range(len(cursor)):
        assert refused(CURSORS, cursor[:length])
    assert refused(CURSORS, cursor + "AAAA")


@pytest.mark.parametrize("place", range(len(FILTERS)))
def test_a_cursor_with_any_filter_changed_is_refused(place: int) -> None:
    cursor = CURSORS.write("a_list", FILTERS, [5, ago()])
    others = list(FILTERS)
    others[place] = "other"
    assert refused(CURSORS, cursor, filters=others)


def test_a_cursor_of_another_list_or_of_another_database_is_refused() -> None:
    cursor = CURSORS.write("a_list", FILTERS, [5, ago()])
    assert refused(CURSORS, cursor, method="b_list")
    assert refused(Cursors(lambda: facts(key=b"x" * 32)), cursor)


def test_a_restored_database_outdates_its_cursors() -> None:
    epoch = "before"
    cursors = Cursors(lambda: facts(epoch))
    cursor = cursors.write("a_list", FILTERS, [5, ago()])
    assert cursors.read("a_list", FILTERS, cursor)[0] == 5
    epoch = "after"
    assert refused(cursors, cursor)


def test_a_cursor_ends_a_day_after_the_first_page() -> None:
    assert CURSORS.read("a_list", FILTERS, CURSORS.write("a_list", FILTERS, [5, ago(hours=23.99)]))[0] == 5
    assert refused(CURSORS, CURSORS.write("a_list", FILTERS, [5, ago(hours=24, seconds=1)]))


def test_a_cursor_of_a_daemon_whose_clock_is_ahead_is_taken() -> None:
    assert CURSORS.read("a_list", FILTERS, CURSORS.write("a_list", FILTERS, [5, ago(minutes=-5)]))[0] == 5
