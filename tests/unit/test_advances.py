"""The table of a payment's states, the page that prints it, and the subscriber's side of the channel."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest

from ledgerd_protocol.advances import EVENTS, PAYMENT_STATES, AdvanceEventKind, PaymentStatus, next_states
from ledgerd_protocol.cursor import Cursor, FeedGap
from ledgerd_protocol.events import AdvanceHappened, AdvanceStart, Live, Start
from tests.advance_model import Advance, TooSmall

TEXT = (Path(__file__).parents[2] / "protocol" / "README.md").read_text(encoding="utf-8")
ONE, OTHER = "01890000-0000-7000-8000-000000000001", "01890000-0000-7000-8000-000000000002"


def rows(heading: str) -> list[list[str]]:
    lines = TEXT.partition(f"{heading}\n")[2].splitlines()
    table = lines[1 : next(number for number, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


# -- the table --------------------------------------------------------------------------------------------------------


def test_the_page_prints_the_table_of_states() -> None:
    assert rows("| payment | then | meaning |") == [
        [f"`{state.status}`", ", ".join(f"`{after}`" for after in state.next) or "nothing", state.meaning]
        for state in PAYMENT_STATES
    ]


def test_the_page_prints_what_happens_to_an_advance() -> None:
    assert rows("| happens | meaning |") == [[f"`{kind}`", meaning] for kind, meaning in EVENTS.items()]


def test_the_table_has_every_state_once_and_leads_to_none_that_is_not_there() -> None:
    assert [state.status for state in PAYMENT_STATES] == list(get_args(PaymentStatus))
    assert list(EVENTS) == list(get_args(AdvanceEventKind))
    assert {after for state in PAYMENT_STATES for after in state.next} <= set(get_args(PaymentStatus))
    assert next_states("paid") == next_states("failed") == ()


def test_the_page_names_the_default_schedule() -> None:
    assert re.search(r"100\.00 is\s+8\.34 four times and 8\.33 eight times", TEXT)
    assert [payment.amount for payment in Advance(10_000).payments] == [834] * 4 + [833] * 8
    with pytest.raises(TooSmall):
        Advance(11)


# -- the subscriber ---------------------------------------------------------------------------------------------------


def start(*advances: tuple[str, str, int], epoch: str = "e", **members: Any) -> Start:
    listed = [
        AdvanceStart(advance_id, 7, "resumed" if origin == "resumed" else "snapshot", event, "1.00", "USD")
        for advance_id, origin, event in advances
    ]
    return Start(epoch=epoch, accounts=[], advances=listed, **members)


def happened(advance_id: str, event: int, what: AdvanceEventKind = "due") -> AdvanceHappened:
    return AdvanceHappened(advance_id, 7, event, what, 1, "1.00", "1.00", "USD", None, None, "")


def test_a_cursor_resumes_from_the_last_event_of_each_advance() -> None:
    cursor = Cursor(advances={})
    assert cursor.since() is None
    for event in (start((ONE, "snapshot", 4)), Live(), happened(ONE, 5), happened(OTHER, 1, "requested")):
        assert cursor.apply(event)
    assert cursor.since() == {"epoch": "e", "advances": {ONE: 5, OTHER: 1}}
    again = Cursor("e", advances={ONE: 5, OTHER: 1})
    for event in (start((ONE, "resumed", 6), (OTHER, "resumed", 1)), happened(ONE, 6), Live()):
        assert again.apply(event)
    assert again.advances == {ONE: 6, OTHER: 1}


def test_an_advance_that_is_paid_back_is_forgotten() -> None:
    cursor = Cursor("e", advances={ONE: 3})
    for event in (start((ONE, "resumed", 5)), happened(ONE, 4, "paid"), happened(ONE, 5, "completed"), Live()):
        assert cursor.apply(event)
    assert cursor.since() == {"epoch": "e", "advances": {}}


@pytest.mark.parametrize("event", [3, 4, 6])
def test_an_event_that_is_not_the_next_is_a_gap_and_moves_nothing(event: int) -> None:
    cursor = Cursor(advances={})
    cursor.apply(start((ONE, "snapshot", 4)))
    with pytest.raises(FeedGap, match="again" if event <= 4 else "missing"):
        cursor.apply(happened(ONE, event))
    assert cursor.advances == {ONE: 4}


def test_an_advance_that_nobody_announced_begins_with_its_first_event() -> None:
    cursor = Cursor(advances={})
    cursor.apply(start())
    with pytest.raises(FeedGap, match="missing"):
        cursor.apply(happened(ONE, 2))


def test_live_before_all_that_was_missed_is_a_gap() -> None:
    cursor = Cursor("e", advances={ONE: 1})
    cursor.apply(start((ONE, "resumed", 3)))
    cursor.apply(happened(ONE, 2))
    with pytest.raises(FeedGap, match="live before"):
        cursor.apply(Live())


def test_an_advance_that_resumes_before_where_the_client_was_is_a_gap() -> None:
    cursor = Cursor("e", advances={ONE: 5})
    with pytest.raises(FeedGap, match="never was"):
        cursor.apply(start((ONE, "resumed", 4)))


def test_another_epoch_begins_anew() -> None:
    cursor = Cursor("e", advances={ONE: 5})
    cursor.apply(start((OTHER, "snapshot", 2), epoch="f"))
    assert cursor.since() == {"epoch": "f", "advances": {OTHER: 2}}
