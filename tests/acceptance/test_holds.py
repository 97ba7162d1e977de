"""Holds as a client of the installed daemon lives through them: pushes, expiry, restarts, and very many at once."""

from __future__ import annotations

import signal
from contextlib import AsyncExitStack
from decimal import Decimal
from uuid import uuid4

import pytest
import trio

from ledgerd_protocol.client import Client, open_client
from ledgerd_protocol.errors import ErrorCode, LedgerError
from tests.acceptance.owner import move_clock

EXPIRED_WITHIN_S = 5.0


async def new_account(client: Client, amount: str) -> int:
    account = (await client.call("user_register", name="U")).account.account_id
    await client.credit(account_id=account, amount=amount)
    return int(account)


async def refusal(client: Client, method: str, **params: object) -> ErrorCode:
    with pytest.raises(LedgerError) as refused:
        await client.call(method, **params)
    return refused.value.code


async def test_the_life_of_holds_with_its_pushes(dev, new_auditor):
    async with open_client(dev.url, token=dev.token) as client:
        account, shop = await new_account(client, "100.00"), await new_account(client, "1.00")
        async with client.subscribe("balances", account_ids=[account, shop]) as feed, trio.open_nursery() as nursery:
            auditor = new_auditor()
            await nursery.start(auditor.run, feed)
            bought = await client.hold(account_id=account, amount="30.00", destination_account_id=shop)
            dropped = await client.hold(account_id=account, amount="20.00")
            assert await refusal(client, "debit", account_id=account, amount="50.01") is ErrorCode.INSUFFICIENT_FUNDS
            captured = await client.capture(hold_id=bought.hold_id, amount="12.50")
            await client.release(hold_id=dropped.hold_id)
            await client.reverse(original_transaction_id=captured.transaction_id, amount="2.50")
            with trio.fail_after(20):
                await auditor.until(account, 6)
                await auditor.until(shop, 3)
            nursery.cancel_scope.cancel()
        seen = [(update.kind, update.held_change, update.balance, update.available) for update in auditor.of(account)]
        assert seen == [
            ("hold", "30.00", "100.00", "70.00"),
            ("hold", "20.00", "100.00", "50.00"),
            ("capture", "-30.00", "87.50", "67.50"),
            ("release", "-20.00", "87.50", "87.50"),
            ("reversal", "0.00", "90.00", "90.00"),
        ]
        assert [(update.kind, update.balance) for update in auditor.of(shop)] == [
            ("capture", "13.50"),
            ("reversal", "11.00"),
        ]
        assert (await client.call("transaction_get", transaction_id=bought.hold_id)).status == "captured"


async def test_two_daemons_expire_every_hold_once_and_tell_who_follows_at_either(cluster, serve, new_auditor):
    daemons = [serve() for _ in range(2)]
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(open_client(daemon.url, token=daemon.token)) for daemon in daemons]
        accounts = [await new_account(clients[0], "100.00") for _ in range(4)]
        feeds = [
            await stack.enter_async_context(client.subscribe("balances", account_ids=accounts)) for client in clients
        ]
        auditors = [new_auditor() for _ in feeds]
        async with trio.open_nursery() as nursery:
            for auditor, feed in zip(auditors, feeds, strict=True):
                await nursery.start(auditor.run, feed)
            for number in range(200):
                await clients[number % 2].hold(account_id=accounts[number % 4], amount="1.00", expires_in_s=60)
            await move_clock(cluster.dsn, 61)
            with trio.fail_after(EXPIRED_WITHIN_S):
                for auditor in auditors:
                    for account in accounts:
                        await auditor.until(account, 101)
            nursery.cancel_scope.cancel()
        for account in accounts:
            mine = auditors[0].of(account)
            assert [update.version for update in mine] == list(range(2, 102)), "as many expiries as holds"
            assert (mine[-1].held, mine[-1].available) == ("0.00", "100.00")
            assert auditors[1].of(account) == mine
    for daemon in daemons:
        assert daemon.signal(signal.SIGTERM) == 0


async def test_a_hold_outlives_the_daemon_and_expires_at_the_next(cluster, serve):
    first = serve()
    async with open_client(first.url, token=first.token) as client:
        account = await new_account(client, "10.00")
        kept = await client.hold(account_id=account, amount="4.00")
        await client.hold(account_id=account, amount="5.00", expires_in_s=60)
    first.signal(signal.SIGKILL)
    await move_clock(cluster.dsn, 61)
    second = serve()
    async with open_client(second.url, token=second.token) as client:
        with trio.fail_after(EXPIRED_WITHIN_S):
            while (await client.balance(account_id=account)).held != "4.00":
                pass
        assert (await client.capture(hold_id=kept.hold_id, amount="1.00")).amount == "1.00"
        assert (await client.balance(account_id=account)).balance == "9.00"


async def test_very_many_holds_and_captures_at_once_lose_nothing(dev):
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(open_client(dev.url, token=dev.token)) for _ in range(8)]
        account = await new_account(clients[0], "100.00")
        outcomes: list[str | ErrorCode] = []

        async def buy(client: Client, part: str) -> None:
            hold_id = str(uuid4())
            try:
                await client.hold(transaction_id=hold_id, account_id=account, amount="0.30")
                outcomes.append((await client.capture(hold_id=hold_id, amount=part)).amount)
            except LedgerError as error:
                outcomes.append(error.code)

        async with trio.open_nursery() as nursery:
            for number in range(1_000):
                nursery.start_soon(buy, clients[number % 8], f"0.{number % 30 + 1:02}")
        final = await clients[0].balance(account_id=account)
        taken = [Decimal(amount) for amount in outcomes if isinstance(amount, str)]
        assert set(outcomes) - set(map(str, taken)) <= {ErrorCode.INSUFFICIENT_FUNDS}
        assert Decimal(final.balance) == 100 - sum(taken) >= 0
        assert final.held == "0.00"
        assert final.version == 1 + 2 * len(taken)
