"""The feed between daemons: hints tell, polling finds what hints did not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import trio

from ledgerd.config import Config
from ledgerd.engine.commands import ActorInfo, Record, Side
from ledgerd.engine.feed import SharedFeed
from ledgerd.engine.hints import PAYLOAD_BYTES_MAX, Hints
from ledgerd.engine.states import AccountState

from .fake_ledger import settle


def record(account: int, version: int) -> Record:
    """A transaction that gave one account a version."""
    side = Side(account, 1, "credit", version, 100, 0, 100, 100, 0)
    actor = ActorInfo(1, 1, ("user",))
    return Record(
        f"{version}", "credit", "posted", 100, "USD", 2, None, account, (side,), None, None, None, "2026-01-01", actor
    )


def account(account_id: int, user_id: int = 1) -> AccountState:
    return AccountState(account_id, user_id, "USD", 2, 0, 0, 0, 0, 0, "active", "then", "then")


class Hub:
    """Remembers what it was told. User 1 is followed, with accounts 7 and those discovered since."""

    def __init__(self) -> None:
        self.published: list[Record] = []
        self.heads: list[dict[int, int]] = []
        self.looks = 0
        self.discovered: list[int] = []
        self.on_account_opened: Callable[[AccountState], None] = lambda _: None

    def look(self) -> None:
        self.looks += 1

    def followed_users(self) -> list[int]:
        return [1]

    def known_accounts(self, user_id: int) -> set[int]:
        assert user_id == 1
        return {7, *self.discovered}

    def discover_account(self, state: AccountState) -> None:
        self.discovered.append(state.account_id)

    def publish(self, record: Record) -> None:
        self.published.append(record)

    def advance_heads(self, heads: dict[int, int]) -> None:
        self.heads.append(dict(heads))

    def followed_accounts(self) -> list[int]:
        return [7]


class Table:
    """The heads as the database has them."""

    def __init__(self) -> None:
        self.asked = 0
        self.users_asked: list[list[int]] = []
        self.accounts = [account(7)]

    async def heads(self, account_ids: Sequence[int]) -> dict[int, int]:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        return dict.fromkeys(account_ids, 42)

    async def unknown_accounts(self, user_ids: Sequence[int], known: Sequence[int], limit: int) -> list[AccountState]:
        await trio.lowlevel.checkpoint()
        self.users_asked.append(list(user_ids))
        return [state for state in self.accounts if state.user_id in user_ids and state.account_id not in known]


class Wire:
    """Carries hints to every end, the sender's too, as NOTIFY does."""

    def __init__(self, ends: list[trio.MemorySendChannel[str]]) -> None:
        self._ends = ends
        send, self.payloads = trio.open_memory_channel[str](100)
        ends.append(send)
        self.sent: list[str] = []

    async def send(self, payload: str) -> None:
        await trio.lowlevel.checkpoint()
        self.sent.append(payload)
        for end in self._ends:
            end.send_nowait(payload)

    async def ping(self) -> None:
        await trio.sleep_forever()


def feed(hub: Hub, table: Table, **settings: object) -> SharedFeed:
    return SharedFeed(Config(**settings), table, hub)  # type: ignore[arg-type]


async def test_a_change_is_hinted_to_the_other_daemon_and_not_back_to_oneself(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    ends: list[trio.MemorySendChannel[str]] = []
    hubs = [Hub(), Hub()]
    feeds = [feed(hub, Table()) for hub in hubs]
    for each in feeds:
        nursery.start_soon(each.exchange_hints, Wire(ends))
    await settle()
    feeds[0].publish(record(7, 3))
    await trio.sleep(0.1)
    assert hubs[0].published
    assert hubs[0].heads == []
    assert hubs[1].heads == [{7: 3}]


async def test_changes_within_an_interval_are_one_hint_with_the_newest_versions(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    ends: list[trio.MemorySendChannel[str]] = []
    listener, wire = Hub(), Wire(ends)
    sender = feed(Hub(), Table())
    nursery.start_soon(sender.exchange_hints, wire)
    nursery.start_soon(feed(listener, Table()).exchange_hints, Wire(ends))
    for version in range(1, 6):
        sender.publish(record(7, version))
    sender.publish(record(8, 1))
    await trio.sleep(0.1)
    assert len(wire.sent) == 1
    assert listener.heads == [{7: 5, 8: 1}]


async def test_too_many_changes_for_a_payload_make_the_others_look_at_once(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    ends: list[trio.MemorySendChannel[str]] = []
    wire, table, hub = Wire(ends), Table(), Hub()
    sender, other = feed(Hub(), Table()), feed(hub, table, feed_poll_s=1000.0)
    nursery.start_soon(sender.exchange_hints, wire)
    nursery.start_soon(other.exchange_hints, Wire(ends))
    nursery.start_soon(other.poll)
    await settle()
    for account in range(1, 2_000):
        sender.publish(record(account, 1))
    await trio.sleep(0.2)
    assert len(wire.sent[0]) < PAYLOAD_BYTES_MAX
    assert hub.heads == [{7: 42}]


async def test_polling_alone_finds_everything(autojump_clock: object, nursery: trio.Nursery) -> None:
    hub = Hub()
    nursery.start_soon(feed(hub, Table(), feed="poll", feed_poll_s=1.0).poll)
    await trio.sleep(1.3)
    assert hub.heads == [{7: 42}]


async def test_with_polling_nothing_is_noted_for_a_wire_that_does_not_exist() -> None:
    hub = Hub()
    quiet = feed(hub, Table(), feed="poll")
    quiet.publish(record(7, 1))
    assert hub.published
    assert not quiet._hints._changed


@pytest.mark.parametrize("payload", ["", "{}", "[1]", "hello", '["a",{"x":1}]'])
def test_a_payload_that_is_no_hint_is_ignored(payload: str) -> None:
    assert Hints("me", 0.1).heard(payload) is None


# -- accounts that other daemons opened -------------------------------------------------------------------------------


async def test_an_account_opened_at_one_daemon_is_discovered_by_the_other_at_once(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    ends: list[trio.MemorySendChannel[str]] = []
    here, there, table = Hub(), Hub(), Table()
    nursery.start_soon(feed(here, Table()).exchange_hints, Wire(ends))
    nursery.start_soon(feed(there, table).exchange_hints, Wire(ends))
    await settle()
    table.accounts.append(account(8))
    here.on_account_opened(account(8))
    await trio.sleep(0.1)
    assert there.discovered == [8]
    assert here.discovered == []


async def test_a_new_account_of_somebody_nobody_follows_asks_the_table_nothing(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    ends: list[trio.MemorySendChannel[str]] = []
    here, there, table = Hub(), Hub(), Table()
    nursery.start_soon(feed(here, Table()).exchange_hints, Wire(ends))
    nursery.start_soon(feed(there, table).exchange_hints, Wire(ends))
    await settle()
    here.on_account_opened(account(8, user_id=2))
    await trio.sleep(0.1)
    assert there.looks == 1
    assert table.users_asked == []


async def test_polling_discovers_an_account_whatever_its_number(autojump_clock: object, nursery: trio.Nursery) -> None:
    hub, table = Hub(), Table()
    nursery.start_soon(feed(hub, table, feed="poll", feed_poll_s=1.0).poll)
    for number in (9, 3):  # the second one was committed late
        table.accounts.append(account(number))
        await trio.sleep(1.3)
    assert hub.discovered == [9, 3]


async def test_ten_thousand_followed_accounts_are_ten_questions(autojump_clock: object, nursery: trio.Nursery) -> None:
    hub, table = Hub(), Table()
    hub.followed_accounts = lambda: list(range(10_000))  # type: ignore[method-assign]
    nursery.start_soon(feed(hub, table, feed="poll", feed_poll_s=1.0).poll)
    await trio.sleep(1.3)
    assert table.asked == 10
    assert all(len(heads) == 1_000 for heads in hub.heads)


async def test_every_look_and_every_hint_stirs_those_who_follow_everything(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    ends: list[trio.MemorySendChannel[str]] = []
    hub = Hub()
    sender = feed(Hub(), Table())
    nursery.start_soon(sender.exchange_hints, Wire(ends))
    nursery.start_soon(feed(hub, Table()).exchange_hints, Wire(ends))
    sender.publish(record(99, 1))  # of an account that nobody follows
    await trio.sleep(0.1)
    assert hub.looks == 1
    nursery.start_soon(feed(hub, Table(), feed="poll", feed_poll_s=1.0).poll)
    await trio.sleep(1.3)
    assert hub.looks == 2
