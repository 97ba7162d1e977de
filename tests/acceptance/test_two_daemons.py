"""Two daemons on one database, and everybody moves money between the same accounts at once."""

from __future__ import annotations

from contextlib import AsyncExitStack
from decimal import Decimal
from random import Random

import trio

from ledgerd_protocol.client import Client, open_client
from ledgerd_protocol.errors import ErrorCode, LedgerError

ACCOUNTS = 4
PAYERS_PER_DAEMON = 8
PAYMENTS = 40


async def pay(client: Client, accounts: list[int], random: Random) -> None:
    for _ in range(PAYMENTS):
        source, destination = random.sample(accounts, 2)
        amount = f"{random.randint(0, 30)}.{random.randint(1, 99):02}"
        try:
            await client.transfer(
                source_account_id=source, destination_account_id=destination, amount=amount, currency="USD"
            )
        except LedgerError as error:
            assert error.code is ErrorCode.INSUFFICIENT_FUNDS, error  # noqa: PT017  any other is a failure


async def test_every_invariant_holds_and_both_see_every_change(serve, new_auditor):
    daemons = [serve(), serve()]
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(open_client(daemon.url, token=daemon.token)) for daemon in daemons]
        accounts = [(await clients[0].call("user_register", name=f"U{n}")).account.account_id for n in range(ACCOUNTS)]
        for account in accounts:
            await clients[0].credit(account_id=account, amount="100.00", currency="USD")
        feeds = [
            await stack.enter_async_context(client.subscribe("balances", account_ids=accounts)) for client in clients
        ]
        auditors = [new_auditor() for _ in feeds]
        async with trio.open_nursery() as nursery:
            for auditor, feed in zip(auditors, feeds, strict=True):
                await nursery.start(auditor.run, feed)
            async with trio.open_nursery() as payers:
                for number in range(2 * PAYERS_PER_DAEMON):
                    payers.start_soon(pay, clients[number % 2], accounts, Random(number))
            finals = [await clients[0].balance(account_id=account) for account in accounts]
            for auditor in auditors:
                for final in finals:
                    await auditor.until(final.account_id, final.version)
            nursery.cancel_scope.cancel()

        total = sum(Decimal(final.balance) for final in finals)
        assert total == 100 * ACCOUNTS
        assert all(Decimal(final.available) >= 0 for final in finals)
        for final in finals:
            mine = auditors[0].of(final.account_id)
            assert [update.version for update in mine] == list(range(2, final.version + 1))
            changes = sum(Decimal(update.balance_change) for update in mine)
            assert Decimal("100.00") + changes == Decimal(final.balance)
            assert auditors[1].of(final.account_id) == mine

        moved = await world_side(clients[1], accounts)
        assert total + moved == 0


async def world_side(client: Client, accounts: list[int]) -> Decimal:
    """What the outside gave, negative, from the transactions: credits out of it, debits into it."""
    seen: dict[str, Decimal] = {}
    for account in accounts:
        cursor: dict[str, str] = {}
        while True:
            page = await client.call("transaction_list", account_id=account, order="oldest_first", **cursor)
            for item in page.items:
                amount = Decimal(item["amount"])
                if item["debit_account_id"] is None:
                    seen[item["transaction_id"]] = -amount
                elif item["credit_account_id"] is None:
                    seen[item["transaction_id"]] = amount
            if page.next_cursor is None:
                break
            cursor = {"cursor": page.next_cursor}
    return sum(seen.values(), Decimal(0))
