"""A whole daemon on a real database within the test, its clients on memory streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import trio

from ledgerd.config import Config
from ledgerd.engine.collector import Collector
from ledgerd.engine.committer import Committer
from ledgerd.engine.directory import AccountDirectory
from ledgerd.engine.expirer import Expirer
from ledgerd.engine.feed import SharedFeed
from ledgerd.engine.hub import Hub
from ledgerd.engine.router import Router
from ledgerd.gateway.authentication import new_secret, secret_hash
from ledgerd.gateway.server import Gateway
from ledgerd.storage.books import PostgresBooks
from ledgerd.storage.generation import Generation, open_generation
from tests.conftest import Database
from tests.gateway.fakes import Client, MemoryListener, open_client


def fresh_id() -> str:
    """A transaction_id that nobody has used."""
    return str(uuid4())


class Person:
    """A user with an account, and clients that act for it."""

    def __init__(self, user_id: int, account_id: int, client: Client) -> None:
        self.user_id = user_id
        self.account_id = account_id
        self.client = client


class House:
    """A serving daemon. ``operator`` and ``service`` are clients with these scopes."""

    operator: Client
    service: Client

    def __init__(self, database: Database, books: PostgresBooks, generation: Generation, nursery: trio.Nursery) -> None:
        self.database = database
        self.books = books
        self.listener = MemoryListener()
        self._generation = generation
        self._nursery = nursery

    async def client(self, *scopes: str, user_id: int | None = None, account_id: int | None = None) -> Client:
        """A client with a new token."""
        secret = new_secret()
        await self.books.create_token(
            token_hash=secret_hash(secret),
            user_id=user_id,
            account_id=account_id,
            scopes=scopes,
            expires_at_s=None,
            label=None,
        )
        headers = [(b"Authorization", b"Bearer " + secret.encode())]
        return await open_client(self._nursery, self.listener.connect(), extra_headers=headers)

    async def person(self, balance: str | None = None, *, currency: str = "USD") -> Person:
        """A new user with this much money."""
        made = await self.operator.call("user_register", {"name": "somebody", "currency": currency})
        user_id, account_id = made["user"]["user_id"], made["account"]["account_id"]
        if balance is not None:
            await self.operator.call("credit", {"account_id": account_id, "amount": balance})
        return Person(user_id, account_id, await self.client("user", user_id=user_id))

    async def account(self, person: Person) -> Any:
        """The person's account as it is now."""
        return await self.operator.call("account_get", {"account_id": person.account_id})

    async def money(self, person: Person) -> tuple[str, str, str]:
        """Balance, held and available."""
        account = await self.account(person)
        return account["balance"], account["held"], account["available"]

    async def owner(self, sql: str, *values: Any) -> list[asyncpg.Record]:
        """A statement of the database's owner, on a connection of its own."""

        async def work() -> list[asyncpg.Record]:
            connection = await asyncpg.connect(self.database.dsn)
            try:
                return list(await connection.fetch(sql, *values))
            finally:
                await connection.close()

        return await self._generation.crossing.run_unwatched(work)

    async def advance_clock(self, seconds: int) -> None:
        """Let so much time pass for holds."""
        await self.owner("UPDATE ledgerd.settings SET clock_offset = clock_offset + $1", timedelta(seconds=seconds))


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Ask until the answer is yes; the test's timeout bounds it."""
    while not await condition():
        pass


async def follow(client: Client, account_id: int, **options: Any) -> list[Any]:
    """Subscribe to an account's balance; the events up to `live`, each version of them without a hole."""
    await client.call("ledger_subscribe", {"channel": "balances", "options": {"account_ids": [account_id], **options}})
    return await events_until(client, lambda event: event["type"] == "live")


async def events_until(client: Client, last: Callable[[Any], bool]) -> list[Any]:
    """The events that come up to the first of which ``last`` holds."""
    events = []
    while not events or not last(events[-1]):
        events.append((await client.receive())["params"]["result"])
    return events


async def updates(client: Client, number: int) -> list[Any]:
    """The next events, which must be so many updates."""
    return [(await client.receive())["params"]["result"] for _ in range(number)]


@asynccontextmanager
async def open_house(database: Database, **settings: Any) -> AsyncIterator[House]:
    """A daemon that serves; everything ends with the block."""
    config = Config(dsn=database.daemon_dsn, listen="localhost:8710", **settings)
    books = PostgresBooks()
    directory = AccountDirectory(books, config.directory_entries_max)
    hub = Hub(config, books, lambda: books.facts().epoch)
    feed = SharedFeed(config, books, hub)
    committer = Committer(config, feed.publish)
    async with open_generation(config, books, keep_epoch=False) as generation, trio.open_nursery() as nursery:
        await nursery.start(hub.run)
        nursery.start_soon(committer.run_sweeper)
        router = Router(config, directory, committer, nursery)
        nursery.start_soon(generation.watch)
        for lane in generation.lanes:
            nursery.start_soon(committer.run_lane, lane)
        nursery.start_soon(Expirer(config, books, router).run)
        nursery.start_soon(Collector(config, books, feed.publish).run)
        nursery.start_soon(feed.poll)
        if generation.notifications is not None:
            nursery.start_soon(feed.exchange_hints, generation.notifications)
        house = House(database, books, generation, nursery)
        gateway = Gateway(config, books=books, router=router, hub=hub, directory=directory)
        await nursery.start(gateway.serve, [house.listener])
        house.operator = await house.client("operator")
        house.service = await house.client("service")
        yield house
        nursery.cancel_scope.cancel()
