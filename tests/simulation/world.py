"""One seed: a database, some daemons, their clients and a nemesis, from the beginning to the last question."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import msgspec
import structlog
import trio
import trio.testing
from msgspec import Struct

from ledgerd.config import Config
from ledgerd.engine.commands import AccountRef, Command
from ledgerd.gateway.authentication import secret_hash
from tests.simulation.chance import Uuids, governed
from tests.simulation.daemon import Daemon, Hintways
from tests.simulation.faults import weather_of
from tests.simulation.follower import Follower
from tests.simulation.line import Ended, Line, frame
from tests.simulation.nemesis import SERVICE, Nemesis
from tests.simulation.orders import Orders, Person
from tests.simulation.rough import Rough
from tests.simulation.steady import Steady
from tests.simulation.store import Store
from tests.simulation.trace import Trace
from tests.simulation.wire import End
from tests.simulation.witness import Witness

OPENING = "opening"
"""The reason of what was posted before the world began."""

PATIENCE_S = 60.0
"""For everybody to be answered and told everything, once nothing is broken any more."""

END_S = 400.0
"""After which somebody is stuck."""

EXPECTED_ERRORS = frozenset({"call_refused"})
"""What a daemon may log as an error without being wrong: clients send what the database refuses."""


class Result(Struct, frozen=True):
    """What came of a seed."""

    seed: int
    digest: str
    failures: list[str]
    events: int
    counts: dict[str, int]


def run_seed(seed: int, *, show: Callable[[str], None] | None = None) -> Result:
    """Run a seed to its end. Whatever goes wrong is among the failures."""
    trace: list[Trace] = []
    counts: Counter[str] = Counter()
    collecting = gc.isenabled()
    gc.disable()  # what it finalises, and when, is not of the seed
    try:
        with governed(str(seed)), _quiet(trace):
            # Entered by hand: a world that fails still has a trace to tell of.
            trio.run(_run, seed, show, trace, counts, clock=trio.testing.MockClock(autojump_threshold=0))
    except BaseExceptionGroup as group:
        _accept(group, trace)
    finally:
        if collecting:
            gc.enable()
    return Result(seed, trace[0].digest, trace[0].failures, trace[0].events, dict(counts))


def _accept(group: BaseExceptionGroup[BaseException], trace: list[Trace]) -> None:
    if group.split(Exception)[1] is not None or not trace:
        raise group
    trace[0].failures.append(f"it crashed: {_first(group)!r}")


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@contextmanager
def _quiet(trace: list[Trace]) -> Iterator[None]:
    """Nothing is written to the log; errors in it are failures, because every one is a bug that somebody caught."""

    def take(logger: Any, method: str, event: dict[str, Any]) -> Any:
        if event["event"] not in EXPECTED_ERRORS:
            trace[0].fail(f"the log has {event}")
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(
        processors=[take], wrapper_class=structlog.make_filtering_bound_logger(40), cache_logger_on_first_use=False
    )
    try:
        yield
    finally:
        structlog.configure(**before)


async def _run(seed: int, show: Callable[[str], None] | None, traces: list[Trace], counts: Counter[str]) -> None:
    trace = Trace(show)
    traces.append(trace)
    with trio.move_on_after(END_S) as limit:
        async with trio.open_nursery() as nursery:
            world = World(seed, trace, nursery)
            try:
                await world.live()
            finally:
                counts.update(world.witness.counts)
                counts.update(world.store.counts)
                counts["committed"] = len(world.store.commits)
            nursery.cancel_scope.cancel()
    if limit.cancelled_caught:
        trace.fail(f"it is not over after {END_S:g} s")


def config_of(rng: Random) -> Config:
    """Limits that a seed's daemons can run into."""
    return Config(
        lanes=rng.choice((1, 2, 2, 3)),
        readers=rng.choice((1, 2, 2)),
        call_commands_max=rng.choice((2, 8, 1000)),
        call_accounts_max=1000,
        in_flight_max=rng.choice((2, 32)),
        waiting_commands_max=rng.choice((4, 256)),
        outbox_bytes_max=rng.choice((4_096, 65_536)),
        user_inbox_max=rng.choice((4, 1_024)),
        user_idle_s=rng.choice((0.5, 30.0)),
        directory_entries_max=rng.choice((4, 200_000)),
        feed=rng.choice(("notify", "notify", "poll")),
        feed_poll_s=rng.choice((0.5, 1.0)),
        token_refresh_s=2.0,
        send_timeout_s=rng.choice((2.0, 30.0)),
        drain_timeout_s=rng.choice((3.0, 10.0)),
    )


class World:
    """Everything that runs under one seed."""

    def __init__(self, seed: int, trace: Trace, nursery: trio.Nursery) -> None:
        self.trace = trace
        self.rng = rng = Random(f"world {seed}")
        self._nursery = nursery
        self.config = config_of(rng)
        weather = weather_of(Random(f"weather {seed}"))
        self.store = Store(self.config, weather, trace, nursery)
        self.witness = Witness(self.store, trace)
        ways = Hintways(weather, nursery)
        self.daemons = [
            Daemon(f"daemon{number}", self.config, self.store, ways, trace, nursery)
            for number in range(1, rng.choice((1, 2, 2, 3)) + 1)
        ]
        self.people = self._people()
        self.orders = Orders(Random(f"orders {seed}"), self.people)
        self._open_before()
        self.clients = self._clients(seed)
        self.nemesis = Nemesis(Random(f"nemesis {seed}"), self.daemons, self.store, self.witness, self.people, trace)

    # -- before it begins -----------------------------------------------------------------------------------------

    def _people(self) -> list[Person]:
        rng, people = self.rng, []
        self.store.add_token(b"before", None, "operator")
        shape = ["steady"] * rng.choice((0, 1, 1, 2)) + ["rough"] * rng.choice((1, 2, 3)) + ["service"]
        user_ids = iter(range(1, 10))
        for number, kind in enumerate(shape):
            scopes = ("operator",) if kind == "service" else ("user",)
            user_id = None if kind == "service" else next(user_ids)
            name = f"{kind}{number}"
            secret = f"lgd_{number:043d}"
            self.store.add_token(secret_hash(secret), user_id, *scopes)
            # The service has an account of its own as well, of a user whom nobody signs in as.
            account_id = 10 * (user_id or 10)
            self.store.add_account(account_id, user_id or 10)
            people.append(Person(name, user_id, account_id, secret, scopes))
        # A second client of somebody: two connections, perhaps two daemons, one user.
        first = people[0]
        twin = Person(f"rough{len(people)}", first.user_id, first.account_id, f"lgd_{99:043d}", first.scopes)
        self.store.add_token(secret_hash(twin.secret), twin.user_id, *twin.scopes)
        return [*people, twin]

    def _open_before(self) -> None:
        """Money in every account, and some of it held, until soon after the beginning."""
        ids = Uuids(self.rng)
        accounts = sorted(self.store.ledger.accounts)
        money = [_command(ids, "credit", account, 10_000) for account in accounts]
        holds = [_command(ids, "hold", account, 500) for account in accounts if self.rng.random() < 0.5]
        self.store.post_before([*money, *holds], ago_s=60 - self.rng.choice((0.5, 2.0, 4.0)))
        for hold in holds:
            self.orders.know_hold(hold.transaction_id)

    def _clients(self, seed: int) -> list[Rough | Steady]:
        return [
            (Steady if person.name.startswith("steady") else Rough)(
                person.name,
                person,
                rng=Random(f"{person.name} {seed}"),
                orders=self.orders,
                store=self.store,
                witness=self.witness,
                dial=self._dial,
            )
            for person in self.people
        ]

    def _dial(self, rng: Random) -> tuple[str, End]:
        daemon = rng.choice(self.daemons)
        return daemon.name, daemon.connect(rng)

    # -- while it lasts -------------------------------------------------------------------------------------------

    async def live(self) -> None:
        """Fault and calm, the last answers, the end."""
        for daemon in self.daemons:
            await daemon.start()
        for client in self.clients:
            self._nursery.start_soon(self._run_client, client)
        self._nursery.start_soon(self._watch_memory)
        until = trio.current_time() + self.rng.choice((1.0, 2.0, 4.0, 8.0))
        async with trio.open_nursery() as restarts:
            await self.nemesis.run(restarts, until)
        await self._settle()
        await self._resolve()
        await self._until_told()
        async with trio.open_nursery() as draining:
            for daemon in self.daemons:
                draining.start_soon(daemon.drain)
        self.witness.conclude()

    async def _run_client(self, client: Rough | Steady) -> None:
        try:
            await client.run()
        finally:
            client.finished.set()

    async def _settle(self) -> None:
        """Everybody sends nothing more, and is answered."""
        for client in self.clients:
            client.stopping.set()
        with trio.move_on_after(PATIENCE_S) as patience:
            for client in self.clients:
                while not client.satisfied:  # noqa: ASYNC110 - simulated time costs nothing
                    await trio.sleep(0.05)
        if patience.cancelled_caught:
            late = [client.name for client in self.clients if not client.satisfied]
            self.trace.fail(f"{' '.join(late)} still waits {PATIENCE_S:g} s after everything was mended")

    async def _resolve(self) -> None:
        """Find out what became of every id whose client does not know: send a cancel, and believe the answer."""
        unresolved = self.witness.unresolved()
        if not unresolved:
            return
        service = next(person for person in self.people if person.user_id is None)
        try:
            with trio.fail_after(PATIENCE_S):
                line = await self._line_of(service)
                for sending in unresolved:
                    await self._resolve_one(line, sending.transaction_id)
        except (Ended, trio.TooSlowError):
            self.trace.fail("the auditor was cut off")

    async def _line_of(self, person: Person) -> Line:
        """A connection to some daemon; one that has just lost its database lets nobody in for a moment."""
        while True:
            line = Line(self._dial(self.rng)[1])
            if await line.open(person.secret) == 101:
                return line
            line.cut()
            await trio.sleep(0.2)

    async def _resolve_one(self, line: Line, transaction_id: str) -> None:
        method, params = self.orders.cancel(transaction_id)
        request = frame(
            msgspec.json.encode({"jsonrpc": "2.0", "id": transaction_id, "method": method, "params": params})
        )
        while True:
            sendings = self.witness.sends(method, params, None)
            await line.write(request)
            reply = await line.receive()
            error = reply.get("error")
            self.witness.answered(sendings, reply.get("result"), error)
            if error is None or not error["data"]["retryable"]:
                break
            await trio.sleep(0.2)  # the daemon may still be on its way back to its database
        self.witness.counts["resolved"] += 1
        if error is not None and error["data"]["code"] not in ("already_posted", "transaction_id_reused"):
            self.trace.fail(f"what became of {transaction_id} cannot be found out: {error['data']['code']}")
        self.witness.settle(transaction_id)

    # -- the last questions ---------------------------------------------------------------------------------------

    def _followers(self) -> list[Follower]:
        """Subscriptions of those who are still there."""
        there = (client for client in self.clients if isinstance(client, Steady) or not client.finished.is_set())
        return [follower for client in there for follower in client.followers]

    async def _until_told(self) -> None:
        """Everybody who follows is told everything."""
        give_up_at = trio.current_time() + PATIENCE_S
        while any(follower.behind() for follower in self._followers()):
            if trio.current_time() >= give_up_at:
                break
            await trio.sleep(0.05)
        for follower in self._followers():
            for what in follower.behind():
                self.trace.fail(f"subscription {follower.name} ({follower.mode}) {what}")
            self.witness.counts["told"] += follower.events

    async def _watch_memory(self) -> None:
        """No queue of any daemon may hold more than its limit, and what one reading of a socket can bring beside it."""
        while True:
            await trio.sleep(0.5)
            for daemon in self.daemons:
                for what, size, most in daemon.queues():
                    if size > most:
                        self.trace.fail(f"{daemon.name} has {size} in {what}, which may hold {most}")


def _command(ids: Uuids, kind: str, account: int, amount: int) -> Command:
    ref = AccountRef(account_id=account)
    made = Command(
        kind=kind,
        principal=SERVICE,
        transaction_id=str(ids.uuid7()),
        attempt_id=str(ids.uuid7()),
        debit=ref if kind == "hold" else None,
        credit=None if kind == "hold" else ref,
        amount=None,
        currency=None,
        reference=None,
        reason=OPENING,
        metadata=None,
        arrived_at=0.0,
        expires_in_s=60 if kind == "hold" else None,
    )
    made.debit_account = account if kind == "hold" else None
    made.credit_account = None if kind == "hold" else account
    made.amount_minor = amount
    return made
