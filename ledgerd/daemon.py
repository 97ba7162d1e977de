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
        ├── expirer              ends holds whose time is over
        ├── collector            takes payments of advances that are due
        ├── reconciler           looks for advances whose sums do not hold
        ├── monitors             follows which are set, by whichever daemon
        └── feed                 hears of changes that other daemons committed, and polls for what it did not hear

Sessions outlive generations: while the database is away, commands are answered `unavailable`, readiness is 503, and all
goes on by itself when it is back.
"""

from __future__ import annotations

import gc
import resource
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial

import structlog
import trio
from msgspec import Struct

from ledgerd.config import Config
from ledgerd.engine.collector import Collector
from ledgerd.engine.committer import Committer
from ledgerd.engine.directory import AccountDirectory
from ledgerd.engine.expirer import Expirer
from ledgerd.engine.feed import SharedFeed
from ledgerd.engine.hub import Hub
from ledgerd.engine.ports import StorageUnavailable
from ledgerd.engine.reconciler import Reconciler
from ledgerd.engine.router import Router
from ledgerd.gateway.http import serve_http
from ledgerd.gateway.server import Gateway, InsecureListen
from ledgerd.storage.books import PostgresBooks
from ledgerd.storage.generation import DatabaseUnfit, open_generation
from ledgerd.supervision import RestartLimitReached, supervise

SIDE_DOOR_RESTARTS_MAX = 100

GC_THRESHOLDS = (100_000, 50, 100)
"""Sessions are many objects that live long. With Python's defaults the collector walks over all of them so often that
it takes a third of the daemon's time with a thousand connections; reference counts free nearly everything anyway."""

FILES_TO_SPARE = 100
"""Beside those of clients: the database's, the listeners', the log's."""

log = structlog.get_logger(__name__)


class ReadyInfo(Struct, frozen=True):
    """Where the daemon can be reached, with the real ports."""

    ws_url: str
    http_url: str


class DaemonFailed(Exception):
    """The daemon cannot serve, and starting it again will not help: the message says what to mend."""


async def run_daemon(config: Config, *, on_ready: Callable[[ReadyInfo], None], keep_epoch: bool = False) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends at once.

    Raises DaemonFailed. Anything else that comes out is a bug.
    """
    _prepare_process(config)
    failures: list[Exception] = []
    try:
        await _run(config, on_ready, keep_epoch=keep_epoch)
    except* (DaemonFailed, DatabaseUnfit, InsecureListen, RestartLimitReached) as group:
        failures = list(_leaves(group))
    if failures:
        raise DaemonFailed(str(failures[0])) from failures[0]


def _prepare_process(config: Config) -> None:
    """Settings of the process as a whole: open files as many as allowed, and a collector that suits a server."""
    gc.set_threshold(*GC_THRESHOLDS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    enough = hard == resource.RLIM_INFINITY or hard >= config.connections_max + FILES_TO_SPARE
    log.info("open_files", before=soft, allowed=hard, enough=enough, connections_max=config.connections_max)


def _leaves(group: BaseExceptionGroup[Exception]) -> Iterator[Exception]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


async def _run(config: Config, on_ready: Callable[[ReadyInfo], None], *, keep_epoch: bool) -> None:
    books = PostgresBooks()
    directory = AccountDirectory(books, config.directory_entries_max)
    hub = Hub(config, books, lambda: books.facts().epoch)
    feed = SharedFeed(config, books, hub)
    committer = Committer(config, feed.publish)
    serving, stopping = trio.Event(), trio.Event()

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey_signals, signals, serving, stopping, nursery.cancel_scope)
            await nursery.start(hub.run)
            nursery.start_soon(committer.run_sweeper)
            router = Router(config, directory, committer, nursery)
            expirer = Expirer(config, books, router)
            collector = Collector(config, books, feed.publish, lambda _: hub.advances.news.stir())
            reconciler = Reconciler(config, books, hub.alerts)
            await nursery.start(
                _serve_database, config, books, committer, feed, expirer, collector, reconciler, keep_epoch
            )

            gateway = Gateway(config, books=books, router=router, hub=hub, directory=directory)

            def ready() -> tuple[bool, str]:
                if stopping.is_set():
                    return False, "stopping"
                return (True, "ready") if books.connected else (False, "the database is not reachable")

            http_url = await nursery.start(_serve_side_door, config, ready)
            gateway.allow_origin(http_url)
            listeners = await _open_listeners(config.listen)
            info = ReadyInfo(ws_url=_ws_url(listeners[0]), http_url=http_url)
            await nursery.start(gateway.serve, listeners)
            log.info("ready", ws=info.ws_url, http=info.http_url)
            on_ready(info)

            serving.set()
            await stopping.wait()
            deadline = trio.current_time() + config.drain_timeout_s
            log.info("draining", timeout_s=config.drain_timeout_s)
            expirer.stop()
            collector.stop()
            await gateway.drain(deadline)
            with trio.move_on_at(deadline):
                await router.drain()
            nursery.cancel_scope.cancel()
    log.info("stopped")


async def _open_listeners(address: str) -> list[trio.SocketListener]:
    """Listeners on ``HOST:PORT``, the host of an IPv6 address in brackets."""
    host, _, port = address.rpartition(":")
    try:
        return await trio.open_tcp_listeners(int(port), host=host.strip("[]"))
    except (OSError, ValueError) as error:
        raise DaemonFailed(f"cannot listen on {address}: {error}") from error


def _ws_url(listener: trio.SocketListener) -> str:
    host, port = listener.socket.getsockname()[:2]
    return f"ws://[{host}]:{port}/" if ":" in host else f"ws://{host}:{port}/"


async def _obey_signals(
    signals: AsyncIterator[int], serving: trio.Event, stopping: trio.Event, everything: trio.CancelScope
) -> None:
    """The first signal drains; a second one, or one while there is nothing to drain yet, ends at once."""
    async for number in signals:
        log.info("signal", name=signal.Signals(number).name)
        if stopping.is_set() or not serving.is_set():
            everything.cancel()
        stopping.set()


async def _serve_side_door(
    config: Config,
    ready: Callable[[], tuple[bool, str]],
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve health and metrics for ever, whatever the network does to it; started when it listens."""
    started = False

    async def door(healthy: Callable[[], None]) -> None:
        nonlocal started
        async with trio.open_nursery() as nursery:
            try:
                urls = await nursery.start(partial(serve_http, config, ready=ready))
            except* OSError as group:
                # An address that cannot be had is for the operator to mend; one that was had is tried again.
                if started:
                    raise
                reason = next(_leaves(group))
                raise DaemonFailed(f"cannot listen on {config.http} for HTTP: {reason}") from reason
            healthy()
            if not started:
                started = True
                task_status.started(urls[0])

    await supervise(door, name="side door", recoverable=(OSError,), restarts_max=SIDE_DOOR_RESTARTS_MAX)


async def _serve_database(
    config: Config,
    books: PostgresBooks,
    committer: Committer,
    feed: SharedFeed,
    expirer: Expirer,
    collector: Collector,
    reconciler: Reconciler,
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
            await nursery.start(feed.follow_monitors)  # before the lanes: what they commit may cross one
            for lane in opened.lanes:
                nursery.start_soon(committer.run_lane, lane)
            nursery.start_soon(expirer.run)
            nursery.start_soon(collector.run)
            nursery.start_soon(reconciler.run)
            nursery.start_soon(feed.poll)
            if opened.notifications is not None:
                nursery.start_soon(feed.exchange_hints, opened.notifications)
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
