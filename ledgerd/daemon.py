"""The supervision tree: what runs inside what, readable top to bottom. The only module that knows all others.

    run_daemon
    ├── hub                      catch-up tasks of subscriptions
    ├── sweeper                  answers commands that wait too long while the database is away
    ├── user workers             one per active user, started by the router
    ├── HTTP side door           health and metrics, supervised alone
    ├── gateway                  listeners and sessions
    └── database, supervised     one generation at a time:
        ├── watch                ends the generation when a connection breaks or hangs
        ├── lanes                one task per connection, each posting for whoever waits
        └── feed poll            finds changes that other daemons committed

Sessions outlive generations: while the database is away, commands are answered `unavailable`, readiness is 503, and all
goes on by itself when it is back.
"""

from __future__ import annotations

import random
import signal
from collections.abc import AsyncIterator, Callable

import structlog
import trio
from msgspec import Struct

from ledgerd.config import Config
from ledgerd.engine.committer import Committer
from ledgerd.engine.directory import AccountDirectory
from ledgerd.engine.hub import Hub
from ledgerd.engine.ports import StorageUnavailable
from ledgerd.engine.router import Router
from ledgerd.gateway.http import serve_http
from ledgerd.gateway.server import Gateway, open_listeners
from ledgerd.storage.books import PostgresBooks
from ledgerd.storage.generation import DatabaseUnfit, open_generation
from ledgerd.supervision import supervise

HEADS_PER_POLL = 1_000

log = structlog.get_logger(__name__)


class ReadyInfo(Struct, frozen=True):
    """Where the daemon can be reached, with the real ports."""

    ws_url: str
    http_url: str


async def run_daemon(config: Config, *, on_ready: Callable[[ReadyInfo], None], keep_epoch: bool = False) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends at once.

    Raises DatabaseUnfit when the database cannot be served from, OSError when an address cannot be listened on.
    """
    books = PostgresBooks()
    directory = AccountDirectory(books, config.directory_entries_max)
    hub = Hub(config, books, lambda: books.facts().epoch)
    committer = Committer(config, hub.publish)
    stopping = trio.Event()

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey_signals, signals, stopping, nursery.cancel_scope)
            await nursery.start(hub.run)
            nursery.start_soon(committer.run_sweeper)
            await nursery.start(_serve_database, config, books, committer, hub, keep_epoch)

            router = Router(config, directory, committer, nursery)
            gateway = Gateway(config, books=books, router=router, hub=hub, directory=directory)

            def ready() -> tuple[bool, str]:
                if stopping.is_set():
                    return False, "stopping"
                return (True, "ready") if books.connected else (False, "the database is not reachable")

            http_url = await nursery.start(_serve_side_door, config, ready)
            listeners = await open_listeners(config)
            await nursery.start(gateway.serve, listeners)
            on_ready(ReadyInfo(ws_url=gateway.url, http_url=http_url))
            log.info("ready", ws=gateway.url, http=http_url)

            await stopping.wait()
            log.info("draining", timeout_s=config.drain_timeout_s)
            with trio.move_on_after(config.drain_timeout_s):
                await gateway.drain(trio.current_time() + config.drain_timeout_s)
                await router.drain()
            nursery.cancel_scope.cancel()
    log.info("stopped")


async def _obey_signals(signals: AsyncIterator[int], stopping: trio.Event, everything: trio.CancelScope) -> None:
    async for number in signals:
        log.info("signal", name=signal.Signals(number).name)
        if stopping.is_set():
            everything.cancel()
        stopping.set()


async def _serve_side_door(
    config: Config,
    ready: Callable[[], tuple[bool, str]],
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    await serve_http(config, ready=ready, task_status=task_status)


async def _serve_database(
    config: Config,
    books: PostgresBooks,
    committer: Committer,
    hub: Hub,
    keep_epoch: bool,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run generations for ever; started when the first one works."""
    started = False

    async def generation(healthy: Callable[[], None]) -> None:
        nonlocal started
        async with open_generation(config, books, keep_epoch=keep_epoch) as opened, trio.open_nursery() as nursery:
            nursery.start_soon(opened.watch)
            for lane in opened.lanes:
                nursery.start_soon(committer.run_lane, lane)
            nursery.start_soon(_poll_feed, config, books, hub)
            healthy()
            if not started:
                started = True
                task_status.started()

    await supervise(
        generation,
        name="database",
        recoverable=(StorageUnavailable,),
        restarts_max=config.restarts_max,
    )


async def _poll_feed(config: Config, books: PostgresBooks, hub: Hub) -> None:
    """Find versions that other daemons committed to accounts somebody follows here."""
    while True:
        await trio.sleep(config.feed_poll_s * random.uniform(0.8, 1.2))  # noqa: S311 - jitter, not a secret
        accounts = hub.followed_accounts()
        for start in range(0, len(accounts), HEADS_PER_POLL):
            hub.advance_heads(await books.heads(accounts[start : start + HEADS_PER_POLL]))


__all__ = ["DatabaseUnfit", "ReadyInfo", "run_daemon"]
