"""The log events of the daemon, read from its source: every call on a `log`, with its level and its members."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

ROOT = Path(__file__).parents[2] / "ledgerd"
LEVELS = {
    "debug": "debug",
    "info": "info",
    "warning": "warning",
    "error": "error",
    "exception": "error",
    "critical": "critical",
}

CHOSEN = {"tell": ("info", "warning")}
"""Names under which a function of the log is called whose level is chosen at run time."""

_PRINCIPAL = ("token_id", "user_id")
_BY = ("by_token_id", "by_user_id")
_UNIT = ("transaction_id", "commands", "batch_id", *_PRINCIPAL, "account_ids")

EXPANSIONS: dict[str, tuple[str, ...]] = {
    "unit.ids()": _UNIT,
    "units[0].ids()": _UNIT,
    "call.units[0].ids()": _UNIT,
    "self._in_hand[0].ids()": _UNIT,
    "record.ids()": ("transaction_id", "user_id", "account_ids"),
    "subscription.ids()": ("subscription", *_PRINCIPAL),
    "session.ids()": _PRINCIPAL,
    "self.ids()": _PRINCIPAL,
    "self._ids()": ("request_id", "address", *_UNIT),
    "principal.ids()": _PRINCIPAL,
    "by(principal)": _BY,
    "by(call.principal)": _BY,
    "{} if principal is None else principal.ids()": _PRINCIPAL,
    "members": ("status", "text", "error", "user_id"),
}
"""What stands in a log call as ``**this``, and the members that come of it."""


class Said(Struct, frozen=True):
    """One call."""

    where: str
    event: str
    level: str
    members: frozenset[str]


def said() -> Iterator[Said]:
    """Every call of the daemon's log."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                for level in _levels(node.func):
                    yield _read(node, level, f"{path.relative_to(ROOT.parent)}:{node.lineno}")


def _levels(function: ast.expr) -> tuple[str, ...]:
    """At which levels this function logs; none if it is another function."""
    if isinstance(function, ast.Attribute) and ast.unparse(function.value) in ("log", "logs.log"):
        return (function.attr,) if function.attr in LEVELS else ()
    return CHOSEN.get(ast.unparse(function), ())


def _read(call: ast.Call, level: str, where: str) -> Said:
    assert len(call.args) == 1, f"{where}: an event, and members by name"
    event = call.args[0]
    assert isinstance(event, ast.Constant), f"{where}: an event's name is a constant"
    members: set[str] = {"exception"} if level == "exception" else set()
    for keyword in call.keywords:
        if keyword.arg == "exc_info":
            members.add("exception")
        elif keyword.arg is None:
            text = ast.unparse(keyword.value)
            assert text in EXPANSIONS, f"{where}: say in EXPANSIONS what **{text} is"
            members |= set(EXPANSIONS[text])
        else:
            members.add(keyword.arg)
    return Said(where, event.value, LEVELS[level], frozenset(members))


def events() -> dict[str, tuple[set[str], set[str]]]:
    """Of each event the levels it has and the members it may have."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for line in said():
        levels, members = found.setdefault(line.event, (set(), set()))
        levels.add(line.level)
        members |= line.members
    return found
