"""The supervision tree: what runs inside what, readable top to bottom. The only module that knows all others.

    run_daemon
    ├── signals                  TERM and INT drain, HUP reloads the settings
    ├── status, watchdog         tell the service manager how the daemon is, and that it lives
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

The outer parts of the tree run for as long as the daemon does, and are watched: see `Vitals`. To stop, the daemon
drains from the outside in: it is no longer ready, listens no more, refuses new commands, lets the answers in flight
out, closes its sessions, and waits for its workers; at the latest after `drain_timeout_s`, or at a second signal, it
leaves.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial

import structlog
import trio
from msgspec import Struct

from ledgerd.condition import Condition, Stage
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
from ledgerd.gateway.tls import CertificateUnusable, ServerTls
from ledgerd.listeners import CannotListen, HandedOver, open_listeners, place_of, take_listeners, url_of
from ledgerd.logs import tell_suppressed
from ledgerd.notify import Notifier
from ledgerd.process import Terminal, prepare_process
from ledgerd.reload import Reloader, Reread
from ledgerd.storage.books import PostgresBooks
from ledgerd.storage.generation import DatabaseUnfit, open_generation
from ledgerd.supervision import RestartLimitReached, Vitals, supervise

SIDE_DOOR_RESTARTS_MAX = 100

NOTHING_HANDED_OVER = HandedOver()

_TO_BE_MENDED = (DatabaseUnfit, InsecureListen, CannotListen, CertificateUnusable, RestartLimitReached)
"""What the parts raise when somebody has to do something about it: starting again will not help."""

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = structlog.get_logger(__name__)


class ReadyInfo(Struct, frozen=True):
    """Where the daemon can be reached, with the real ports."""

    ws_url: str
    http_url: str


class DaemonFailed(Exception):
    """The daemon cannot serve, and starting it again will not help: the message says what to mend."""


async def run_daemon(
    config: Config,
    *,
    on_ready: Callable[[ReadyInfo], None],
    keep_epoch: bool = False,
    sockets: HandedOver = NOTHING_HANDED_OVER,
    reread: Reread | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends at once. With ``reread``, SIGHUP reloads.

    ``sockets`` take the place of `listen` and `http`. Answers how many messages were left unanswered in the end.
    Raises DaemonFailed. Anything else that comes out is a bug.
    """
    prepare_process(config)
    failures: list[Exception] = []
    orphaned = 0
    try:
        orphaned = await _run(config, on_ready, keep_epoch=keep_epoch, sockets=sockets, reread=reread)
    except* (DaemonFailed, *_TO_BE_MENDED) as group:
        failures = list(_leaves(group))
    if failures:
        raise DaemonFailed(str(failures[0])) from failures[0]
    return orphaned


def _leaves(group: BaseExceptionGroup[Exception]) -> Iterator[Exception]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


async def _run(
    config: Config,
    on_ready: Callable[[ReadyInfo], None],
    *,
    keep_epoch: bool,
    sockets: HandedOver,
    reread: Reread | None,
) -> int:
    notifier = Notifier.from_environment(os.environ)
    tls = ServerTls(config.tls_certificate, config.tls_key) if config.tls_certificate else None
    books = PostgresBooks()
    directory = AccountDirectory(books, config.directory_entries_max)
    hub = Hub(config, books, lambda: books.facts().epoch)
    feed = SharedFeed(config, books, hub)
    committer = Committer(config, feed.publish)

    condition, vitals = Condition(books), Vitals()
    reloader = Reloader(config, reread or (lambda: config), condition)
    stopping, patience = trio.Event(), trio.CancelScope()
    orphaned = 0

    with trio.open_signal_receiver(*_STOP_SIGNALS, *([] if reread is None else [signal.SIGHUP])) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey_signals, signals, condition, reloader, stopping, patience, nursery.cancel_scope)
            nursery.start_soon(notifier.keep_status, condition.line)
            nursery.start_soon(notifier.keep_watchdog, vitals.dead)

            nursery.start_soon(tell_suppressed)
            await nursery.start(vitals.keep, "hub", hub.run)
            nursery.start_soon(vitals.keep, "sweeper", committer.run_sweeper)
            router = Router(config, directory, committer, nursery)
            expirer = Expirer(config, books, router)
            collector = Collector(config, books, feed.publish, lambda _: hub.advances.news.stir())
            reconciler = Reconciler(config, books, hub.alerts)
            database = partial(
                _serve_database, config, books, committer, feed, expirer, collector, reconciler, keep_epoch
            )
            await nursery.start(vitals.keep, "database", database)

            gateway = Gateway(config, books=books, router=router, hub=hub, directory=directory, tls=tls)
            condition.sessions = gateway
            side_door = partial(_serve_side_door, config, sockets, condition.ready)
            http_url = await nursery.start(vitals.keep, "side door", side_door)
            gateway.allow_origin(http_url)
            listeners = await _listeners(config, sockets, gateway)
            info = ReadyInfo(ws_url=url_of(listeners[0], "wss" if tls else "ws"), http_url=http_url)
            serving = partial(gateway.serve, listeners, handed_over=bool(sockets.websocket))
            await nursery.start(vitals.keep, "gateway", serving)

            condition.stage = Stage.SERVING
            log.info("ready", ws=info.ws_url, http=info.http_url, handed_over=len(sockets.websocket + sockets.http))
            on_ready(info)
            await notifier.ready(condition.line())
            nursery.start_soon(reloader.run, gateway, tls, notifier)

            await stopping.wait()
            vitals.stopping = True
            condition.stage = Stage.STOPPING
            await notifier.stopping(condition.line())
            with patience:
                expirer.stop()
                collector.stop()
                await _drain(gateway, router, reloader.config.drain_timeout_s)
            orphaned = gateway.unanswered
            nursery.cancel_scope.cancel()
    await notifier.status(f"stopped, {orphaned} messages left unanswered")
    log.info("stopped", orphaned=orphaned, hurried=patience.cancelled_caught)
    return orphaned


async def _listeners(config: Config, sockets: HandedOver, gateway: Gateway) -> list[trio.SocketListener]:
    if not sockets.websocket:
        return await open_listeners(config.listen, reuse_port=config.reuse_port)
    listeners = take_listeners(sockets.websocket)
    for listener in listeners:
        gateway.allow_host(place_of(listener))
    return listeners


async def _drain(gateway: Gateway, router: Router, timeout_s: float) -> None:
    log.info("draining", timeout_s=timeout_s)
    deadline = trio.current_time() + timeout_s
    await gateway.drain(deadline)
    with trio.move_on_at(deadline):
        await router.drain()


async def _obey_signals(
    signals: AsyncIterator[int],
    condition: Condition,
    reloader: Reloader,
    stopping: trio.Event,
    patience: trio.CancelScope,
    everything: trio.CancelScope,
) -> None:
    """The first signal to stop drains; a second one, or one while there is nothing to drain yet, ends at once."""
    terminal = Terminal()
    async for number in signals:
        log.info("signal", name=signal.Signals(number).name)
        if number == signal.SIGHUP and not terminal.gone:
            reloader.request()
        elif condition.stage is Stage.STARTING:
            everything.cancel()
        elif stopping.is_set():
            patience.cancel()
        else:
            stopping.set()


async def _serve_side_door(
    config: Config,
    sockets: HandedOver,
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
                urls = await nursery.start(partial(serve_http, config, ready=ready, binds=sockets.http_binds()))
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
        async with open_generation(config, books, keep_epoch=keep_epoch) as opened, trio.open_nursery() as outer:
            outer.start_soon(opened.cut_off)  # cancelled with all of this, and not when a lane ends the generation
            async with trio.open_nursery() as nursery:
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
