"""Advances with the installed command: the demo, a clock that runs, and daemons that are killed while they collect."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from ledgerd.storage.embedded import Cluster, temporary_cluster
from ledgerd.storage.migrations import migrate
from ledgerd.storage.owner_clock import move_clock
from ledgerd_protocol.client import open_client
from ledgerd_protocol.events import AdvanceHappened
from tests.acceptance import owner
from tests.acceptance.javascript import said_by

ADVANCES, PAYMENTS = 100, 10
COLLECT_INTERVAL_S = "0.02"
KILL_WITHIN_S = 0.4


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A database of its own: its clock is moved."""
    with temporary_cluster() as found:
        migrate(found.dsn)
        yield found


def test_the_demo_plays_twelve_weeks_and_ends_well(ledgerd: Any) -> None:
    done = ledgerd("demo", "--advances")
    assert done.returncode == 0, done.stderr
    assert "Week 13" in done.stdout
    assert done.stdout.count("insufficient_funds") == 2
    assert "11 payments took 100.00, each exactly once" in done.stdout


async def test_with_a_clock_that_runs_an_advance_is_paid_back_in_seconds(dev_on: Any, short_directory: Any) -> None:
    with dev_on(short_directory / "fast", "--clock-speed", "604800") as running:
        assert any("runs 604800 times as fast" in line for line in running.said)
        async with open_client(running.url, token=running.token) as client:
            made = await client.call("user_register", name="Ann")
            account_id = made.account.account_id
            async with client.subscribe("advances", account_ids=[account_id]) as feed:
                await client.call("advance_request", account_id=account_id, amount="100.00")
                paid = 0
                async for event in feed:
                    if isinstance(event, AdvanceHappened):
                        paid += event.what == "paid"
                        if event.what == "completed":
                            break
            assert paid == 12
            assert (await client.balance(account_id=account_id)).balance == "0.00"


@pytest.mark.parametrize("speed", ["0", "-1", "0.5", "nan", "inf", "1000001", "fast"])
def test_a_clock_that_stands_still_or_runs_backwards_is_refused(ledgerd: Any, tmp_path: Any, speed: str) -> None:
    done = ledgerd("dev", "--data", str(tmp_path / "house"), "--clock-speed", speed)
    assert done.returncode not in (0, None)
    assert not (tmp_path / "house").exists()
    assert "Traceback" not in done.stderr


def test_in_production_there_is_no_clock_to_move(ledgerd: Any) -> None:
    done = ledgerd("serve", "--dsn", "postgresql:///nowhere", "--clock-speed", "2")
    assert done.returncode not in (0, None)
    assert "clock-speed" in done.stdout + done.stderr


async def test_the_client_in_javascript_resumes_what_happens_to_advances(serve: Any) -> None:
    daemon = serve()
    async with open_client(daemon.url, token=daemon.token) as client:
        account_id = (await client.call("user_register", name="Ann")).account.account_id
        script = f"""
            const client = await connect(url, {{ token }});
            const options = {{ account_ids: [{account_id}] }};
            const feed = client.subscribe("advances", options);
            await feed.next();
            const asked = {{ account_id: {account_id}, amount: "3.00", installments: 3 }};
            const {{ advance_id }} = await client.call("advance_request", asked);
            const {{ value }} = await feed.next().then((one) => one.value.type === "live" ? feed.next() : one);
            say([value.type, value.what, value.event]);
            const since = feed.position;
            say(Object.values(since.advances));
            await feed.close();
            await client.call("advance_repay", {{ advance_id, amount: "1.00" }});
            await client.call("advance_repay", {{ advance_id }});
            const again = client.subscribe("advances", {{ ...options, since }});
            const told = [];
            for await (const event of again) {{
                told.push(event.type === "advance" ? `${{event.event}} ${{event.what}}` : event.type);
                if (event.what === "completed") break;
            }}
            say(told);
            say(Object.values(again.position.advances));
            await client.close();
        """
        said = await said_by(script, daemon.url, daemon.token)
    assert said == [
        ["advance", "requested", 1],
        [1],
        ["start", "2 paid", "3 paid", "4 paid", "5 completed"],
        [],
    ]


async def test_daemons_that_are_killed_while_they_collect_take_each_payment_once(serve: Any, cluster: Cluster) -> None:
    chance = random.Random()
    settings = {"LEDGERD_COLLECT_INTERVAL_S": COLLECT_INTERVAL_S}
    daemons = [serve(**settings) for _ in range(2)]
    accounts = []
    async with open_client(daemons[0].url, token=daemons[0].token) as client:
        for number in range(ADVANCES):
            account_id = (await client.call("user_register", name=f"U{number}")).account.account_id
            accounts.append(account_id)
            await client.credit(account_id=account_id, amount="5.00", currency="USD")
            await client.call(
                "advance_request", account_id=account_id, amount="10.03", installments=PAYMENTS, interval_days=1
            )

    # Other tests have advances on this database too.
    ours = f"IN ({', '.join(map(str, accounts))})"
    of_ours = f"advance_id IN (SELECT advance_id FROM ledgerd.advances WHERE account_id {ours})"

    async def ask(sql: str) -> list[Any]:
        return await owner.ask(cluster.dsn, sql)

    for _ in range(PAYMENTS):
        await trio.to_thread.run_sync(move_clock, cluster.dsn, 1)
        for position in chance.sample([0, 1], chance.choice([1, 2])):
            await trio.sleep(chance.uniform(0, KILL_WITHIN_S))
            daemons[position].process.kill()
            daemons[position].process.wait()
            daemons[position] = await trio.to_thread.run_sync(lambda: serve(**settings))
    with trio.fail_after(60):
        while await ask(f"SELECT 1 FROM ledgerd.advances WHERE outstanding > 0 AND {of_ours} LIMIT 1"):
            pass

    posted = await ask(
        "SELECT refers_to, transaction_id, amount FROM ledgerd.transactions "
        f"WHERE kind = 'advance_payment' AND debit_account {ours}"
    )
    paid = await ask(
        f"SELECT advance_id, transaction_id, amount FROM ledgerd.advance_events WHERE type = 'paid' AND {of_ours}"
    )
    assert len(posted) == ADVANCES * PAYMENTS
    assert sorted(posted) == sorted(paid)
    assert await ask(f"SELECT status, count(*) FROM ledgerd.advance_payments WHERE {of_ours} GROUP BY status") == [
        ("paid", ADVANCES * PAYMENTS)
    ]
    amounts = [101] * 3 + [100] * 7
    assert await ask(
        "SELECT DISTINCT array_agg(p.amount ORDER BY p.number) FROM ledgerd.advance_payments AS p "
        f"WHERE {of_ours} GROUP BY advance_id"
    ) == [(amounts,)]
    assert await ask(f"SELECT DISTINCT balance, version FROM ledgerd.accounts WHERE account_id {ours}") == [
        (500, 2 + PAYMENTS)
    ]
    assert await ask(f"SELECT count(*) FROM ledgerd.advance_queue WHERE {of_ours}") == [(0,)]
