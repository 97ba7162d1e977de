"""monitor_set, monitor_list, monitor_remove, and who may follow the channel."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gateway.fake_books import NOW
from tests.gateway.fakes import Client, Door, open_door

MINE, OTHERS, EUR = 11, 12, 13


async def set_one(client: Client, account_id: int = MINE, **params: Any) -> Any:
    return await client.call("monitor_set", {"account_id": account_id, **(params or {"below": "5.00"})})


def numbers(page: Any) -> list[int]:
    return [item["monitor_id"] for item in page["items"]]


# -- setting ----------------------------------------------------------------------------------------------------------


async def test_a_monitor_is_set_and_acts_here_at_once() -> None:
    async with open_door() as door:
        client = await door.user()
        made = await set_one(client, below="5.00", label="low")
        assert made == {
            "monitor_id": made["monitor_id"], "account_id": MINE, "version": 0, "currency": "USD", "label": "low",
            "created_at": NOW, "below": "5.00",
        }  # fmt: skip
        (learned,) = door.hub.monitors
        assert (learned.direction, learned.amount, learned.after_version) == ("below", 500, 0)


@pytest.mark.parametrize(
    ("params", "account_id", "amount"),
    [
        ({"above": "0"}, MINE, 0),
        ({"below": 5}, MINE, 500),
        ({"user_id": 1, "currency": "EUR", "above": "1.5"}, EUR, 150),
        ({"account_id": EUR, "above": "9999999999999999.99"}, EUR, 10**18 - 1),
    ],
)
async def test_amount_and_account_may_be_given_in_these_ways(
    params: dict[str, Any], account_id: int, amount: int
) -> None:
    async with open_door() as door:
        await (await door.user()).call("monitor_set", params)
        (learned,) = door.hub.monitors
        assert (learned.account_id, learned.amount) == (account_id, amount)


@pytest.mark.parametrize(
    ("params", "pointer"),
    [
        ({}, "/below"),
        ({"below": "1", "above": "2"}, "/above"),
        ({"below": "1", "account_id": MINE, "user_id": 1}, "/user_id"),
        ({"below": "1e2"}, "/below"),
        ({"below": "01"}, "/below"),
        ({"below": " 1"}, "/below"),
        ({"below": "NaN"}, "/below"),
        ({"below": True}, "/below"),
        ({"below": None}, "/below"),
        ({"above": "1.123456789"}, "/above"),
        ({"above": ["1"]}, "/above"),
        ({"above": "1000000000000000000"}, "/above"),
        ({"below": "1", "label": "x" * 256}, "/label"),
        ({"below": "1", "label": 7}, "/label"),
        ({"below": "1", "label": None}, "/label"),
        ({"below": "1", "currency": "usd"}, "/currency"),
        ({"below": "1", "account_id": 0}, "/account_id"),
        ({"below": "1", "account_id": 2**63}, "/account_id"),
        ({"below": "1", "account_id": "11"}, "/account_id"),
        ({"below": "1", "user_id": 0}, "/user_id"),
        ({"below": "1", "amount": "1"}, "/amount"),
    ],
)
async def test_a_parameter_of_the_wrong_kind_range_or_length_is_named(params: dict[str, Any], pointer: str) -> None:
    async with open_door() as door:
        error = await (await door.user()).refused("monitor_set", params)
        assert error["code"] == -32602
        assert pointer in {problem["pointer"] for problem in error["data"]["errors"]}


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"below": "1.001"}, 3003),
        ({"below": "1.000"}, 3003),
        ({"above": "-1"}, 3004),
        ({"above": "-1.001"}, 3003),
        ({"above": "10000000000000000"}, 3004),
        ({"below": "1", "account_id": MINE, "currency": "EUR"}, 3002),
        ({"below": "1", "account_id": OTHERS}, 2001),
        ({"below": "1", "account_id": 999}, 2001),
        ({"below": "1", "user_id": 2}, 2001),
        ({"below": "1", "currency": "JPY"}, 2001),
    ],
)
async def test_what_does_not_fit_the_account_is_refused(params: dict[str, Any], code: int) -> None:
    async with open_door() as door:
        assert (await (await door.user()).refused("monitor_set", params))["code"] == code
        assert door.hub.monitors == []


async def test_the_same_again_is_told_which_one_there_is() -> None:
    async with open_door() as door:
        client = await door.user()
        made = await set_one(client)
        error = await client.refused("monitor_set", {"below": "5"})
        assert (error["code"], error["data"]["monitor_id"]) == (2002, made["monitor_id"])
        await set_one(client, above="5")
        await set_one(client, EUR)


async def test_an_account_has_so_many_monitors_and_no_more() -> None:
    async with open_door(monitors_per_account_max=2) as door:
        client = await door.user()
        first = await set_one(client, below="1")
        await set_one(client, below="2")
        error = await client.refused("monitor_set", {"account_id": MINE, "below": "3"})
        assert (error["code"], error["data"]["resource"]) == (3006, "monitor")
        await client.call("monitor_remove", {"monitor_id": first["monitor_id"]})
        await set_one(client, below="3")


async def test_a_ledger_that_is_full_takes_no_more() -> None:
    async with open_door() as door:
        door.hub.monitors_fit = False
        assert (await (await door.user()).refused("monitor_set", {"below": "1"}))["code"] == 3006


async def test_a_database_that_is_away_is_told() -> None:
    async with open_door() as door:
        client = await door.user()
        door.directory.learn()
        door.books.away = True
        error = await client.refused("monitor_set", {"account_id": MINE, "below": "1"})
        assert (error["code"], error["data"]["retryable"]) == (8008, True)


# -- who may ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["monitor_set", "monitor_remove"])
async def test_a_token_that_only_reads_sets_and_removes_nothing(method: str) -> None:
    params = {"below": "1"} if method == "monitor_set" else {"monitor_id": 1}
    async with open_door() as door:
        reader = await door.user(1, "read")
        assert (await reader.refused(method, params))["code"] == 1004
        assert (await reader.call("monitor_list"))["items"] == []
        assert (await (await door.client()).refused(method, params))["code"] == 1001


async def test_services_set_monitors_on_any_account_and_must_name_it() -> None:
    async with open_door() as door:
        service = await door.service()
        await set_one(service, MINE)
        await set_one(service, OTHERS)
        assert (await service.refused("monitor_set", {"below": "1"}))["code"] == -32602


async def test_a_token_of_one_account_sees_and_sets_only_its_monitors() -> None:
    async with open_door() as door:
        whole = await door.user()
        other = await set_one(whole, EUR)
        limited = await door.user(account_id=MINE)
        mine = await limited.call("monitor_set", {"below": "1"})
        assert mine["account_id"] == MINE
        assert (await limited.refused("monitor_set", {"account_id": EUR, "below": "1"}))["code"] == 2001
        assert numbers(await limited.call("monitor_list")) == [mine["monitor_id"]]
        assert (await limited.refused("monitor_list", {"account_id": EUR}))["code"] == 2001
        assert (await limited.refused("monitor_remove", {"monitor_id": other["monitor_id"]}))["code"] == 2001


# -- listing ----------------------------------------------------------------------------------------------------------


async def lists(door: Door) -> tuple[Client, Client, list[int]]:
    """A user, a service, and the monitors on the accounts 11, 13 and 12 in that order."""
    user, service = await door.user(), await door.service()
    made = [await set_one(user, MINE), await set_one(user, EUR), await set_one(service, OTHERS)]
    return user, service, [monitor["monitor_id"] for monitor in made]


async def test_monitors_are_listed_by_account_by_user_or_all_that_the_caller_may_see() -> None:
    async with open_door() as door:
        user, service, (mine, eur, others) = await lists(door)
        assert numbers(await user.call("monitor_list")) == [mine, eur]
        assert numbers(await user.call("monitor_list", {"account_id": EUR})) == [eur]
        assert numbers(await user.call("monitor_list", {"user_id": 1})) == [mine, eur]
        assert numbers(await service.call("monitor_list")) == [mine, eur, others]
        assert numbers(await service.call("monitor_list", {"user_id": 2})) == [others]
        assert (await user.refused("monitor_list", {"user_id": 2}))["code"] == 2001
        assert (await user.refused("monitor_list", {"account_id": OTHERS}))["code"] == 2001


async def test_a_list_goes_on_at_its_cursor_which_is_good_for_no_other_list() -> None:
    async with open_door() as door:
        user, service, made = await lists(door)
        page = await service.call("monitor_list", {"limit": 2})
        assert numbers(page) == made[:2]
        rest = await service.call("monitor_list", {"limit": 2, "cursor": page["next_cursor"]})
        assert (numbers(rest), rest["next_cursor"]) == (made[2:], None)
        for client, params in ((user, {}), (service, {"account_id": MINE}), (service, {"user_id": 1})):
            error = await client.refused("monitor_list", {**params, "cursor": page["next_cursor"]})
            assert error["code"] == 2010


@pytest.mark.parametrize(
    ("params", "pointer"),
    [
        ({"limit": 0}, "/limit"),
        ({"limit": 1001}, "/limit"),
        ({"limit": "1"}, "/limit"),
        ({"cursor": "x" * 513}, "/cursor"),
        ({"account_id": 0}, "/account_id"),
        ({"user_id": 1.5}, "/user_id"),
        ({"user_id": 1, "account_id": MINE}, "/user_id"),
        ({"currency": "USD"}, "/currency"),
    ],
)
async def test_a_list_names_what_is_wrong_with_its_parameters(params: dict[str, Any], pointer: str) -> None:
    async with open_door() as door:
        error = await (await door.user()).refused("monitor_list", params)
        assert (error["code"], error["data"]["errors"][0]["pointer"]) == (-32602, pointer)


# -- removing ---------------------------------------------------------------------------------------------------------


async def test_a_removed_monitor_is_gone_and_removing_it_again_changes_nothing() -> None:
    async with open_door() as door:
        client = await door.user()
        made = await set_one(client)
        assert await client.call("monitor_remove", {"monitor_id": made["monitor_id"]}) == {"removed": 1}
        assert door.hub.monitors[-1].removed
        assert (await client.call("monitor_list"))["items"] == []
        assert await client.call("monitor_remove", {"monitor_id": made["monitor_id"]}) == {"removed": 0}
        assert len(door.hub.monitors) == 2


async def test_a_user_sees_and_cannot_remove_what_a_service_watches_the_account_with() -> None:
    async with open_door() as door:
        user, service = await door.user(), await door.service()
        theirs, mine = await set_one(service, below="1"), await set_one(user, below="2")
        assert len((await user.call("monitor_list"))["items"]) == 2
        assert (await user.refused("monitor_remove", {"monitor_id": theirs["monitor_id"]}))["code"] == 1004
        for monitor in (theirs, mine):
            assert await service.call("monitor_remove", {"monitor_id": monitor["monitor_id"]}) == {"removed": 1}


async def test_a_monitor_of_somebody_else_is_not_there() -> None:
    async with open_door() as door:
        made = await set_one(await door.service(), OTHERS)
        client = await door.user()
        for number in (made["monitor_id"], 999_999):
            error = await client.refused("monitor_remove", {"monitor_id": number})
            assert (error["code"], error["data"]["resource"]) == (2001, "monitor")


@pytest.mark.parametrize("number", [0, -1, 2**63, "1", 1.5, None, [1]])
async def test_a_number_that_none_could_have_is_refused(number: Any) -> None:
    async with open_door() as door:
        error = await (await door.user()).refused("monitor_remove", {"monitor_id": number})
        assert (error["code"], error["data"]["errors"][0]["pointer"]) == (-32602, "/monitor_id")


# -- the channel ------------------------------------------------------------------------------------------------------


async def test_the_channel_takes_the_options_of_balances_but_not_mode_latest() -> None:
    async with open_door() as door:
        client = await door.user(1, "read")
        for options in ({}, {"account_ids": [MINE]}, {"user_id": 1, "heartbeat_ms": 1_000}):
            number = await client.ask("ledger_subscribe", {"channel": "monitors", "options": options})
            assert (await client.receive())["id"] == number
            assert (await client.receive())["method"] == "ledger_subscription"
        for options, code in (
            ({"mode": "latest"}, -32602),
            ({"account_ids": [OTHERS]}, 2001),
            ({"user_id": 2}, 2001),
            ({"all": True}, 1004),
        ):
            error = await client.refused("ledger_subscribe", {"channel": "monitors", "options": options})
            assert error["code"] == code
