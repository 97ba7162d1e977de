"""Whatever happens in whatever order: the feed stays complete, and commands are applied once and answered truly."""

from __future__ import annotations

from typing import Any

import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from ledgerd.engine.commands import Posted, Refused
from ledgerd.engine.subscription import Subscription
from ledgerd_protocol.errors import ErrorCode
from ledgerd_protocol.messages import Since
from tests.engine.fake_ledger import (
    OPERATOR,
    POISON,
    SERVICE,
    Asked,
    Engine,
    FakeLedger,
    FakeSink,
    Fault,
    command,
    open_engine,
    principal,
)

ACCOUNTS = 4
OLD = 2
account = st.integers(1, ACCOUNTS)
accounts = st.tuples(account, account).filter(lambda pair: pair[0] != pair[1])
moderate = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def fake_ledger() -> FakeLedger:
    ledger = FakeLedger()
    for number in range(1, ACCOUNTS + 1):
        ledger.open(number, balance=10_000)
    return ledger


# -- the feed -------------------------------------------------------------------------------------------------------


class Client:
    """A subscriber that checks every event, and resumes where it stood."""

    def __init__(self, engine: Engine, followed: tuple[int, ...], channel: str, mode: str) -> None:
        """With nothing ``followed``, whatever user 1 has, and will have."""
        self.engine = engine
        self.mine = not followed
        self.followed = followed
        self.channel = channel
        self.mode = mode
        self.versions: dict[int, int] = {}
        self.transactions: set[str] = set()
        self.sink = FakeSink()
        self.subscription: Subscription | None = None
        self.started = False
        self.subscribe()

    def subscribe(self) -> None:
        """Begin, or begin again with what is known."""
        self.read()
        if self.subscription is not None:
            self.engine.hub.unsubscribe(self.subscription)
        since = Since(epoch="e1", versions=dict(self.versions)) if self.versions else UNSET
        room = self.sink.room_for
        self.sink = FakeSink()
        self.sink.room_for = room
        self.started = False
        if self.mine:
            self.followed = tuple(
                state.account_id for state in self.engine.ledger.accounts.values() if state.user_id == 1
            )
        self.subscription = self.engine.follow(
            self.sink,
            *self.followed,
            by=principal(1) if self.mine else SERVICE,
            channel=self.channel,
            mode=self.mode,
            since=since,
        )

    def read(self) -> None:
        """Check and apply what has come."""
        for event in self.sink.take():
            getattr(self, f"on_{event['type']}")(event)

    def on_start(self, event: dict[str, Any]) -> None:
        assert not self.started
        self.started = True
        if self.mine:
            self.followed = tuple(start["account_id"] for start in event["accounts"])
        for start in event["accounts"]:
            if start["from"] == "snapshot":
                assert start["account_id"] not in self.versions, "it could have been resumed"
                self.versions[start["account_id"]] = start["version"]
            else:
                assert start["version"] >= self.versions[start["account_id"]]

    def on_account_added(self, event: dict[str, Any]) -> None:
        assert self.started
        number = event["account"]["account_id"]
        assert number not in self.versions
        self.followed += (number,)
        self.versions[number] = event["account"]["version"]

    def on_live(self, _: dict[str, Any]) -> None:
        assert self.started

    def on_update(self, event: dict[str, Any]) -> None:
        assert self.started
        number = event["account_id"]
        skipped = event.get("skipped", 0)
        assert self.mode == "latest" or not skipped
        assert event["version"] == self.versions[number] + 1 + skipped
        self.versions[number] = event["version"]

    def on_transaction(self, event: dict[str, Any]) -> None:
        assert self.started
        transaction = event["transaction"]
        assert transaction["transaction_id"] not in self.transactions
        self.transactions.add(transaction["transaction_id"])
        entries = [entry for entry in transaction["entries"] if entry["account_id"] in self.followed]
        steps = [entry["version"] - self.versions[entry["account_id"]] for entry in entries]
        assert max(steps) == 1, "new in one of the accounts, and nothing before it is missing"
        for entry in entries:
            self.versions[entry["account_id"]] = max(self.versions[entry["account_id"]], entry["version"])


class Operator:
    """Follows everything, checks every event, drops what comes again, and resumes where it stood."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.versions = {state.account_id: state.version for state in engine.ledger.accounts.values()}
        self.position: str | None = None
        self.sink = FakeSink()
        self.subscription: Subscription | None = None
        self.subscribe()

    def subscribe(self) -> None:
        """Begin, or begin again with what is known."""
        self.read()
        if self.subscription is not None:
            self.engine.hub.unsubscribe(self.subscription)
        if self.position is None:
            # Not even its start came: it begins where the data is by now.
            self.versions = {state.account_id: state.version for state in self.engine.ledger.accounts.values()}
        since = UNSET if self.position is None else Since(epoch="e1", position=self.position)
        room = self.sink.room_for
        self.sink = FakeSink()
        self.sink.room_for = room
        self.subscription = self.engine.follow(self.sink, by=OPERATOR, all=True, since=since)

    def read(self) -> None:
        """Check and apply what has come."""
        for event in self.sink.take():
            assert event["type"] in {"start", "live", "update"}
            assert "reason" not in event
            if event["type"] == "update":
                last = self.versions.get(event["account_id"], 0)
                assert event["version"] <= last + 1
                self.versions[event["account_id"]] = max(last, event["version"])
            self.position = event.get("position", self.position)


feed_step = st.one_of(
    st.tuples(st.just("move"), accounts),
    st.tuples(st.just("move"), accounts),
    st.tuples(st.just("elsewhere"), accounts),
    st.tuples(st.just("poll"), st.none()),
    st.tuples(st.just("room"), st.tuples(st.integers(0, 9), st.sampled_from([0, 0, 1, 2, 5, None]))),
    st.tuples(st.just("wait"), st.sampled_from([0.0002, 0.001, 0.002, 0.03, 0.5])),
    st.tuples(st.just("away"), st.booleans()),
    st.tuples(
        st.just("follow"),
        st.tuples(
            st.sampled_from([(1,), (1, 2), (1, 2, 3, 4), (3, 4), (), ()]),
            st.sampled_from([("balances", "stream"), ("balances", "latest"), ("transactions", "stream")]),
        ),
    ),
    st.tuples(st.just("again"), st.integers(0, 9)),
    st.tuples(st.just("open"), st.booleans()),
    st.tuples(st.just("hold"), st.booleans()),
    st.tuples(st.just("operator"), st.sampled_from([0, 0, 1, 2, 5, None])),
)


@moderate
@given(steps=st.lists(feed_step, max_size=60))
def test_every_subscriber_sees_every_version_once_whatever_happens(steps: list[tuple[str, Any]]) -> None:
    trio.run(run_feed, steps, clock=trio.testing.MockClock(autojump_threshold=0))


def among(ledger: FakeLedger, pair: tuple[int, int]) -> tuple[int, int]:
    """Two accounts, the youngest ones included: those above the first few count from the end."""
    newest = len(ledger.accounts)
    source, destination = (newest - number + OLD if number > OLD else number for number in pair)
    return (source, destination) if source != destination else (1, newest)


def poll(engine: Engine) -> None:
    """A round of polling, without the calls."""
    ledger, hub = engine.ledger, engine.hub
    hub.look()
    hub.advance_heads({number: ledger.version(number) for number in hub.followed_accounts()})
    for user in hub.followed_users():
        known = hub.known_accounts(user)
        for state in list(ledger.accounts.values()):
            if state.user_id == user and state.account_id not in known:
                hub.discover_account(state)


async def run_feed(steps: list[tuple[str, Any]]) -> None:
    ledger = fake_ledger()
    async with open_engine(ledger) as engine:
        clients = [Client(engine, (1, 2, 3, 4), "transactions", "stream"), Client(engine, (1, 2), "balances", "stream")]
        operator = Operator(engine)
        for kind, what in steps:
            if kind == "move":
                engine.hub.publish(ledger.move(*among(ledger, what), 1))
            elif kind == "elsewhere":
                ledger.move(*among(ledger, what), 1)
            elif kind == "open":
                state = ledger.open(len(ledger.accounts) + 1, user_id=1)
                if what:
                    engine.hub.announce_account(state)
            elif kind == "hold":
                ledger.low_water = len(ledger.commits) if what else None
            elif kind == "operator":
                operator.sink.make_room(what)
                if not what:
                    operator.subscribe()
            elif kind == "poll":
                poll(engine)
            elif kind == "room":
                clients[what[0] % len(clients)].sink.make_room(what[1])
            elif kind == "wait":
                await trio.sleep(what)
            elif kind == "away":
                ledger.away = what
            elif kind == "follow":
                clients.append(Client(engine, what[0], *what[1]))
            else:
                clients[what % len(clients)].subscribe()
            for client in (*clients, operator):
                client.read()
        ledger.away = False
        for client in (*clients, operator):
            client.sink.make_room()
        await trio.sleep(5)
        poll(engine)
        await trio.sleep(5)
        operator.read()
        for state in ledger.accounts.values():
            assert operator.versions.get(state.account_id, 0) == state.version
        for client in clients:
            client.read()
            assert client.versions == {number: ledger.version(number) for number in client.followed}
            assert client.subscription is not None
            assert client.subscription.live


# -- the commands ---------------------------------------------------------------------------------------------------

command_step = st.one_of(
    st.tuples(st.just("send"), st.tuples(accounts, st.sampled_from(["0.01", "0.02", "60.00"]), st.booleans())),
    st.tuples(st.just("send"), st.tuples(accounts, st.sampled_from(["0.01", "0.02", "60.00"]), st.booleans())),
    st.tuples(st.just("poison"), accounts),
    st.tuples(st.just("lane"), st.tuples(st.sampled_from([0.01, 0.3, 2.0]), st.lists(st.sampled_from(
        [Fault.AWAY, Fault.LOST_BEFORE_COMMIT, Fault.LOST_AFTER_COMMIT]
    ), max_size=1))),
    st.tuples(st.just("wait"), st.sampled_from([0.001, 0.1, 1.0, 4.0])),
)  # fmt: skip


@moderate
@given(steps=st.lists(command_step, max_size=40))
def test_every_command_is_applied_at_most_once_and_answered_with_the_truth(steps: list[tuple[str, Any]]) -> None:
    trio.run(run_commands, steps, clock=trio.testing.MockClock(autojump_threshold=0))


async def run_commands(steps: list[tuple[str, Any]]) -> None:
    ledger = fake_ledger()
    async with open_engine(ledger) as engine:
        await engine.directory.find([(command("x", number, None).acting, "") for number in range(1, ACCOUNTS + 1)])
        units: list[Asked] = []
        for kind, what in steps:
            if kind == "send":
                (source, destination), amount, twice = what
                by = principal(source)
                units.append(
                    Asked(*[command("transfer", source, destination, amount, by=by) for _ in range(1 + twice)])
                )
                engine.router.try_route(units[-1])
            elif kind == "poison":
                units.append(Asked(command("transfer", *what, by=principal(what[0]), reason=POISON)))
                engine.router.try_route(units[-1])
            elif kind == "lane":
                engine.start_lane("lane", what[0], *what[1])
            else:
                await trio.sleep(what)
        await trio.sleep(1)
        engine.start_lane("last")
        await trio.sleep(20)
        check_answers(ledger, units)
        check_order(ledger, units)


def check_answers(ledger: FakeLedger, units: list[Asked]) -> None:
    """Everybody got one answer per command, and it is what is in the books."""
    judged = [transaction_id for _, transaction_id in ledger.judged]
    assert sorted(judged) == sorted(set(judged)), "judged twice"
    for unit in units:
        assert unit.outcomes is not None
        assert len(unit.outcomes) == len(unit.commands)
        for sent, outcome in zip(unit.commands, unit.outcomes, strict=True):
            stored = ledger.records.get(sent.transaction_id)
            if isinstance(outcome, Posted):
                assert stored is not None
                assert outcome.record == stored[0]
            elif outcome.applied is False:
                assert stored is None
            else:
                assert isinstance(outcome, Refused)
                assert outcome.code in (ErrorCode.UNAVAILABLE, ErrorCode.INTERNAL_ERROR)


def check_order(ledger: FakeLedger, units: list[Asked]) -> None:
    """Each user's commands were judged in the order they were sent, and none too late."""
    judged = {transaction_id: (order, at) for order, (at, transaction_id) in enumerate(ledger.judged)}
    last: dict[int, int] = {}
    for unit in units:
        for sent in unit.commands:
            if sent.transaction_id not in judged:
                continue
            order, at = judged[sent.transaction_id]
            assert sent.debit is not None
            user = sent.debit.account_id or 0
            assert order > last.get(user, -1)
            last[user] = order
            call_s = 2.0  # a call that was sent in time may take this long
            assert at <= sent.arrived_at + 10.0 + call_s
