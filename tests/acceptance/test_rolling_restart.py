"""Two daemons share a port and are replaced in turn while clients pay: nobody notices but by a reconnect."""

from __future__ import annotations

import signal
from contextlib import AsyncExitStack
from decimal import Decimal
from functools import partial
from random import Random
from typing import Any

import trio
import uuid_utils

from ledgerd_protocol.client import Client, open_client
from ledgerd_protocol.connection import Retry

PATIENT = Retry(first_connect_s=30, reconnect_s=120, call_s=120)
ROUNDS = 2
CLIENTS = 6
TASKS_PER_CLIENT = 3
ACCOUNTS = 4
PAID_BETWEEN = 100
"""Payments of everybody together between two restarts: enough for each daemon to have some in flight."""


class Payer:
    """Pays between the accounts with a client of its own until told to stop. Every refusal is a failure of the test."""

    def __init__(self, client: Client, accounts: list[int], number: int) -> None:
        self.client = client
        self.acknowledged: list[str] = []
        self.gap_s = 0.0
        self._accounts = accounts
        self._random = Random(number)
        self._last = trio.current_time()

    async def run(self, stop: trio.Event, moved: trio.lowlevel.ParkingLot) -> None:
        while not stop.is_set():
            source, destination = self._random.sample(self._accounts, 2)
            transaction_id = str(uuid_utils.uuid7())
            done = await self.client.transfer(
                transaction_id=transaction_id,
                source_account_id=source,
                destination_account_id=destination,
                amount="0.01",
                currency="USD",
            )
            assert done.transaction_id == transaction_id
            self.acknowledged.append(transaction_id)
            now = trio.current_time()
            self.gap_s = max(self.gap_s, now - self._last)
            self._last = now
            moved.unpark_all()


class House:
    """The daemons, the clients that pay, and what these see."""

    def __init__(self, serve: Any, address: str) -> None:
        self._start = partial(trio.to_thread.run_sync, partial(serve, address, LEDGERD_REUSE_PORT="true"))
        self.daemons: list[Any] = []
        self.payers: list[Payer] = []
        self.moved = trio.lowlevel.ParkingLot()

    async def open(self) -> None:
        self.daemons = [await self._start() for _ in range(2)]

    async def replace(self, index: int) -> None:
        """Stop one daemon, which must end well, and start another in its place."""
        assert await trio.to_thread.run_sync(self.daemons[index].signal, signal.SIGTERM) == 0
        await self.paid_more()
        self.daemons[index] = await self._start()
        await self.paid_more()

    async def paid_more(self) -> None:
        """Return when there are so many more payments, some of every client."""
        goals = [len(payer.acknowledged) + PAID_BETWEEN // CLIENTS for payer in self.payers]
        while any(len(payer.acknowledged) < goal for payer, goal in zip(self.payers, goals, strict=True)):
            await self.moved.park()


async def opened_accounts(client: Client) -> list[int]:
    accounts = [(await client.call("user_register", name=f"U{n}")).account.account_id for n in range(ACCOUNTS)]
    for account in accounts:
        await client.credit(account_id=account, amount="1000.00", currency="USD")
    return accounts


async def test_a_rolling_restart_under_load_loses_nothing_and_shows_clients_nothing(
    serve, free_port, new_auditor, ledgerd, cluster
):
    house = House(serve, f"127.0.0.1:{free_port}")
    await house.open()
    url, token = house.daemons[0].url, house.daemons[0].token
    auditors = []
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(open_client(url, token=token, retry=PATIENT)) for _ in range(CLIENTS)
        ]
        accounts = await opened_accounts(clients[0])
        feeds = [
            await stack.enter_async_context(client.subscribe("balances", account_ids=accounts)) for client in clients
        ]
        async with trio.open_nursery() as following:
            for feed in feeds:
                auditors.append(new_auditor())
                await following.start(auditors[-1].run, feed)
            house.payers = [Payer(client, accounts, number) for number, client in enumerate(clients)]
            stop = trio.Event()
            async with trio.open_nursery() as paying:
                for payer in house.payers:
                    for _ in range(TASKS_PER_CLIENT):
                        paying.start_soon(payer.run, stop, house.moved)
                for number in range(2 * ROUNDS):
                    await house.replace(number % 2)
                stop.set()
            finals = [await clients[0].balance(account_id=account) for account in accounts]
            for auditor in auditors:
                for final in finals:
                    await auditor.until(final.account_id, final.version)
            following.cancel_scope.cancel()

        acknowledged = [transaction_id for payer in house.payers for transaction_id in payer.acknowledged]
        await check_money(clients[0], acknowledged, finals, auditors[0])

    for auditor in auditors:
        assert {account.origin for start in auditor.starts[1:] for account in start.accounts} <= {"resumed"}
        for final in finals:
            assert [update.version for update in auditor.of(final.account_id)] == list(range(2, final.version + 1))
            assert auditor.of(final.account_id) == auditors[0].of(final.account_id)
    reconnects = sum(client.connections - 1 for client in clients)
    assert reconnects >= CLIENTS  # each of them was at a daemon that was replaced
    checked = await trio.to_thread.run_sync(lambda: ledgerd("verify", LEDGERD_DSN=cluster.daemon_dsn))
    assert checked.returncode == 0, checked.stdout
    print(
        f"\n{len(acknowledged)} payments acknowledged over {2 * ROUNDS} restarts, {reconnects} reconnects; "
        f"longest gap of each client: {', '.join(f'{payer.gap_s:.3f} s' for payer in house.payers)}"
    )


async def check_money(client: Client, acknowledged: list[str], finals: list[Any], auditor: Any) -> None:
    """Each acknowledged payment is posted, once, and there are no others."""
    assert len(set(acknowledged)) == len(acknowledged)
    for transaction_id in acknowledged:
        assert (await client.call("transaction_get", transaction_id=transaction_id)).status == "posted"
    moves = [update.transaction_id for final in finals for update in auditor.of(final.account_id)]
    assert sorted(moves) == sorted(2 * acknowledged)
    assert sum(Decimal(final.balance) for final in finals) == 1000 * ACCOUNTS
