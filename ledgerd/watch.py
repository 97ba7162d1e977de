"""A live view of balances: a table for a person, lines for a script.

Both follow one subscription that survives restarts of the daemon; where it was resumed, a mark is left, and no change
is missing on either side of it. Where it could not be resumed, the mark says that. The table keeps the rows that
changed last, as many as fit the screen.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import msgspec
import trio
from msgspec import UNSET, Struct
from rich.console import Console, Group
from rich.live import Live as LiveDisplay
from rich.table import Table
from rich.text import Text

from ledgerd_protocol.client import Client
from ledgerd_protocol.events import AccountAdded, AccountStart, Event, Start, Update

ROWS_MAX = 10_000
MARKS_SHOWN = 3
FRAMES_PER_S = 8

OUTAGE_S = 3_600.0
"""How long a watch waits for a daemon that has gone away."""


class Target(Struct, frozen=True):
    """What to follow; nothing given is everything the caller owns."""

    account_ids: list[int] | None = None
    user_id: int | None = None
    everything: bool = False

    def options(self) -> dict[str, Any]:
        """Options of the subscription."""
        return {"account_ids": self.account_ids, "user_id": self.user_id, "all": self.everything or None}


class View(Protocol):
    """Somewhere to show events."""

    def show(self, event: Event, *, resumed: bool) -> None:
        """Show one event. ``resumed`` is a start that is not the first."""


async def watch(
    connection: AbstractAsyncContextManager[Client],
    target: Target,
    view: View,
    *,
    for_s: float | None = None,
    count: int | None = None,
) -> None:
    """Show what is pushed until ``for_s`` seconds are over or ``count`` changes were shown; for ever without them.

    Raises what `Feed.__anext__` raises.
    """
    async with connection as client:
        with trio.move_on_after(float("inf") if for_s is None else for_s):
            async with client.subscribe("balances", **target.options()) as events:
                changes, starts, more = 0, 0, False
                async for event in events:
                    if isinstance(event, Start):
                        starts += not more
                        more = event.more is True
                    view.show(event, resumed=isinstance(event, Start) and starts > 1)
                    changes += isinstance(event, Update)
                    if count is not None and changes >= count:
                        break


class Lines:
    """One line per event: words a person can read and a script can cut."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def show(self, event: Event, *, resumed: bool) -> None:
        """Write the event's line; starts write one per account."""
        if isinstance(event, Start):
            if event.reason is not UNSET:
                self._write(f"begun anew epoch={event.epoch} reason={event.reason}")
            elif resumed:
                self._write(f"resumed epoch={event.epoch}")
            for account in event.accounts:
                self._write(_start_line(account))
        elif isinstance(event, AccountAdded):
            self._write(_start_line(event.account))
        elif isinstance(event, Update):
            self._write(
                f"update account={event.account_id} version={event.version} balance={event.balance} "
                f"held={event.held} available={event.available} currency={event.currency} "
                f"change={event.balance_change} kind={event.kind} transaction={event.transaction_id} "
                f"at={event.created_at}"
            )


def _start_line(account: AccountStart) -> str:
    return (
        f"start account={account.account_id} from={account.origin} version={account.version} "
        f"balance={account.balance} held={account.held} available={account.available} currency={account.currency}"
    )


class JsonLines:
    """One JSON object per event, as the protocol spells it."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def show(self, event: Event, *, resumed: bool) -> None:  # noqa: ARG002  the start event says it itself
        """Write the event."""
        self._write(msgspec.json.encode(event).decode())


class _Row(Struct):
    currency: str
    balance: str
    held: str
    available: str
    version: int
    change: str = ""
    kind: str = ""
    at: str = ""


class LiveTable:
    """A table that is redrawn in place. Use as a context manager."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._rows: OrderedDict[int, _Row] = OrderedDict()
        self._marks: list[str] = []
        self._changes = 0
        self._display = LiveDisplay(
            console=console, refresh_per_second=FRAMES_PER_S, get_renderable=self._render, transient=False
        )

    def __enter__(self) -> LiveTable:
        self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._display.stop()

    def show(self, event: Event, *, resumed: bool) -> None:
        """Take the event into the table."""
        if isinstance(event, Start):
            if event.reason is not UNSET:
                self._mark(f"begun anew after {self._changes} changes ({event.reason}): what was between is not shown")
            elif resumed:
                self._mark(f"resumed after {self._changes} changes: the connection was lost, nothing is missing")
            for account in event.accounts:
                # A resumed account's values are those of the updates that follow, one by one.
                if account.origin == "snapshot" or account.account_id not in self._rows:
                    self._begin(account)
        elif isinstance(event, AccountAdded):
            self._begin(event.account)
        elif isinstance(event, Update):
            self._changes += 1
            self._put(
                event.account_id,
                _Row(
                    event.currency,
                    event.balance,
                    event.held,
                    event.available,
                    event.version,
                    event.balance_change,
                    event.kind,
                    event.created_at,
                ),
            )

    def _mark(self, text: str) -> None:
        self._marks.append(text)
        del self._marks[:-MARKS_SHOWN]

    def _begin(self, account: AccountStart) -> None:
        row = _Row(account.currency, account.balance, account.held, account.available, account.version)
        self._put(account.account_id, row)

    def _put(self, account_id: int, row: _Row) -> None:
        self._rows[account_id] = row
        self._rows.move_to_end(account_id, last=False)
        if len(self._rows) > ROWS_MAX:
            self._rows.popitem()

    def _render(self) -> Group:
        table = Table(title=self._title, title_justify="left", expand=False)
        for name in ("account", "balance", "held", "available", "currency", "version", "last change", "kind", "at"):
            money = name in ("balance", "held", "available", "last change", "version")
            table.add_column(name, justify="right" if money else "left")
        room = max(3, self._console.height - 8 - len(self._marks))
        shown = list(self._rows.items())[:room]
        for account_id, row in shown:
            change = Text(row.change, style="red" if row.change.startswith("-") else "green")
            cells = (str(account_id), Text(row.balance, style="bold"), row.held, row.available, row.currency)
            table.add_row(*cells, str(row.version), change, row.kind, row.at[11:19])
        hidden = len(self._rows) - len(shown)
        foot = f"{self._changes} changes" + (f" · {hidden} more accounts" if hidden else "") + " · Ctrl-C ends"
        return Group(table, *(Text(mark, style="yellow") for mark in self._marks), Text(foot, style="dim"))
