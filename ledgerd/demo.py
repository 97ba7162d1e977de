"""A short scene played against a real daemon: two users, money that moves, pushes that arrive, a command sent twice.

The daemon runs in this process, not in a child: one process fewer to leave behind when somebody presses Ctrl-C. Nothing
is shared with it but the event loop; every word of the scene goes through a WebSocket, and it is stopped the way
systemd stops it.
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

import trio
import uuid_utils
from rich.console import Console

from ledgerd.config import Config
from ledgerd.daemon import DaemonFailed, ReadyInfo, run_daemon
from ledgerd.dev import House, open_house, program
from ledgerd.exits import Exit, Failed
from ledgerd.settings import Settings
from ledgerd_protocol.client import Client, open_client
from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.events import Start, Update
from ledgerd_protocol.feed import Feed

PACE_S = 0.7
"""Between two steps, for somebody who reads along. Nobody reads along in a pipe."""


Play = Callable[[Console, House, str], Awaitable[None]]
"""A scene: where to print, the house it is played in, the daemon's WebSocket URL. Raises Failed."""


def run_demo(settings: Settings, console: Console, play: Play) -> None:
    """Play a scene in a directory that goes away. Raises Failed, also when it was interrupted."""
    console.print("[dim]starting a private PostgreSQL ...[/]")
    with (
        tempfile.TemporaryDirectory(prefix="ledgerd-demo-", ignore_cleanup_errors=True) as name,
        open_house(Path(name) / "data", settings) as house,
    ):
        finished = trio.run(_perform, house, console, play)
    if not finished:
        raise Failed("the demo was interrupted; everything it started is gone", Exit.INTERRUPTED)
    _farewell(console)


async def _perform(house: House, console: Console, play: Play) -> bool:
    """Whether the scene was played to its end."""
    finished = False
    async with trio.open_nursery() as nursery:
        ready: ReadyInfo = await nursery.start(_run_daemon, house.config, nursery.cancel_scope)
        try:
            await play(console, house, ready.ws_url)
        except Exception:
            # The scene also fails of a daemon that stops because somebody pressed Ctrl-C, and that ends all of this.
            with trio.move_on_after(house.config.drain_timeout_s):
                await trio.sleep_forever()
            raise
        finished = True
        signal.raise_signal(signal.SIGTERM)
    return finished


async def _run_daemon(config: Config, everything: trio.CancelScope, *, task_status: trio.TaskStatus[ReadyInfo]) -> None:
    try:
        await run_daemon(config, on_ready=task_status.started)
    except DaemonFailed as error:
        raise Failed(str(error)) from error
    everything.cancel()


class _Watcher:
    """Prints what is pushed, as it arrives, and knows how far it has come."""

    def __init__(self, show: Callable[[Update], None]) -> None:
        self._show = show
        self._version = -1
        self._moved = trio.Event()

    async def run(self, feed: Feed, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Started when the feed is: what was changed before its start is part of that, and not pushed."""
        async for event in feed:
            if isinstance(event, Start):
                if self._version < 0:
                    task_status.started()
                self._version = event.accounts[0].version
            elif isinstance(event, Update):
                self._show(event)
                self._version = event.version
            self._moved.set()

    async def reached(self, version: int) -> None:
        """Return when the version has been pushed."""
        while self._version < version:
            self._moved = trio.Event()
            await self._moved.wait()


async def short_scene(console: Console, house: House, url: str) -> None:  # noqa: ARG001
    """Two users, money that moves, pushes that arrive, a command sent twice."""
    await _Scene(console, url).play()


class _Scene:
    """The steps, in order."""

    def __init__(self, console: Console, url: str) -> None:
        self._say = partial(console.print, highlight=False)
        self._pace_s = PACE_S if console.is_terminal else 0.0
        self._url = url

    async def play(self) -> None:
        self._say(f"\n[bold]A ledger at[/] {self._url}[bold], and two people.[/]\n")
        async with open_client(self._url) as stranger:
            ann = await self._register(stranger, "Ann")
            bob = await self._register(stranger, "Bob")
        async with (
            open_client(self._url, token=ann.token) as client,
            client.subscribe("balances", account_ids=[ann.account.account_id]) as feed,
            trio.open_nursery() as nursery,
        ):
            self._say("\n   [cyan]◀ subscribed[/]  every change of Ann's balance is pushed from here on\n")
            watcher = _Watcher(self._pushed)
            await nursery.start(watcher.run, feed)
            await self._move_money(client, watcher, ann.account.account_id, bob.account.account_id)
            nursery.cancel_scope.cancel()

    async def _register(self, client: Client, name: str) -> Any:
        email, password = f"{name.lower()}@example.com", token_urlsafe(16)
        made = await client.call("user_register", name=name, email=email, password=password)
        account = made.account
        self._say(
            f"[bold green]▶ user_register[/]  {name} has account {account.account_id} "
            f"with {account.balance} {account.currency}"
        )
        return made

    async def _move_money(self, client: Client, watcher: _Watcher, ann: int, bob: int) -> None:
        await self._step("credit", "Ann tops up 100.00 from outside the ledger")
        await client.credit(account_id=ann, amount="100.00", currency="USD", reason="top-up")
        await watcher.reached(1)

        await self._step("debit", "Ann buys a ticket for 19.90")
        await client.debit(account_id=ann, amount="19.90", currency="USD", reason="ticket")
        await watcher.reached(2)

        await self._step("transfer", "Ann sends 30.00 to Bob: one transaction, both sides or none")
        command = {
            "transaction_id": str(uuid_utils.uuid7()),
            "source_account_id": ann,
            "destination_account_id": bob,
            "amount": "30.00",
            "currency": "USD",
        }
        sent = await client.transfer(**command)
        await watcher.reached(3)

        await self._step("debit", "Ann tries to spend 500.00 that she does not have")
        await self._overdraw(client, ann)

        await self._step("transfer", "the network hiccups, and the same transfer is sent once more")
        again = await client.transfer(**command)
        if not again.replayed or again.entries != sent.entries:
            raise Failed("a repeated transaction_id was not answered from the record")
        self._say("   [yellow]↺ replayed[/]    the stored answer comes back, and no money moves twice\n")

        balance = await client.balance(account_id=ann)
        self._say(
            f"[bold green]▶ balance_get[/]    Ann has [bold]{balance.balance} {balance.currency}[/] at version "
            f"{balance.version}: three pushes, none missed\n"
        )

    async def _overdraw(self, client: Client, account_id: int) -> None:
        try:
            await client.debit(account_id=account_id, amount="500.00", currency="USD")
        except LedgerError as error:
            if error.code is not ErrorCode.INSUFFICIENT_FUNDS:
                raise
            available = error.data.get("available")
            self._say(f"   [red]✗ {error.code.text}[/]  only {available} there; nothing changed, nothing pushed\n")
        else:
            raise Failed("an overdraft was not refused")

    async def _step(self, method: str, story: str) -> None:
        await trio.sleep(self._pace_s)
        self._say(f"[bold green]▶ {method:<12}[/]   {story}")

    def _pushed(self, event: Update) -> None:
        change = event.balance_change if event.balance_change.startswith("-") else f"+{event.balance_change}"
        self._say(
            f"   [cyan]◀ push[/]        version {event.version}  {change:>8}  →  [bold]{event.balance:>7}[/] "
            f"{event.currency}  [dim]({event.kind})[/]\n"
        )


def _farewell(console: Console) -> None:
    console.print("[dim]The daemon has drained and PostgreSQL is stopped; nothing is left behind.[/]\n")
    console.print(f"Next:  [bold]{program()} dev[/]  starts the same daemon and stays.", highlight=False)
