"""Advances over the wire, by a whole daemon on a real database: commands, reads, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from tests.conftest import Database
from tests.gateway.fakes import open_door
from tests.gateway.house import House, Person, fresh_id, open_house, until, updates

WEEK_S = 7 * 86_400
QUICK = {"collect_interval_s": 0.02}


async def request(house: House, person: Person, amount: str = "100.00", **params: Any) -> Any:
    return await house.service.call("advance_request", {"account_id": person.account_id, "amount": amount, **params})


async def collected(house: House, advance: Any, payments: int) -> Any:
    """The advance, once so many of its payments are paid or have failed."""
    params = {"advance_id": advance["advance_id"]}
    found: list[Any] = []

    async def done() -> bool:
        found[:] = [await house.operator.call("advance_get", params)]
        return sum(each["status"] in ("paid", "failed") for each in found[0]["payments"]) >= payments

    await until(done)
    return found[0]


async def test_a_request_answers_the_advance_its_schedule_and_the_transaction(database: Database) -> None:
    async with open_house(database) as house:
        ann = await house.person()
        advance = await request(house, ann, reason="rent", transaction_id=(number := fresh_id()))

        assert advance["advance_id"] == number
        assert (advance["account_id"], advance["user_id"]) == (ann.account_id, ann.user_id)
        assert (advance["principal"], advance["outstanding"], advance["status"]) == ("100.00", "100.00", "active")
        assert (advance["installments"], advance["interval_days"], advance["currency"]) == (12, 7, "USD")
        assert [each["amount"] for each in advance["payments"]] == ["8.34"] * 4 + ["8.33"] * 8
        assert [each["number"] for each in advance["payments"]] == list(range(1, 13))
        assert {each["status"] for each in advance["payments"]} == {"not_due"}
        assert "events" not in advance
        transaction = advance["transaction"]
        assert (transaction["kind"], transaction["amount"], transaction["reason"]) == ("advance", "100.00", "rent")
        assert transaction["advance_id"] == transaction["transaction_id"] == number
        assert transaction["debit_account_id"] is None
        assert (await house.money(ann))[0] == "100.00"


async def test_the_same_request_again_answers_the_present_advance_and_the_stored_transaction(
    database: Database,
) -> None:
    async with open_house(database) as house:
        ann = await house.person()
        number = fresh_id()
        first = await request(house, ann, transaction_id=number)
        await ann.client.call("advance_repay", {"advance_id": number, "amount": "40.00"})
        again = await request(house, ann, transaction_id=number)

        assert again["transaction"] == {**first["transaction"], "replayed": True}
        assert again["outstanding"] == "60.00"
        assert (await house.money(ann))[0] == "60.00"
        for change, mismatch in (
            ({"amount": "100.01"}, "amount"),
            ({"installments": 6}, "installments"),
            ({"interval_days": 14}, "interval_days"),
            ({"reason": "another"}, "reason"),
        ):
            params = {"account_id": ann.account_id, "amount": "100.00", "transaction_id": number, **change}
            error = await house.service.refused("advance_request", params)
            assert (error["code"], error["data"]["mismatch"]) == (4001, [mismatch])


async def test_due_payments_are_collected_and_seen_as_balances(database: Database) -> None:
    async with open_house(database, **QUICK) as house:
        ann = await house.person()
        watcher = await house.client("read", user_id=ann.user_id)
        await watcher.call("ledger_subscribe", {"channel": "balances"})
        await updates(watcher, 2)  # start and live
        advance = await request(house, ann)
        await house.advance_clock(3 * WEEK_S)
        events = await updates(watcher, 4)
        advance = await collected(house, advance, 3)

        assert [event["kind"] for event in events] == ["advance", *["advance_payment"] * 3]
        assert [event["balance"] for event in events] == ["100.00", "91.66", "83.32", "74.98"]
        assert advance["outstanding"] == "74.98"
        assert [event["type"] for event in advance["events"]] == ["requested", *["due", "paid"] * 3]
        payment = await house.operator.call(
            "transaction_get", {"transaction_id": advance["events"][2]["transaction_id"]}
        )
        assert (payment["kind"], payment["amount"]) == ("advance_payment", "8.34")
        assert payment["advance_id"] == advance["advance_id"]
        assert payment["actor"]["token_id"] == 0
        shown = await ann.client.call("advance_get", {"advance_id": advance["advance_id"]})
        assert shown == advance


async def test_a_payment_that_fails_is_shown_with_its_reason_and_where_its_amount_went(database: Database) -> None:
    async with open_house(database, **QUICK) as house:
        ann = await house.person()
        advance = await request(house, ann)
        await ann.client.call("debit", {"amount": "100.00"})
        await house.advance_clock(WEEK_S)
        advance = await collected(house, advance, 1)

        first, second = advance["payments"][:2]
        assert (first["status"], first["reason"], first["paid"]) == ("failed", "insufficient_funds", "0.00")
        assert (second["status"], second["amount"], second["rolled_over"]) == ("not_due", "16.68", "8.34")
        assert [(event["type"], event["number"]) for event in advance["events"][1:]] == [
            ("due", 1),
            ("failed", 1),
            ("rolled_over", 2),
        ]


async def test_early_repayment_in_part_and_whole_by_the_owner(database: Database) -> None:
    async with open_house(database) as house:
        ann = await house.person("50.00")
        advance = await request(house, ann, "12.00")
        params = {"advance_id": advance["advance_id"]}
        part = await ann.client.call("advance_repay", {**params, "amount": "1.50"})
        assert [each["number"] for each in part["payments"] if each["status"] == "paid"] == [12]
        assert part["payments"][10]["paid"] == "0.50"
        assert part["transaction"]["advance_id"] == advance["advance_id"]
        assert "actor" not in part["transaction"]

        error = await ann.client.refused("advance_repay", {**params, "amount": "10.51"})
        assert (error["code"], error["data"]["remaining"]) == (3004, "10.50")
        assert "10.50" in error["data"]["detail"]
        number = fresh_id()
        whole = await ann.client.call("advance_repay", {**params, "transaction_id": number})
        assert (whole["outstanding"], whole["status"]) == ("0.00", "completed")
        assert (await house.money(ann))[0] == "50.00"
        again = await ann.client.call("advance_repay", {**params, "transaction_id": number})
        assert again["transaction"]["replayed"] is True
        assert (await ann.client.refused("advance_repay", params))["code"] == 6001
        other = {**params, "advance_id": fresh_id(), "transaction_id": number}
        assert (await ann.client.refused("advance_repay", other))["code"] in (3008, 4001)


async def test_what_is_not_there_cannot_be_repaid(database: Database) -> None:
    async with open_house(database) as house:
        ann = await house.person()
        advance = await request(house, ann, "12.00")
        await ann.client.call("debit", {"amount": "11.00"})
        error = await ann.client.refused("advance_repay", {"advance_id": advance["advance_id"]})
        assert (error["code"], error["data"]["available"], error["data"]["requested"]) == (3001, "1.00", "12.00")


@pytest.mark.parametrize("amount", ["0.01", "0.11"])
async def test_too_small_to_divide_names_the_smallest_amount(database: Database, amount: str) -> None:
    async with open_house(database) as house:
        ann = await house.person()
        params = {"account_id": ann.account_id, "amount": amount}
        error = await house.service.refused("advance_request", params)
        assert (error["code"], error["data"]["smallest"]) == (3004, "0.12")
        assert "12 payments take at least 0.12 USD" in error["data"]["detail"]
        assert (await house.money(ann))[0] == "0.00"
        smallest = await request(house, ann, "0.12")
        assert {each["amount"] for each in smallest["payments"]} == {"0.01"}


@pytest.mark.parametrize(("amount", "code"), [("0", 3004), ("-1", 3004), ("1.001", 3003), ("1e2", -32602)])
async def test_amounts_that_are_none_are_refused_as_everywhere(database: Database, amount: str, code: int) -> None:
    async with open_house(database) as house:
        ann = await house.person()
        advance = await request(house, ann, "12.00")
        params = {"account_id": ann.account_id, "amount": amount}
        assert (await house.service.refused("advance_request", params))["code"] == code
        params = {"advance_id": advance["advance_id"], "amount": amount}
        assert (await ann.client.refused("advance_repay", params))["code"] == code


async def test_who_may_do_what(database: Database) -> None:
    async with open_house(database) as house:
        ann, bob = await house.person(), await house.person()
        params = {"account_id": ann.account_id, "amount": "12.00"}
        assert (await ann.client.refused("advance_request", {"amount": "12.00"}))["code"] == 1004
        advance = await request(house, ann, "12.00")
        named = {"advance_id": advance["advance_id"]}
        reader = await house.client("read", user_id=ann.user_id)
        assert (await reader.call("advance_get", named))["advance_id"] == advance["advance_id"]
        assert (await reader.refused("advance_repay", named))["code"] == 1004
        assert (await bob.client.refused("advance_get", named))["code"] == 2001
        assert (await bob.client.refused("advance_list", {"account_id": ann.account_id}))["code"] == 2001
        assert (await bob.client.refused("advance_repay", named))["code"] == 3008
        limited = await house.client("user", user_id=ann.user_id, account_id=bob.account_id)
        assert (await limited.refused("advance_get", named))["code"] == 2001
        assert (await limited.refused("advance_repay", named))["code"] in (2001, 3008)
        assert (await house.operator.call("advance_request", params))["principal"] == "12.00"
        assert (await house.operator.call("advance_repay", named))["status"] == "completed"


async def test_an_account_or_an_advance_that_is_not_there(database: Database) -> None:
    async with open_house(database) as house:
        nobody = {"account_id": 999, "amount": "12.00"}
        assert (await house.service.refused("advance_request", nobody))["code"] == 2001
        assert (await house.service.refused("advance_get", {"advance_id": fresh_id()}))["code"] == 2001
        assert (await house.service.refused("advance_repay", {"advance_id": fresh_id()}))["code"] == 3008
        ann = await house.person("5.00")
        credit = await house.service.call("credit", {"account_id": ann.account_id, "amount": "1.00"})
        named = {"advance_id": credit["transaction_id"]}
        assert (await house.service.refused("advance_repay", named))["code"] == 3008
        assert (await house.service.refused("advance_get", named))["code"] == 2001


async def test_who_is_disabled_gets_no_advance_and_is_collected_from(database: Database) -> None:
    async with open_house(database, **QUICK) as house:
        ann = await house.person()
        advance = await request(house, ann, "12.00")
        await house.operator.call("user_disable", {"user_id": ann.user_id})
        params = {"account_id": ann.account_id, "amount": "12.00"}
        assert (await house.service.refused("advance_request", params))["code"] == 1005
        await house.advance_clock(WEEK_S)
        assert (await collected(house, advance, 1))["outstanding"] == "11.00"


async def test_an_account_with_a_running_advance_is_not_closed(database: Database) -> None:
    async with open_house(database) as house:
        ann = await house.person()
        advance = await request(house, ann, "12.00")
        await ann.client.call("debit", {"amount": "12.00"})
        assert (await ann.client.refused("account_close"))["code"] == 2004
        await house.service.call("credit", {"account_id": ann.account_id, "amount": "12.00"})
        await ann.client.call("advance_repay", {"advance_id": advance["advance_id"]})
        assert (await ann.client.call("account_close"))["status"] == "closed"


async def test_the_limits_are_those_of_the_configuration_and_are_told(database: Database) -> None:
    limits = {"advance_installments_max": 4, "advance_interval_days_max": 10}
    async with open_house(database, **limits) as house:
        ann = await house.person()
        assert limits.items() <= (await ann.client.call("system_info"))["limits"].items()
        good = {"account_id": ann.account_id, "amount": "12.00", "installments": 4, "interval_days": 10}
        assert len((await house.service.call("advance_request", good))["payments"]) == 4
        for name, value in (("installments", 5), ("interval_days", 11)):
            error = await house.service.refused("advance_request", {**good, name: value})
            assert (error["code"], error["data"]["errors"][0]["pointer"]) == (-32602, f"/{name}")


@pytest.mark.parametrize(
    ("method", "params", "pointer"),
    [
        ("advance_request", {"account_id": 11, "amount": "1", "installments": 0}, "/installments"),
        ("advance_request", {"account_id": 11, "amount": "1", "installments": 1001}, "/installments"),
        ("advance_request", {"account_id": 11, "amount": "1", "installments": "12"}, "/installments"),
        ("advance_request", {"account_id": 11, "amount": "1", "installments": 1.5}, "/installments"),
        ("advance_request", {"account_id": 11, "amount": "1", "interval_days": 0}, "/interval_days"),
        ("advance_request", {"account_id": 11, "amount": "1", "interval_days": 367}, "/interval_days"),
        ("advance_request", {"account_id": 11, "amount": "1", "interval_days": True}, "/interval_days"),
        ("advance_request", {"account_id": 11}, "/amount"),
        ("advance_request", {"account_id": 11, "user_id": 1, "amount": "1"}, "/user_id"),
        ("advance_request", {"account_id": 11, "amount": "1", "unknown": 1}, "/unknown"),
        ("advance_get", {}, "/advance_id"),
        ("advance_get", {"advance_id": "X"}, "/advance_id"),
        ("advance_list", {"account_id": 11, "status": "late"}, "/status"),
        ("advance_list", {"account_id": 11, "limit": 0}, "/limit"),
        ("advance_list", {"account_id": 11, "limit": 1001}, "/limit"),
        ("advance_list", {"account_id": 11, "cursor": 1}, "/cursor"),
        ("advance_repay", {"amount": "1"}, "/advance_id"),
        ("advance_repay", {"advance_id": fresh_id(), "amount": None}, "/amount"),
        ("advance_repay", {"advance_id": fresh_id(), "reason": "x" * 256}, "/reason"),
    ],
)
async def test_every_parameter_is_judged(method: str, params: Any, pointer: str) -> None:
    async with open_door() as door:
        error = await (await door.service()).refused(method, params)
        assert error["code"] == -32602
        assert pointer in [problem["pointer"] for problem in error["data"]["errors"]]
        assert door.router.units == []


async def test_lists_go_newest_first_page_by_page_and_by_status(database: Database) -> None:
    async with open_house(database) as house:
        ann = await house.person()
        made = [(await request(house, ann, f"{number}.00"))["advance_id"] for number in range(1, 6)]
        await house.service.call("advance_repay", {"advance_id": made[2]})
        seen: list[Any] = []
        cursor: dict[str, Any] = {}
        while True:
            page = await ann.client.call("advance_list", {"limit": 2, **cursor})
            seen += page["items"]
            if not cursor:
                await request(house, ann, "77.00")
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
        assert [each["advance_id"] for each in seen] == made[::-1]
        assert all(len(each["payments"]) == 12 and "events" not in each for each in seen)
        done = await ann.client.call("advance_list", {"status": "completed"})
        assert [each["advance_id"] for each in done["items"]] == [made[2]]
        active = await house.operator.call("advance_list", {"user_id": ann.user_id, "status": "active"})
        assert len(active["items"]) == 5
        assert (await ann.client.refused("advance_list", {**cursor, "status": "active"}))["code"] == 2010


async def test_a_page_of_advances_ends_early_rather_than_exceed_a_frame(database: Database) -> None:
    async with open_house(database, frame_out_bytes_max=10_000) as house:
        ann = await house.person()
        for _ in range(8):
            await request(house, ann, "12.00")
        first = await ann.client.call("advance_list")
        assert 0 < len(first["items"]) < 8
        rest: list[Any] = []
        cursor = first["next_cursor"]
        while cursor is not None:
            page = await ann.client.call("advance_list", {"cursor": cursor})
            rest += page["items"]
            cursor = page["next_cursor"]
        assert len(first["items"]) + len(rest) == 8


async def test_of_an_endless_advance_the_latest_payments_and_events_are_shown(database: Database) -> None:
    async with open_house(database, **QUICK) as house:
        ann = await house.person()
        advance = await request(house, ann, "2.00", installments=2, interval_days=1)
        await ann.client.call("debit", {"amount": "2.00"})
        await house.advance_clock(400 * 86_400 + 3_600)

        async def caught_up() -> bool:
            found = await house.operator.call("advance_get", {"advance_id": advance["advance_id"]})
            return bool(found["payments"][-1]["number"] == 401)

        await until(caught_up)
        found = await ann.client.call("advance_get", {"advance_id": advance["advance_id"]})
        assert (len(found["payments"]), found["payments_omitted"]) == (200, 201)
        assert (len(found["events"]), found["events_omitted"]) == (200, 3 * 400 + 1 - 200)
        assert found["payments"][-1]["amount"] == "2.00"
        assert [event["event"] for event in found["events"]] == list(range(1_002, 1_202))
        listed = (await ann.client.call("advance_list"))["items"][0]
        assert (len(listed["payments"]), listed["payments_omitted"]) == (100, 301)


async def test_advances_are_not_items_of_a_batch_of_commands_and_may_stand_in_one_of_requests(
    database: Database,
) -> None:
    async with open_house(database) as house:
        ann = await house.person()
        item = {"method": "advance_request", "params": {"account_id": ann.account_id, "amount": "12.00"}}
        error = await house.service.refused("transaction_batch", {"items": [item], "batch_id": fresh_id()})
        assert error["code"] == -32602
        number = fresh_id()
        members = [
            {
                "jsonrpc": "2.0",
                "id": 1,
                "method": "advance_request",
                "params": {**item["params"], "transaction_id": number},
            },
            {"jsonrpc": "2.0", "id": 2, "method": "advance_repay", "params": {"advance_id": number, "amount": "2.00"}},
            {"jsonrpc": "2.0", "id": 3, "method": "advance_get", "params": {"advance_id": number}},
        ]
        await house.service.send(members)
        with trio.fail_after(20):
            requested, repaid, read = await house.service.receive()
        assert requested["result"]["principal"] == "12.00"
        assert repaid["result"]["outstanding"] == read["result"]["outstanding"] == "10.00"
