"""What a watch says about where it began."""

from __future__ import annotations

from rich.console import Console

from ledgerd.watch import Lines, LiveTable
from ledgerd_protocol.events import Start


def test_lines_say_that_the_feed_was_resumed_only_when_it_was() -> None:
    said: list[str] = []
    lines = Lines(said.append)
    lines.show(Start("e1", [], position="5"), resumed=False)
    assert said == []
    lines.show(Start("e1", [], position="9"), resumed=True)
    lines.show(Start("e2", [], position="2", reason="epoch_changed"), resumed=True)
    assert said == ["resumed epoch=e1", "begun anew epoch=e2 reason=epoch_changed"]


def test_the_table_says_that_nothing_is_missing_only_when_it_is_not() -> None:
    console = Console(record=True, width=120, height=30)
    table = LiveTable(console, "balances")
    table.show(Start("e1", [], position="9"), resumed=True)
    table.show(Start("e2", [], position="2", reason="position_unknown"), resumed=True)
    console.print(table._render())
    text = console.export_text()
    assert "resumed after 0 changes" in text
    assert "begun anew after 0 changes (position_unknown)" in text
