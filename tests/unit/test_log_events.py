"""The events of the log are a contract: well named, free of telling members, and in LOGS.md as they are in the code."""

from __future__ import annotations

import re
from pathlib import Path

from ledgerd.masking import SECRET_MEMBERS
from tests.unit.log_events import LEVELS, events, said

LOGS = Path(__file__).parents[2] / "systemd" / "monitoring" / "LOGS.md"
LINE = re.compile(r"\| `(?P<event>\w+)` \| (?P<levels>[a-z, ]+) \| (?P<meaning>.+) \| (?P<members>.*) \|")
OTHERS_WORDS = {
    "name",
    "reference",
    "request",
    "result",
    "reply",
    "header",
    "headers",
    "cookie",
    "frame",
    "sql",
    "query",
}
"""Members that would hold what somebody else wrote. A signal's name is ours."""


def documented() -> dict[str, tuple[set[str], set[str]]]:
    found: dict[str, tuple[set[str], set[str]]] = {}
    for line in LOGS.read_text(encoding="utf-8").splitlines():
        if match := LINE.fullmatch(line):
            assert match["event"] not in found, match["event"]
            assert match["meaning"].endswith((".", "?")), line
            found[match["event"]] = (set(match["levels"].split(", ")), set(re.findall(r"`(\w+)`", match["members"])))
    return found


def test_every_event_is_documented_with_its_levels_and_members_and_no_other():
    assert documented() == events()


def test_events_are_named_in_snake_case():
    assert [line.event for line in said() if not re.fullmatch(r"[a-z]+(_[a-z]+)*", line.event)] == []


def test_no_event_has_a_member_that_would_be_masked_or_hold_what_somebody_else_wrote():
    telling = [
        (line.where, line.members & (SECRET_MEMBERS | OTHERS_WORDS)) for line in said() if line.event != "signal"
    ]
    assert [(where, members) for where, members in telling if members] == []


def test_no_module_logs_but_by_the_names_that_are_looked_for():
    """What is called otherwise would not be documented: `logging` itself, or a logger under another name."""
    root = LOGS.parents[2] / "ledgerd"
    loggers = {
        (path.name, name)
        for path in root.rglob("*.py")
        for name in re.findall(r"^(\w+) = structlog\.get_logger", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert {name for _, name in loggers} == {"log"}
    calls = re.compile(rf"\blogging\.({'|'.join(LEVELS)}|getLogger\([^)]*\)\.({'|'.join(LEVELS)}))\(")
    assert [path for path in root.rglob("*.py") if calls.search(path.read_text(encoding="utf-8"))] == []
