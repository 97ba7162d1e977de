"""Clients that pay without end, and remember what was acknowledged: the money that nobody may lose."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from typing import Any

import trio
import uuid_utils
from msgspec import Struct

from ledgerd_protocol.client import Client, open_client
from ledgerd_protocol.connection import Retry
from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.events import Start

PATIENT = Retry(call_s=90.0, reconnect_s=90.0)
"""Whatever happens to the database meanwhile, a call is sent again with the same id until it is answered."""

EACH = Decimal("0.01")
PAYERS = 6


class Payment(Struct, frozen=True):
    """A credit of one cent that was answered."""

    transaction_id: str
    account_id: int


class Payers:
    """Accounts that get one cent after another, each from a task of its own."""

    def __init__(self, accounts: list[int]) -> None:
        self.accounts = accounts
        self.sent: list[Payment] = []
        """Including those whose answer was not there yet when they were stopped."""
        self.acknowledged: list[Payment] = []
        self._moved = trio.Event()

    async def run(self, clients: list[Client]) -> None:
        """Pay until cancelled, each payer over one of the clients."""
        async with trio.open_nursery() as nursery:
            for number, account in enumerate(self.accounts):
                nursery.start_soon(self._pay, clients[number % len(clients)], account)

    async def _pay(self, client: Client, account: int) -> None:
        while True:
            payment = Payment(str(uuid_utils.uuid7()), account)
            self.sent.append(payment)
            await credit(client, payment)
            self.acknowledged.append(payment)
            self._moved.set()

    async def more(self, count: int) -> None:
        """Wait until so many more have been acknowledged."""
        enough = len(self.acknowledged) + count
        while len(self.acknowledged) < enough:
            self._moved = trio.Event()
            await self._moved.wait()


async def credit(client: Client, payment: Payment) -> Any:
    """Send it, for the first time or again."""
    return await client.credit(
        transaction_id=payment.transaction_id, account_id=payment.account_id, amount=str(EACH), currency="USD"
    )


@asynccontextmanager
async def paying(daemons: list[Any]) -> AsyncIterator[Payers]:
    """Payers with a connection to each of the daemons, until the end of the block."""
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(open_client(daemon.url, token=daemon.token, retry=PATIENT))
            for daemon in daemons
        ]
        registered = [await clients[0].call("user_register", name=f"P{number}") for number in range(PAYERS)]
        payers = Payers([each.account.account_id for each in registered])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(payers.run, clients)
            yield payers
            nursery.cancel_scope.cancel()


async def stored(client: Client, payments: list[Payment]) -> set[str]:
    """Which of them are posted."""
    found = set()
    for payment in payments:
        try:
            transaction = await client.call("transaction_get", transaction_id=payment.transaction_id)
        except LedgerError as error:
            assert error.code is ErrorCode.NOT_FOUND  # noqa: PT017  any other is a failure
        else:
            assert transaction.status == "posted"
            found.add(payment.transaction_id)
    return found


async def assert_each_is_there_once(client: Client, payers: Payers) -> None:
    """Send everything again, whatever became of it; afterwards each account has exactly one cent for each."""
    for payment in payers.sent:
        await credit(client, payment)
    for account in payers.accounts:
        count = sum(payment.account_id == account for payment in payers.sent)
        balance = await client.balance(account_id=account)
        assert (Decimal(balance.balance), balance.version) == (count * EACH, count)


async def start_after(client: Client, since: dict[str, Any], accounts: list[int]) -> Start:
    """How a feed begins that resumes where another ended."""
    async with client.subscribe("balances", account_ids=accounts, since=since) as feed:
        async for event in feed:
            if isinstance(event, Start):
                return event
    raise AssertionError("the feed ended")
