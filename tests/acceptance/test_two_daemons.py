"""Two daemons on one database, and everybody moves money between the same accounts at once."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from decimal import Decimal
from random import Random
from typing import Any

import asyncpg
import pytest
import trio

from ledgerd_protocol.client import Client, open_client
from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.events import AccountAdded, Live, Start, Update
from ledgerd_protocol.feed import Feed
from tests.acceptance.owner import value

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


@pytest.fixture(params=["notify", "poll"])
def daemons(request, serve) -> list[Any]:
    """Two daemons that hear of each other's changes in one of the two ways."""
    return [serve(LEDGERD_FEED=request.param) for _ in range(2)]


async def test_every_invariant_holds_and_both_see_every_change(daemons, new_auditor):
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


# -- everything, whichever daemon did it ------------------------------------------------------------------------------


async def until_live(feed: Feed) -> Start:
    """Read up to `live`; the start."""
    start = await anext(feed)
    assert isinstance(start, Start)
    while not isinstance(await anext(feed), Live):
        pass
    return start


async def updates(feed: Feed, count: int) -> list[tuple[int, int]]:
    """Account and version of the next updates."""
    found: list[tuple[int, int]] = []
    while len(found) < count:
        event = await anext(feed)
        if isinstance(event, Update):
            found.append((event.account_id, event.version))
    return found


async def test_who_follows_everything_at_one_daemon_sees_what_the_other_commits(daemons, cluster):
    async with AsyncExitStack() as stack:
        one, other = [
            await stack.enter_async_context(open_client(daemon.url, token=daemon.token)) for daemon in daemons
        ]
        account = (await one.call("user_register", name="Ann")).account.account_id
        feed = await stack.enter_async_context(one.subscribe("balances", all=True))
        await until_live(feed)
        for client in (other, one, other, one):
            await client.credit(account_id=account, amount="1.00", currency="USD")
        assert await updates(feed, 4) == [(account, version) for version in (1, 2, 3, 4)]

        # Some other program of the team's leaves a transaction open in the same database.
        foreign = await trio.to_thread.run_sync(OpenTransaction, cluster.dsn)
        stack.push_async_callback(trio.to_thread.run_sync, foreign.close)
        await other.credit(account_id=account, amount="1.00", currency="USD")
        await one.credit(account_id=account, amount="1.00", currency="USD")
        assert await updates(feed, 2) == [(account, 5), (account, 6)]

        # Resuming at the other daemon, from where the first one's feed was read to.
        since = {"epoch": feed.epoch, "position": feed.position, "versions": feed.versions}
        await one.credit(account_id=account, amount="1.00", currency="USD")
        resumed = await stack.enter_async_context(other.subscribe("balances", all=True, since=since))
        await one.credit(account_id=account, amount="1.00", currency="USD")
        assert await updates(resumed, 2) == [(account, 7), (account, 8)]


class OpenTransaction:
    """A transaction with an id that somebody else leaves open. Blocking: for a thread."""

    def __init__(self, dsn: str) -> None:
        self._loop = asyncio.SelectorEventLoop()
        self._connection = self._loop.run_until_complete(asyncpg.connect(dsn))
        self._loop.run_until_complete(self._connection.execute("BEGIN"))
        self._loop.run_until_complete(self._connection.execute("SELECT pg_current_xact_id()"))

    def close(self) -> None:
        self._loop.run_until_complete(self._connection.close())
        self._loop.close()


async def test_an_account_that_was_opened_at_the_other_daemon_is_followed_from_its_first_version(daemons):
    async with AsyncExitStack() as stack:
        one, other = [
            await stack.enter_async_context(open_client(daemon.url, token=daemon.token)) for daemon in daemons
        ]
        user = (await one.call("user_register", name="Ben")).user.user_id
        feed = await stack.enter_async_context(one.subscribe("balances", user_id=user))
        await until_live(feed)
        opened = await other.call("account_open", user_id=user, currency="EUR")
        await other.credit(account_id=opened.account_id, amount="1.00")
        added = await anext(feed)
        assert isinstance(added, AccountAdded)
        assert (added.account.account_id, added.account.version) == (opened.account_id, 0)
        assert await updates(feed, 1) == [(opened.account_id, 1)]


async def test_a_listener_that_is_killed_is_replaced_and_no_change_is_missed(serve, cluster):
    daemons = [serve(LEDGERD_FEED="notify") for _ in range(2)]
    async with AsyncExitStack() as stack:
        one, other = [
            await stack.enter_async_context(open_client(daemon.url, token=daemon.token)) for daemon in daemons
        ]
        account = (await one.call("user_register", name="Cid")).account.account_id
        everything = await stack.enter_async_context(one.subscribe("balances", all=True))
        mine = await stack.enter_async_context(one.subscribe("balances", account_ids=[account]))
        for feed in (everything, mine):
            await until_live(feed)
        killed = await trio.to_thread.run_sync(
            value,
            cluster.dsn,
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE application_name = 'ledgerd' AND (query LIKE 'LISTEN%' OR query LIKE '%pg_notify%')",
        )
        assert killed == 2
        for _ in range(5):
            await other.credit(account_id=account, amount="1.00", currency="USD")
        for feed in (everything, mine):
            assert await updates(feed, 5) == [(account, version) for version in range(1, 6)]


@pytest.mark.parametrize("feed", ["notify", "poll"])
async def test_a_paused_daemon_delivers_what_it_slept_through(serve, new_auditor, feed):
    awake, paused = serve(LEDGERD_FEED=feed), serve(LEDGERD_FEED=feed)
    async with (
        open_client(awake.url, token=awake.token) as writer,
        open_client(paused.url, token=paused.token) as reader,
    ):
        account = (await writer.call("user_register", name="Ann")).account.account_id
        auditor = new_auditor()
        async with reader.subscribe("balances", account_ids=[account]) as events, trio.open_nursery() as nursery:
            await nursery.start(auditor.run, events)
            await writer.credit(account_id=account, amount="1.00", currency="USD")
            await auditor.until(account, 1)
            paused.process.send_signal(signal.SIGSTOP)
            try:
                for _ in range(30):
                    await writer.credit(account_id=account, amount="1.00", currency="USD")
                assert auditor.of(account)[-1].version == 1
            finally:
                paused.process.send_signal(signal.SIGCONT)
            await auditor.until(account, 31)
            nursery.cancel_scope.cancel()
        assert [update.version for update in auditor.of(account)] == list(range(1, 32))
        assert reader.connections == 1
