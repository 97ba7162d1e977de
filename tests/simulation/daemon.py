"""One daemon of a simulated world: the real engine and gateway, put together as `ledgerd.daemon` does.

Only what touches the machine is another: the database (`store`), the listener (`wire`), the wire of hints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

import trio

from ledgerd.config import Config
from ledgerd.engine.committer import Committer
from ledgerd.engine.directory import AccountDirectory
from ledgerd.engine.expirer import Expirer
from ledgerd.engine.feed import SharedFeed
from ledgerd.engine.hub import Hub
from ledgerd.engine.ports import StorageUnavailable
from ledgerd.engine.router import Router
from ledgerd.gateway.server import RECEIVE_BYTES, Gateway
from ledgerd.supervision import supervise
from tests.simulation.books import StoreBooks, StoreLane
from tests.simulation.faults import Weather
from tests.simulation.store import Connection, Store
from tests.simulation.trace import Trace
from tests.simulation.wire import End, Listener

PING_INTERVAL_S = 2.0
HEARD_MAX = 1_000

ANSWER_BYTES_MAX = 4_096
"""More than any answer of these clients' requests has."""

REQUEST_BYTES_MIN = 40
"""Less than any of their requests has."""


class Hintways:
    """What carries hints between the daemons: late, more than once, in another order, or not at all."""

    def __init__(self, weather: Weather, nursery: trio.Nursery) -> None:
        self._weather = weather
        self._nursery = nursery
        self._ears: dict[Hintway, None] = {}

    def open(self, books: StoreBooks) -> Hintway:
        """The way of one generation of one daemon."""
        way = Hintway(self, books)
        self._ears[way] = None
        return way

    def close(self, way: Hintway) -> None:
        """Nothing more is heard there."""
        del self._ears[way]

    def say(self, payload: str) -> None:
        """To everybody, the one who says it included."""
        for way in list(self._ears):
            for after_s in self._weather.hint_arrives_s():
                self._nursery.start_soon(self._arrive, way, payload, after_s)

    async def _arrive(self, way: Hintway, payload: str, after_s: float) -> None:
        await trio.sleep(after_s)
        if way in self._ears:
            way.hear(payload)


class Hintway:
    """See `ledgerd.engine.feed.Wire`."""

    def __init__(self, ways: Hintways, books: StoreBooks) -> None:
        self._ways = ways
        self._books = books
        self._heard, self.payloads = trio.open_memory_channel[str](HEARD_MAX)

    def hear(self, payload: str) -> None:
        """A hint has arrived; without room it is dropped."""
        try:
            self._heard.send_nowait(payload)
        except (trio.WouldBlock, trio.BrokenResourceError):
            return

    async def send(self, payload: str) -> None:
        await self._books.ping()
        self._ways.say(payload)

    async def ping(self) -> None:
        while True:
            await trio.sleep(PING_INTERVAL_S)
            await self._books.ping()


class Daemon:
    """A daemon that can be started, drained and crashed, again and again."""

    def __init__(
        self, name: str, config: Config, store: Store, ways: Hintways, trace: Trace, nursery: trio.Nursery
    ) -> None:
        self.name = name
        self._nursery = nursery
        self.listener = Listener()
        self.up = False
        self._config = config
        self._store = store
        self._ways = ways
        self._trace = trace
        self._scope = trio.CancelScope()
        self._stopping = trio.Event()
        self._stopped = trio.Event()
        self._connection: Connection | None = None
        self.gateway: Gateway | None = None
        self.router: Router | None = None

    # -- what the nemesis and the clients do ----------------------------------------------------------------------

    def connect(self, rng: Random) -> End:
        """A connection. Raises ConnectionRefusedError while the daemon is down."""
        return self.listener.connect(rng)

    def crash(self) -> None:
        """Gone at once, with everything in its memory: nobody is told anything."""
        self._trace.note(self.name, "crashes")
        self.up = False
        self.listener.cut_all()
        if self._connection is not None:
            self._connection.lose()
        self._scope.cancel()

    async def drain(self) -> None:
        """Stop as after SIGTERM; returns when it has ended."""
        self._trace.note(self.name, "drains")
        self.up = False
        began = trio.current_time()
        self._stopping.set()
        await self._stopped.wait()
        took = trio.current_time() - began
        self._trace.note(self.name, "ended")
        # A call that hangs is waited for until it is given up: cutting it off would leave its outcome to chance.
        config = self._config
        if took > config.drain_timeout_s + config.call_timeout_s + config.lock_timeout_s + 1:
            self._trace.fail(f"{self.name} took {took:.3f} s to drain")

    def queues(self) -> Iterator[tuple[str, int, int]]:
        """What waits in its queues: the name of each, what it holds, and the most that it may."""
        if not self.up or self.gateway is None or self.router is None:
            return
        config = self._config
        answers = config.in_flight_max * ANSWER_BYTES_MAX
        for session in self.gateway._sessions:
            yield "an outbox", session._outbox.size, config.outbox_bytes_max + answers
            yield "a session", len(session._waiting), config.waiting_commands_max + RECEIVE_BYTES // REQUEST_BYTES_MIN
        for worker in self.router._workers.values():
            yield "an inbox", len(worker.inbox), config.user_inbox_max

    async def ended(self) -> None:
        """Return when the present life is over."""
        await self._stopped.wait()

    async def start(self) -> None:
        """Begin a life; returns when it listens."""
        await self._nursery.start(self._live)

    # -- running --------------------------------------------------------------------------------------------------

    async def _live(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self.listener = Listener()
        self._scope = trio.CancelScope()
        self._stopping, self._stopped = trio.Event(), trio.Event()
        self._connection = None  # what a former life left on the server, this one does not know of
        try:
            with self._scope:
                await self._run(task_status)
        finally:
            self.up = False
            self.listener.cut_all()
            self._stopped.set()

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        config = self._config
        books = StoreBooks(self._store, config.readers)
        directory = AccountDirectory(books, config.directory_entries_max)
        hub = Hub(config, books, lambda: books.facts().epoch)
        feed = SharedFeed(config, books, hub)
        committer = Committer(config, feed.publish)
        async with trio.open_nursery() as nursery:
            await nursery.start(hub.run)
            nursery.start_soon(committer.run_sweeper)
            self.router = router = Router(config, directory, committer, nursery)
            expirer = Expirer(config, books, router)
            await nursery.start(self._serve_database, books, committer, feed, expirer)
            self.gateway = Gateway(config, books=books, router=router, hub=hub, directory=directory)
            await nursery.start(self.gateway.serve, [self.listener])
            self.up = True
            self._trace.note(self.name, "ready")
            task_status.started()
            await self._stopping.wait()
            deadline = trio.current_time() + config.drain_timeout_s
            fair = self._store.weather.calm
            expirer.stop()
            orphaned = await self.gateway.drain(deadline)
            with trio.move_on_at(deadline):
                await router.drain()
            if orphaned and fair:
                self._trace.fail(f"{self.name} left {orphaned} messages unanswered in fair weather")
            nursery.cancel_scope.cancel()

    async def _serve_database(
        self,
        books: StoreBooks,
        committer: Committer,
        feed: SharedFeed,
        expirer: Expirer,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        started = False

        async def generation(healthy: Callable[[], None]) -> None:
            nonlocal started
            await trio.sleep(0.005)  # connecting
            if self._store.away:
                raise StorageUnavailable("the database cannot be reached")
            if self._connection is not None:
                self._store.end_leftovers(self._connection)
            connection = self._connection = Connection(self.name)
            books.attach(connection)
            way = self._ways.open(books)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch, books)
                    await nursery.start(feed.follow_monitors)
                    for _ in range(self._config.lanes):
                        nursery.start_soon(committer.run_lane, StoreLane(self._store, connection))
                    nursery.start_soon(expirer.run)
                    nursery.start_soon(feed.poll)
                    if self._config.feed == "notify":
                        nursery.start_soon(feed.exchange_hints, way)
                    healthy()
                    self._trace.note(self.name, "connected")
                    if not started:
                        started = True
                        task_status.started()
            finally:
                books.connection = None
                self._ways.close(way)

        await supervise(
            generation, name="database", recoverable=(StorageUnavailable,), restarts_max=self._config.restarts_max
        )

    async def _watch(self, books: StoreBooks) -> None:
        """Raises StorageUnavailable as soon as the generation cannot go on."""
        while True:
            await trio.sleep(PING_INTERVAL_S)
            await books.ping()
