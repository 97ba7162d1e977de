"""The channel of advances: every event once, in order, whichever daemon made it, and resumed exactly."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Database
from tests.gateway.fakes import Client
from tests.gateway.house import House, Person, events_until, open_house

WEEK_S = 7 * 86_400
QUICK = {"collect_interval_s": 0.02}
NEVER = {"collect_interval_s": 1e6}


async def request(house: House, person: Person, amount: str = "12.00", **params: Any) -> str:
    given = {"account_id": person.account_id, "amount": amount, **params}
    return str((await house.service.call("advance_request", given))["advance_id"])


async def follow(client: Client, **options: Any) -> list[Any]:
    """Subscribe; the events up to `live`."""
    await client.call("ledger_subscribe", {"channel": "advances", "options": options})
    return await events_until(client, lambda event: event["type"] == "live")


async def happened(client: Client, last: str) -> list[Any]:
    """What is told up to this, each event of an advance the next one."""
    return await events_until(client, lambda event: event["type"] == "advance" and event["what"] == last)


def numbers(events: list[Any], advance: str | None = None) -> list[int]:
    return [
        event["event"]
        for event in events
        if event["type"] == "advance" and (advance is None or event["advance_id"] == advance)
    ]


def told(events: list[Any]) -> list[tuple[str, Any, str]]:
    return [(event["what"], event["number"], event["amount"]) for event in events if event["type"] == "advance"]


async def test_everything_that_happens_is_told_in_order(database: Database) -> None:
    async with open_house(database, **QUICK) as house:
        ann = await house.person()
        start, live = await follow(ann.client)
        assert (start["accounts"], start["advances"]) == ([], [])
        assert live == {"type": "live"}
        await request(house, ann, "3.00", installments=3)
        await house.operator.call("debit", {"account_id": ann.account_id, "amount": "2.00"})
        await house.advance_clock(WEEK_S)
        events = await happened(ann.client, "paid")
        await house.advance_clock(WEEK_S)
        events += await happened(ann.client, "rolled_over")
        assert told(events) == [
            ("requested", None, "3.00"),
            ("due", 1, "1.00"),
            ("paid", 1, "1.00"),
            ("due", 2, "1.00"),
            ("failed", 2, "1.00"),
            ("rolled_over", 3, "1.00"),
        ]
        assert numbers(events) == [1, 2, 3, 4, 5, 6]
        paid = events[2]
        assert (paid["outstanding"], paid["currency"], paid["account_id"]) == ("2.00", "USD", ann.account_id)
        assert events[4]["reason"] == "insufficient_funds"
        transaction = await house.operator.call("transaction_get", {"transaction_id": paid["transaction_id"]})
        assert transaction["kind"] == "advance_payment"


async def test_early_repayment_is_told_to_its_end(database: Database) -> None:
    async with open_house(database, **NEVER) as house:
        ann = await house.person()
        advance = await request(house, ann, "3.00", installments=3)
        watcher = await house.client("read", user_id=ann.user_id)
        start, _ = await follow(watcher)
        assert [(each["advance_id"], each["from"], each["event"]) for each in start["advances"]] == [
            (advance, "snapshot", 1)
        ]
        assert start["advances"][0]["outstanding"] == "3.00"
        await ann.client.call("advance_repay", {"advance_id": advance, "amount": "1.50"})
        await ann.client.call("advance_repay", {"advance_id": advance})
        events = await happened(watcher, "completed")
        assert told(events) == [
            ("paid", 3, "1.00"),
            ("part_paid", 2, "0.50"),
            ("paid", 2, "0.50"),
            ("paid", 1, "1.00"),
            ("completed", None, "1.50"),
        ]
        assert [event["outstanding"] for event in events] == ["2.00", "1.50", "1.00", "0.00", "0.00"]
        # What is paid back is not listed any more, and nothing else happens to it.
        start, _ = await follow(await house.client("read", user_id=ann.user_id))
        assert start["advances"] == []


async def test_a_subscriber_resumes_with_exactly_what_it_missed(database: Database) -> None:
    async with open_house(database, **NEVER) as house:
        ann = await house.person()
        advance = await request(house, ann)
        start, _ = await follow(await house.client("read", user_id=ann.user_id))
        since = {"epoch": start["epoch"], "advances": {advance: 1}}
        await ann.client.call("advance_repay", {"advance_id": advance, "amount": "2.50"})
        other = await request(house, ann, "1.00", installments=1)

        events = await follow(await house.client("read", user_id=ann.user_id), since=since)
        assert [(each["advance_id"], each["from"], each["event"]) for each in events[0]["advances"]] == [
            (advance, "resumed", 4),
            (other, "resumed", 1),
        ]
        # Each advance in its own order; which of two comes first is nobody's promise.
        assert numbers(events[1:-1], advance) == [2, 3, 4]
        assert numbers(events[1:-1], other) == [1]
        assert len(events[1:-1]) == 4

        # An advance that was paid back meanwhile is told to its end, because it is named.
        await ann.client.call("advance_repay", {"advance_id": advance})
        since = {"epoch": start["epoch"], "advances": {advance: 4, other: 1}}
        events = await follow(await house.client("read", user_id=ann.user_id), since=since)
        assert events[-2]["what"] == "completed"
        assert numbers(events) == list(range(5, 5 + len(numbers(events))))


@pytest.mark.parametrize(
    ("epoch", "event", "limits", "reason"),
    [
        ("another", 1, {}, "epoch_changed"),
        (None, 99, {}, "version_ahead"),
        (None, 0, {"resume_max": 1}, "too_far_behind"),
    ],
)
async def test_what_cannot_be_resumed_is_a_snapshot_with_the_reason(
    database: Database, epoch: str | None, event: int, limits: dict[str, Any], reason: str
) -> None:
    async with open_house(database, **NEVER, **limits) as house:
        ann = await house.person()
        advance = await request(house, ann)
        await ann.client.call("advance_repay", {"advance_id": advance, "amount": "1.00"})
        present = (await ann.client.call("system_info"))["epoch"]
        since = {"epoch": epoch or present, "advances": {advance: event}}
        start, live = await follow(ann.client, since=since)
        (shown,) = start["advances"]
        assert (shown["from"], shown["reason"], shown["event"]) == ("snapshot", reason, 2)
        assert live["type"] == "live"


@pytest.mark.parametrize("feed", ["notify", "poll"])
async def test_what_another_daemon_does_is_told_as_well(database: Database, feed: str) -> None:
    here = {"feed": feed, "feed_poll_s": 0.05}
    async with open_house(database, **here, **NEVER) as one, open_house(database, **here, **QUICK) as other:
        ann = await one.person()
        await follow(ann.client)
        advance = await request(other, ann, "2.00", installments=2)
        await other.operator.call("debit", {"account_id": ann.account_id, "amount": "1.00"})
        await other.advance_clock(2 * WEEK_S)
        events = await happened(ann.client, "rolled_over")
        assert {event["advance_id"] for event in events} == {advance}
        assert told(events) == [
            ("requested", None, "2.00"),
            ("due", 1, "1.00"),
            ("paid", 1, "1.00"),
            ("due", 2, "1.00"),
            ("failed", 2, "1.00"),
            ("rolled_over", 3, "1.00"),
        ]


async def test_nobody_is_told_of_the_advances_of_others(database: Database) -> None:
    async with open_house(database, **NEVER) as house:
        ann, bob = await house.person(), await house.person()
        await follow(ann.client)
        await request(house, bob)
        await request(house, ann)
        (event,) = await happened(ann.client, "requested")
        assert event["account_id"] == ann.account_id
        options = {"channel": "advances", "options": {"account_ids": [bob.account_id]}}
        assert (await ann.client.refused("ledger_subscribe", options))["code"] == 2001


async def test_advances_of_an_account_that_is_opened_later_are_told_too(database: Database) -> None:
    async with open_house(database, **NEVER) as house:
        ann = await house.person()
        await follow(ann.client)
        opened = await house.operator.call("account_open", {"user_id": ann.user_id, "currency": "EUR"})
        added = (await ann.client.receive())["params"]["result"]
        assert (added["type"], added["account"]["account_id"]) == ("account_added", opened["account_id"])
        await request(house, Person(ann.user_id, opened["account_id"], ann.client))
        (event,) = await happened(ann.client, "requested")
        assert (event["account_id"], event["currency"]) == (opened["account_id"], "EUR")


@pytest.mark.parametrize(
    ("channel", "options", "pointer"),
    [
        ("advances", {"all": True}, "/options/all"),
        ("advances", {"mode": "latest"}, "/options/mode"),
        ("advances", {"since": {"epoch": "e"}}, "/options/since/advances"),
        ("advances", {"since": {"epoch": "e", "versions": {"1": 1}}}, "/options/since"),
        ("advances", {"since": {"epoch": "e", "advances": {}, "position": "1"}}, "/options/since"),
        ("advances", {"since": {"epoch": "e", "advances": {"x": 1}}}, None),
        ("advances", {"since": {"epoch": "e", "advances": {"01890000-0000-7000-8000-000000000000": -1}}}, None),
        ("balances", {"since": {"epoch": "e", "versions": {}, "advances": {}}}, "/options/since/advances"),
    ],
)
async def test_options_that_make_no_sense_are_refused(
    database: Database, channel: str, options: Any, pointer: str | None
) -> None:
    async with open_house(database) as house:
        params = {"channel": channel, "options": options}
        error = await house.operator.refused("ledger_subscribe", params)
        assert error["code"] == -32602
        if pointer is not None:
            assert [problem["pointer"] for problem in error["data"]["errors"]] == [pointer]


async def test_a_start_with_many_advances_comes_in_several_events(database: Database) -> None:
    async with open_house(database, frame_out_bytes_max=4_000, **NEVER) as house:
        ann = await house.person()
        made = {await request(house, ann, "1.00", installments=1) for _ in range(30)}
        events = await follow(ann.client)
        starts = [event for event in events if event["type"] == "start"]
        assert len(starts) > 1
        assert [start.get("more", False) for start in starts] == [True] * (len(starts) - 1) + [False]
        assert {each["advance_id"] for start in starts for each in start["advances"]} == made
