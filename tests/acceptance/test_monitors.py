"""Alerts on balances with two daemons on one database: a crossing is told once everywhere, and logged once in all."""

from __future__ import annotations

import signal
import urllib.request
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
import trio

from ledgerd_protocol.client import Client, open_client
from ledgerd_protocol.events import Heartbeat, Live, MonitorCrossed, Start
from ledgerd_protocol.feed import Feed
from tests.acceptance.javascript import Peer, said_by, serving


@pytest.fixture(params=["notify", "poll"])
def daemons(request, serve) -> list[Any]:
    """Two daemons that hear of each other's changes in one of the two ways."""
    return [serve(LEDGERD_FEED=request.param) for _ in range(2)]


async def connected(stack: AsyncExitStack, daemons: list[Any]) -> list[Client]:
    return [await stack.enter_async_context(open_client(daemon.url, token=daemon.token)) for daemon in daemons]


def _metric(daemon: Any, name: str) -> float:
    url = msgspec.json.decode(daemon.said[-1])["http"]
    with urllib.request.urlopen(f"{url.rstrip('/')}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


async def metric(daemon: Any, name: str) -> float:
    return await trio.to_thread.run_sync(_metric, daemon, name)


async def until_known(daemon: Any, monitors: float) -> None:
    """Return when the daemon knows of so many monitors; the test's timeout bounds it."""
    while await metric(daemon, "ledgerd_monitors") != monitors:
        pass


async def new_account(client: Client, balance: str) -> int:
    account = (await client.call("user_register", name="Ann")).account.account_id
    await client.credit(account_id=account, amount=balance, currency="USD")
    return account


async def until_live(feed: Feed) -> list[tuple[int, int]]:
    """Read up to `live`; the crossings before it."""
    assert isinstance(await anext(feed), Start)
    found = []
    while not isinstance(event := await anext(feed), Live):
        if isinstance(event, MonitorCrossed):
            found.append((event.monitor_id, event.version))
    return found


async def crossings(feed: Feed, count: int) -> list[MonitorCrossed]:
    found: list[MonitorCrossed] = []
    while len(found) < count:
        event = await anext(feed)
        if isinstance(event, MonitorCrossed):
            found.append(event)
    return found


def logged(daemon: Any) -> list[dict[str, Any]]:
    """What a daemon said of crossings; it is ended by this."""
    daemon.signal(signal.SIGTERM)
    lines = map(msgspec.json.decode, daemon.output.whole().splitlines())
    return [line for line in lines if line["event"] == "monitor_crossed"]


async def test_a_monitor_set_at_one_daemon_tells_of_what_the_other_commits_once_on_both(daemons):
    async with AsyncExitStack() as stack:
        one, other = await connected(stack, daemons)
        account = await new_account(one, "100.00")
        known = await metric(daemons[1], "ledgerd_monitors")
        made = await one.call("monitor_set", account_id=account, below="50.00", label="low")
        assert made.version == 1
        await until_known(daemons[1], known + 1)
        feeds = [
            await stack.enter_async_context(client.subscribe("monitors", account_ids=[account]))
            for client in (one, other)
        ]
        feeds.append(await stack.enter_async_context(one.subscribe("monitors", all=True)))
        for feed in feeds:
            assert await until_live(feed) == []
        for amount in ("50.00", "0.01", "10.00"):  # to the amount, across it, and on below it
            await other.debit(account_id=account, amount=amount, currency="USD")
        await one.credit(account_id=account, amount="60.00", currency="USD")
        sent = await one.debit(account_id=account, amount="60.00", currency="USD")
        for feed in feeds:
            first, second = await crossings(feed, 2)
            assert (first.monitor_id, first.version, first.balance) == (made.monitor_id, 3, "49.99")
            assert (first.below, first.currency) == ("50.00", "USD")
            assert (second.version, second.balance, second.transaction_id) == (6, "39.99", sent.transaction_id)
        assert [await metric(daemon, "ledgerd_monitor_crossings_total") for daemon in daemons] == [1, 1]
    seen = [await trio.to_thread.run_sync(logged, daemon) for daemon in daemons]
    told = [
        [(line["monitor_id"], line["version"], line["balance_minor"], line["currency"]) for line in of] for of in seen
    ]
    assert told == [[(made.monitor_id, 6, 3_999, "USD")], [(made.monitor_id, 3, 4_999, "USD")]]


async def test_a_monitor_that_was_removed_at_one_daemon_is_gone_at_the_other(daemons):
    async with AsyncExitStack() as stack:
        one, other = await connected(stack, daemons)
        account = await new_account(one, "100.00")
        known = await metric(daemons[1], "ledgerd_monitors")
        gone, kept = [await one.call("monitor_set", account_id=account, below=text) for text in ("90.00", "80.00")]
        await until_known(daemons[1], known + 2)
        assert (await one.call("monitor_remove", monitor_id=gone.monitor_id)).removed == 1
        await until_known(daemons[1], known + 1)
        async with other.subscribe("monitors", account_ids=[account]) as feed:
            await until_live(feed)
            await other.debit(account_id=account, amount="30.00", currency="USD")
            (told,) = await crossings(feed, 1)
        assert (told.monitor_id, told.more is True) == (kept.monitor_id, False)


async def test_what_crossed_while_nobody_listened_is_told_once_at_the_other_daemon(daemons):
    async with AsyncExitStack() as stack:
        one, other = await connected(stack, daemons)
        account = await new_account(one, "100.00")
        known = await metric(daemons[1], "ledgerd_monitors")
        low, lower = [
            (await one.call("monitor_set", account_id=account, below=text)).monitor_id for text in ("90.00", "80.00")
        ]
        await until_known(daemons[1], known + 2)
        async with one.subscribe("monitors", account_ids=[account], heartbeat_ms=1_000) as feed:
            await until_live(feed)
            await one.debit(account_id=account, amount="15.00", currency="USD")
            assert [event.monitor_id for event in await crossings(feed, 1)] == [low]
            await one.credit(account_id=account, amount="1.00", currency="USD")
            while not isinstance(event := await anext(feed), Heartbeat):
                pass
            assert event.versions == feed.versions == {account: 3}
            since = {"epoch": feed.epoch, "versions": feed.versions}
        for _ in range(2):
            await one.credit(account_id=account, amount="20.00", currency="USD")
            await other.debit(account_id=account, amount="30.00", currency="USD")
        async with other.subscribe("monitors", account_ids=[account], since=since) as feed:
            # 86, 106, 76 (both), 96, 66 (both)
            assert await until_live(feed) == [(low, 5), (lower, 5), (low, 7), (lower, 7)]
            assert feed.versions == {account: 7}
            await one.debit(account_id=account, amount="1.00", currency="USD")
            await one.credit(account_id=account, amount="50.00", currency="USD")
            await one.debit(account_id=account, amount="26.00", currency="USD")
            assert [(event.monitor_id, event.version) for event in await crossings(feed, 1)] == [(low, 10)]


async def test_the_javascript_client_follows_monitors(serve):
    daemon = serve()
    async with open_client(daemon.url, token=daemon.token) as client:
        account = await new_account(client, "100.00")
        for text in ("50.00", "40.00"):
            await client.call("monitor_set", account_id=account, below=text)
        script = f"""
        const client = await connect(url, {{ token }});
        let told = 0;
        const feed = client.subscribe("monitors", {{ account_ids: [{account}] }});
        for await (const event of feed) {{
          if (event.type === "live")
            await client.call("debit", {{ account_id: {account}, amount: "70.00", currency: "USD" }});
          if (event.type !== "monitor") continue;
          say([event.below, event.version, event.balance, feed.position.versions[{account}]]);
          if (++told === 2) break;
        }}
        try {{
          await client.call("monitor_set", {{ account_id: {account}, below: 1.5 }});
        }} catch (error) {{
          say(error.message);
        }}
        client.close();
        """
        first, second, error = await said_by(script, daemon.url, daemon.token)
        assert [first, second] == [["50.00", 2, "30.00", 1], ["40.00", 2, "30.00", 2]]
        assert error.startswith("below must be text")


async def test_the_javascript_client_resumes_in_the_middle_of_a_version_and_takes_no_crossing_twice():
    def told(monitor: int, version: int, *, more: bool = False) -> dict[str, Any]:
        event = {"type": "monitor", "monitor_id": monitor, "account_id": 7, "version": version, "balance": "1.00"}
        return {**event, "more": True} if more else event

    def start(version: int, origin: str) -> dict[str, Any]:
        account = {"account_id": 7, "version": version, "balance": "1.00", "held": "0.00", "from": origin}
        return {"type": "start", "epoch": "e7c1", "accounts": [account]}

    asked: list[Any] = []

    async def behave(peer: Peer) -> None:
        asked.append((request := await peer.asked())["params"]["options"])
        await peer.answer(request, "sub_1")
        if peer.number == 1:
            await peer.push(start(41, "snapshot"), {"type": "live"}, {"type": "heartbeat", "versions": {"7": 45}})
            await peer.push(told(1, 46, more=True))
            await peer.close(4503)
        else:
            await peer.push(start(50, "resumed"), told(1, 46, more=True), told(2, 46), {"type": "live"})
            await peer.push(told(3, 50))

    script = """
    const client = await connect(url, { token });
    try {
      for await (const event of client.subscribe("monitors", { account_ids: [7] }))
        if (event.type === "monitor") say([event.monitor_id, event.version]);
    } catch (error) {
      say(wrong(error));
    }
    client.close();
    """
    async with serving(behave) as url:
        first, second, error = await said_by(script, url)
    assert [first, second] == [[1, 46], [2, 46]]
    assert (error["kind"], error["expected"], error["received"]) == ("FeedGap", 51, 50)
    asks = {"heartbeat_ms": 10_000, "account_ids": [7]}
    assert asked == [asks, {**asks, "since": {"epoch": "e7c1", "versions": {"7": 45}}}]
