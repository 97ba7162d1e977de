"""The second scene of the demo: an advance, and the weeks in which it is paid back, played in seconds.

Time is moved on a week at a time with the owner's connection; everything else goes through WebSockets, to the same
daemon that would do it in a year. What is pushed is printed as it arrives and compared at the end with what had to
happen: one payment too many, too few, or of another amount, and the demo fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from secrets import token_urlsafe
from typing import Any

import trio
from msgspec import Struct
from rich.console import Console

from ledgerd.dev import House
from ledgerd.exits import Failed
from ledgerd.storage.owner_clock import move_clock
from ledgerd_protocol.client import Client, open_client
from ledgerd_protocol.events import AdvanceHappened, Start, Update
from ledgerd_protocol.feed import Feed

PACE_S = 0.5
"""Between two weeks, for somebody who reads along. Nobody reads along in a pipe."""

PATIENCE_S = 30.0
"""For what must be pushed after a step."""

COLLECT_INTERVAL_S = 0.1
"""The daemon looks for due payments this often, so that a week does not take a second."""

PRINCIPAL = "100.00"
SPENT = "83.32"
"""Of the advance, at once: what is left is enough for two weeks."""

TOP_UPS = {3: "74.99", 12: "8.33"}
"""After these weeks, when a payment has failed."""


class Happening(Struct, frozen=True):
    """What must be told of the advance."""

    what: str
    number: int | None
    amount: str


def _expected() -> Iterator[list[Happening]]:
    """What must happen week by week; the request is week 0."""
    yield [Happening("requested", None, PRINCIPAL)]
    for week in range(1, 14):
        amount = {1: "8.34", 2: "8.34", 3: "8.34", 4: "16.68"}.get(week, "8.33")
        happenings = [Happening("due", week, amount)]
        if week in TOP_UPS:
            happenings += [Happening("failed", week, amount), Happening("rolled_over", week + 1, amount)]
        else:
            happenings += [Happening("paid", week, amount)]
        if week == 13:
            happenings += [Happening("completed", None, amount)]
        yield happenings


async def twelve_weeks(console: Console, house: House, url: str) -> None:
    """A scene: request, week by week, a payment that fails in the third, and one in the twelfth. Raises Failed."""
    await _Scene(console, house, url).play()


class _Scene:
    """The weeks, in order, and what was pushed so far."""

    def __init__(self, console: Console, house: House, url: str) -> None:
        self._say = partial(console.print, highlight=False, soft_wrap=True)
        self._pace_s = PACE_S if console.is_terminal else 0.0
        self._house = house
        self._url = url
        self._told: list[Happening] = []
        self._updates: list[Update] = []
        self._moved = trio.Event()

    async def play(self) -> None:
        self._say(f"\n[bold]A ledger at[/] {self._url}[bold], and twelve weeks.[/]\n")
        operator_token = self._house.token_file.read_text("ascii").strip()
        async with open_client(self._url, token=operator_token) as operator:
            password = token_urlsafe(16)
            ann = await operator.call("user_register", name="Ann", email="ann@example.com", password=password)
            account_id = ann.account.account_id
            async with (
                open_client(self._url, token=ann.token) as client,
                client.subscribe("balances", account_ids=[account_id]) as balances,
                client.subscribe("advances", account_ids=[account_id]) as advances,
                trio.open_nursery() as nursery,
            ):
                await nursery.start(self._watch, balances)
                await nursery.start(self._watch, advances)
                await self._weeks(operator, client, account_id)
                nursery.cancel_scope.cancel()

    async def _weeks(self, operator: Client, client: Client, account_id: int) -> None:
        weeks = _expected()
        expected = next(weeks)
        self._say(f"[bold green]▶ advance_request[/]  Ann gets {PRINCIPAL} now, to be paid back in 12 weekly payments")
        advance = await operator.call("advance_request", account_id=account_id, amount=PRINCIPAL, currency="USD")
        self._say(f"   [dim]payments of {', '.join(payment.amount for payment in advance.payments)}[/]")
        await self._until(lambda: len(self._told) >= len(expected))
        self._say(f"[bold green]▶ debit[/]            Ann spends {SPENT} of it")
        await client.debit(account_id=account_id, amount=SPENT, currency="USD")
        await self._until(lambda: len(self._updates) >= 2)

        for week, happenings in enumerate(weeks, start=1):
            await trio.sleep(self._pace_s)
            self._say(f"\n[bold]Week {week}[/]")
            expected += happenings
            await trio.to_thread.run_sync(move_clock, self._house.owner_dsn, 7)
            await self._until(lambda: len(self._told) >= len(expected))  # noqa: B023  awaited at once
            if week in TOP_UPS:
                self._say(f"[bold green]▶ credit[/]           Ann tops up {TOP_UPS[week]}")
                seen = len(self._updates)
                await client.credit(account_id=account_id, amount=TOP_UPS[week], currency="USD")
                await self._until(lambda: len(self._updates) > seen)  # noqa: B023  awaited at once
        await self._judge(expected, client, advance.advance_id)

    async def _judge(self, expected: list[Happening], client: Client, advance_id: str) -> None:
        """Whether everything came out exactly. Raises Failed."""
        # A payment that was taken twice would be on its way now.
        await trio.sleep(3 * COLLECT_INTERVAL_S)
        advance: Any = await client.call("advance_get", advance_id=advance_id)
        balance = await client.balance(account_id=advance.account_id)
        await self._until(lambda: self._updates[-1].version >= balance.version)
        taken = [update.balance_change for update in self._updates if update.kind == "advance_payment"]
        paid = [f"-{happening.amount}" for happening in expected if happening.what == "paid"]
        for what, is_so in (
            ("what was pushed is not what had to happen", self._told == expected),
            ("the money taken is not that of the payments", taken == paid),
            ("the advance is not paid back", (advance.status, advance.outstanding) == ("completed", "0.00")),
            ("the balance is not what is left", balance.balance == "0.00"),
            ("the states are not those of the payments", _states(advance) == ["paid"] * 11 + ["failed"] * 2),
        ):
            if not is_so:
                raise Failed(f"the twelve weeks came out wrong: {what}")
        self._say(
            f"\n[bold]{len(taken)} payments took {PRINCIPAL}, each exactly once;[/] two failed, none is forgotten.\n"
        )

    async def _watch(self, feed: Feed, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Started when the feed is: what happened before its start is part of that, and not pushed."""
        assert isinstance(await anext(feed), Start)
        task_status.started()
        async for event in feed:
            if isinstance(event, AdvanceHappened):
                self._told.append(Happening(event.what, event.number, event.amount))
                self._show_happening(event)
            elif isinstance(event, Update):
                self._updates.append(event)
                self._show_update(event)
            self._moved.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Return when enough was pushed. Raises Failed if that takes too long."""
        with trio.move_on_after(PATIENCE_S):
            while not condition():
                self._moved = trio.Event()
                await self._moved.wait()
            return
        raise Failed("the twelve weeks came out wrong: something that had to happen was not pushed")

    def _show_happening(self, event: AdvanceHappened) -> None:
        number = "" if event.number is None else f"payment {event.number}"
        reason = "" if event.reason is None else f"  [red]{event.reason}[/]"
        self._say(
            f"   [cyan]◀ advances[/]  {event.what:<12} {number:<11} {event.amount:>7}"
            f"  [dim]{event.outstanding:>7} outstanding[/]{reason}"
        )

    def _show_update(self, event: Update) -> None:
        change = event.balance_change if event.balance_change.startswith("-") else f"+{event.balance_change}"
        self._say(
            f"   [cyan]◀ balances[/]  {event.kind:<24} {change:>7}  →  [bold]{event.balance:>7}[/] {event.currency}"
        )


def _states(advance: Any) -> list[str]:
    return sorted((payment.status for payment in advance.payments), reverse=True)
