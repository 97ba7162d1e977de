"""The list of an account's transactions on a real database: the opening position, present states, weeks long past."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from ledgerd.storage import books
from tests.conftest import Database
from tests.gateway.fake_books import record, side
from tests.gateway.fakes import Client, open_door
from tests.gateway.house import House, Person, open_house

MINE = 11


async def a_history(house: House) -> Person:
    """Someone whose account has versions 1 to 8: credit, debit, hold, limit, transfer in, capture, hold, release."""
    ada, bob = await house.person("100.00"), await house.person("50.00")
    await ada.client.call("debit", {"amount": "10.00", "reference": "rent"})
    captured = (await ada.client.call("hold_place", {"amount": "20.00"}))["transaction_id"]
    await house.operator.call("account_set_limit", {"account_id": ada.account_id, "overdraft_limit": "30.00"})
    await bob.client.call("transfer", {"destination_account_id": ada.account_id, "amount": "5.00"})
    await house.service.call("hold_capture", {"hold_id": captured, "amount": "15.00"})
    released = (await ada.client.call("hold_place", {"amount": "1.00"}))["transaction_id"]
    await ada.client.call("hold_release", {"hold_id": released})
    return ada


async def all_pages(client: Client, **params: Any) -> list[Any]:
    pages = [await client.call("transaction_list", params)]
    while pages[-1]["next_cursor"] is not None:
        pages.append(await client.call("transaction_list", {**params, "cursor": pages[-1]["next_cursor"]}))
    return pages


def versions(page: Any) -> list[int]:
    return [item["entries"][0]["version"] for item in page["items"]]


@pytest.mark.parametrize("order", ["newest_first", "oldest_first"])
@pytest.mark.parametrize("limit", [1, 3, 8, 100])
async def test_the_opening_is_the_account_just_before_the_oldest_item_of_the_page(
    database: Database, order: str, limit: int
) -> None:
    async with open_house(database) as house:
        ada = await a_history(house)
        balances = [await ada.client.call("balance_get", {"version": version}) for version in range(9)]
        pages = await all_pages(ada.client, order=order, limit=limit)
        assert [version for page in pages for version in versions(page)] == sorted(
            range(1, 9), reverse=order == "newest_first"
        )
        for page in pages:
            opening, oldest = page["opening"], min(versions(page))
            before = balances[oldest - 1]
            assert opening == {name: before[name] for name in ("version", "balance", "held", "available")}
            assert opening["version"] == oldest - 1
            # What the items say adds up from there.
            sums = [sum(Decimal(item["entries"][0][change]) for item in page["items"]) for change in CHANGES]
            after = balances[max(versions(page))]
            assert [Decimal(opening[name]) + total for name, total in zip(("balance", "held"), sums, strict=True)] == [
                Decimal(after["balance"]),
                Decimal(after["held"]),
            ]


CHANGES = ("balance_change", "held_change")


async def test_the_first_page_of_an_account_opens_at_version_zero_with_nothing(database: Database) -> None:
    async with open_house(database) as house:
        ada = await a_history(house)
        page = await ada.client.call("transaction_list")
        assert page["opening"] == {"version": 0, "balance": "0.00", "held": "0.00", "available": "0.00"}
        empty = await ada.client.call("transaction_list", {"kind": "bet"})
        assert (empty["items"], empty["opening"], empty["next_cursor"]) == ([], None, None)
        new = await house.person()
        assert (await new.client.call("transaction_list"))["opening"] is None


async def test_a_page_that_ends_early_opens_before_the_last_item_it_has_room_for() -> None:
    async with open_door(frame_out_bytes_max=5_000) as door:
        door.books.listed = [
            record(f"01890000-0000-7000-8000-{version:012}", [side(MINE, 1, version=version)], reference="é" * 250)
            for version in range(1, 51)
        ]
        page = await (await door.user(1)).call("transaction_list", {"limit": 50})
        assert 1 <= len(page["items"]) < 50
        assert page["opening"]["version"] == min(versions(page)) - 1


async def test_statuses_are_those_of_now_and_filter_so(database: Database) -> None:
    async with open_house(database) as house:
        ada = await a_history(house)

        async def listed(**params: Any) -> list[tuple[str, str]]:
            items = (await ada.client.call("transaction_list", {"order": "oldest_first", **params}))["items"]
            return [(item["kind"], item["status"]) for item in items]

        assert await listed(kind="hold") == [("hold", "captured"), ("hold", "released")]
        assert await listed(status="captured") == [("hold", "captured")]
        assert await listed(status="released") == [("hold", "released")]
        for status in ("pending", "expired", "failed", "cancelled"):
            assert await listed(status=status) == []
        assert len(await listed(status="posted")) == 6
        assert await listed(status="posted", kind="hold") == []
        pending = await ada.client.call("hold_place", {"amount": "1.00"})
        assert await listed(status="pending") == [("hold", "pending")]
        await ada.client.call("hold_release", {"hold_id": pending["transaction_id"]})
        assert await listed(status="pending") == []


async def test_how_much_was_reversed_is_shown(database: Database) -> None:
    async with open_house(database) as house:
        ada = await a_history(house)
        (debit,) = (await ada.client.call("transaction_list", {"reference": "rent"}))["items"]
        assert debit["reversed_amount"] == "0.00"
        params = {"original_transaction_id": debit["transaction_id"], "amount": "4.00"}
        await house.service.call("transaction_reverse", params)
        for method, asked in (("transaction_list", {"reference": "rent"}), ("transaction_report", {})):
            items = (await ada.client.call(method, asked))["items"]
            (again,) = [item for item in items if item["transaction_id"] == debit["transaction_id"]]
            assert again["reversed_amount"] == "4.00"


@pytest.mark.parametrize("order", ["newest_first", "oldest_first"])
async def test_a_page_looks_at_so_many_versions_only_and_the_next_goes_on_there(
    database: Database, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    monkeypatch.setattr(books, "LOOK_FILTERED", 3)
    async with open_house(database) as house:
        ada = await a_history(house)
        pages = await all_pages(ada.client, order=order, reference="rent")
        assert [version for page in pages for version in versions(page)] == [2]
        assert len(pages) == 3
        assert len([page for page in pages if page["opening"] is None]) == 2
        for kind, expected in (("hold", [3, 7]), ("limit", [4]), ("credit", [1]), ("release", [8]), ("bet", [])):
            found = [
                version
                for page in await all_pages(ada.client, order=order, kind=kind, limit=1)
                for version in versions(page)
            ]
            assert sorted(found) == expected


@pytest.mark.parametrize("order", ["newest_first", "oldest_first"])
async def test_the_beginning_of_an_interval_belongs_to_it_and_its_end_does_not(database: Database, order: str) -> None:
    async with open_house(database) as house:
        ada = await a_history(house)
        (page,) = await all_pages(ada.client, order="oldest_first")
        times = [item["created_at"] for item in page["items"]]
        for begin in (None, *range(8)):
            for end in (None, *range(8)):
                bounds = {
                    **({} if begin is None else {"created_from": times[begin]}),
                    **({} if end is None else {"created_before": times[end]}),
                }
                pages = await all_pages(ada.client, order=order, limit=3, **bounds)
                found = sorted(version for each in pages for version in versions(each))
                # Two transactions may have the same microsecond.
                assert found == [
                    number + 1
                    for number, time in enumerate(times)
                    if (begin is None or time >= times[begin]) and (end is None or time < times[end])
                ]


@pytest.mark.parametrize(
    ("method", "name"),
    [("transaction_list", "created_from"), ("transaction_list", "created_before"), ("balance_get", "at")],
)
@pytest.mark.parametrize("time", ["0001-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"])
async def test_times_at_the_ends_of_the_calendar_are_times_like_others(
    database: Database, method: str, name: str, time: str
) -> None:
    async with open_house(database) as house:
        ada = await house.person("1.00")
        await ada.client.ask(method, {name: time})
        reply = await ada.client.receive()
        if method == "transaction_list":
            assert len(reply["result"]["items"]) == int((time > "2000") == (name == "created_before"))
        elif time > "2000":
            assert reply["result"]["version"] == 1
        else:
            assert reply["error"]["data"]["resource"] == "balance"


async def test_a_balance_in_the_past_has_the_version_the_account_had_then(database: Database) -> None:
    async with open_house(database) as house:
        ada = await a_history(house)
        (page,) = await all_pages(ada.client, order="oldest_first")
        for number, item in enumerate(page["items"], start=1):
            at = await ada.client.call("balance_get", {"at": item["created_at"]})
            assert at["version"] >= number
            assert at == await ada.client.call("balance_get", {"version": at["version"]})
        opened = (await house.account(ada))["created_at"]
        assert (await ada.client.call("balance_get", {"at": opened}))["version"] == 0
        assert (await ada.client.refused("balance_get", {"version": 9}))["data"]["resource"] == "balance"
        assert (await ada.client.refused("balance_get", {"version": 2**63 - 1}))["data"]["resource"] == "balance"
        # A clock that goes back does not make history doubtful: time never falls along an account.
        await house.advance_clock(-3600)
        await ada.client.call("debit", {"amount": "1.00"})
        last = (await ada.client.call("transaction_list", {"limit": 1}))["items"][0]
        assert last["created_at"] >= page["items"][-1]["created_at"]
        assert (await ada.client.call("balance_get", {"at": last["created_at"]}))["version"] == 9
