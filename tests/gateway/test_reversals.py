"""Reversals over the wire: back what was moved, in parts, up to the original, once each."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Database
from tests.gateway.fakes import Client
from tests.gateway.house import House, follow, fresh_id, open_house, updates


async def made(client: Client, method: str, **params: Any) -> str:
    """Post a transaction; its id."""
    return str((await client.call(method, params))["transaction_id"])


async def reverse(house: House, original: str, **params: Any) -> Any:
    return await house.service.call("transaction_reverse", {"original_transaction_id": original, **params})


async def refusal(house: House, original: str, **params: Any) -> Any:
    refused = await house.service.refused("transaction_reverse", {"original_transaction_id": original, **params})
    return refused["data"]


async def shown(house: House, transaction_id: str) -> Any:
    return await house.operator.call("transaction_get", {"transaction_id": transaction_id})


async def test_a_transfer_is_reversed_in_parts_up_to_the_whole(database: Database) -> None:
    async with open_house(database) as house:
        ada, bob = await house.person("100.00"), await house.person()
        original = await made(ada.client, "transfer", destination_account_id=bob.account_id, amount="30.00")
        first = await reverse(house, original, amount="10.00", reason="two were broken", reference="return 1")
        assert (first["kind"], first["status"], first["amount"]) == ("reversal", "posted", "10.00")
        assert first["reverses"] == original
        assert [(entry["account_id"], entry["balance_change"]) for entry in first["entries"]] == [
            (bob.account_id, "-10.00"),
            (ada.account_id, "10.00"),
        ]
        assert (await shown(house, original))["reversed_amount"] == "10.00"
        data = await refusal(house, original, amount="20.01")
        assert (data["code"], data["remaining"]) == ("already_reversed", "20.00")
        rest = await reverse(house, original)
        assert rest["amount"] == "20.00"
        data = await refusal(house, original)
        assert (data["code"], data["remaining"]) == ("already_reversed", "0.00")
        assert await house.money(ada) == ("100.00", "0.00", "100.00")
        assert await house.money(bob) == ("0.00", "0.00", "0.00")
        assert (await shown(house, original))["reversed_amount"] == "30.00"


async def test_original_and_reversals_name_each_other(database: Database) -> None:
    async with open_house(database) as house:
        ada = await house.person("100.00")
        original = await made(ada.client, "debit", amount="30.00")
        assert (await shown(house, original))["reversed_amount"] == "0.00"
        reversal = await reverse(house, original, amount="1.00")
        assert (await shown(house, reversal["transaction_id"]))["reverses"] == original
        page = await ada.client.call("transaction_list", {"order": "oldest_first"})
        items = [(item["kind"], item.get("reverses"), item.get("reversed_amount")) for item in page["items"]]
        assert items == [("credit", None, "0.00"), ("debit", None, "1.00"), ("reversal", original, None)]


@pytest.mark.parametrize(("method", "before", "after"), [("credit", "110.00", "100.00"), ("debit", "90.00", "100.00")])
async def test_what_came_from_or_went_to_the_outside_goes_back(
    database: Database, method: str, before: str, after: str
) -> None:
    async with open_house(database) as house:
        ada = await house.person("100.00")
        original = await made(house.service, method, account_id=ada.account_id, amount="10.00")
        assert (await house.money(ada))[0] == before
        reversal = await reverse(house, original)
        assert len(reversal["entries"]) == 1
        assert (await house.money(ada))[0] == after


async def test_a_capture_is_reversed_up_to_what_was_captured(database: Database) -> None:
    async with open_house(database) as house:
        ada, bob = await house.person("100.00"), await house.person()
        hold_id = await made(ada.client, "hold_place", amount="30.00", destination_account_id=bob.account_id)
        capture = await made(house.service, "hold_capture", hold_id=hold_id, amount="12.00")
        data = await refusal(house, capture, amount="12.01")
        assert (data["code"], data["remaining"]) == ("already_reversed", "12.00")
        assert (await reverse(house, capture))["amount"] == "12.00"
        assert await house.money(ada) == ("100.00", "0.00", "100.00")
        assert (await refusal(house, hold_id))["code"] == "not_reversible"


async def test_a_reversal_is_refused_when_the_money_is_gone_and_may_be_tried_again(database: Database) -> None:
    async with open_house(database) as house:
        ada, bob = await house.person("100.00"), await house.person()
        original = await made(ada.client, "transfer", destination_account_id=bob.account_id, amount="30.00")
        await made(bob.client, "debit", amount="25.00")
        transaction_id = fresh_id()
        data = await refusal(house, original, transaction_id=transaction_id)
        assert (data["code"], data["available"], data["requested"]) == ("insufficient_funds", "5.00", "30.00")
        await made(house.service, "credit", account_id=bob.account_id, amount="25.00")
        assert (await reverse(house, original, transaction_id=transaction_id))["amount"] == "30.00"


async def test_a_reversal_is_done_once(database: Database) -> None:
    async with open_house(database) as house:
        ada = await house.person("100.00")
        original, other = (
            await made(ada.client, "debit", amount="30.00"),
            await made(ada.client, "debit", amount="5.00"),
        )
        part = {"transaction_id": fresh_id(), "amount": "10.00"}
        first = await reverse(house, original, **part)
        assert await reverse(house, original, **part) == {**first, "replayed": True}
        assert (await refusal(house, other, **part))["mismatch"] == ["reverses"]
        assert (await refusal(house, original, transaction_id=part["transaction_id"]))["mismatch"] == ["amount"]
        assert (await house.money(ada))[0] == "75.00"
        rest = {"transaction_id": fresh_id()}
        whole = await reverse(house, original, **rest)
        assert await reverse(house, original, **rest) == {**whole, "replayed": True}, "what was left then: 20.00"
        assert (await refusal(house, original, amount="20.00", **rest))["mismatch"] == ["amount"]


async def test_only_what_moved_money_can_be_reversed(database: Database) -> None:
    async with open_house(database) as house:
        ada = await house.person("100.00")
        hold_id = await made(ada.client, "hold_place", amount="5.00")
        release = await made(ada.client, "hold_release", hold_id=hold_id)
        reversal = (await reverse(house, await made(ada.client, "debit", amount="5.00")))["transaction_id"]
        limit, tombstone = fresh_id(), fresh_id()
        await house.operator.call(
            "account_set_limit", {"account_id": ada.account_id, "overdraft_limit": "1", "transaction_id": limit}
        )
        await ada.client.call("transaction_cancel", {"transaction_id": tombstone})
        for original in (hold_id, release, reversal, limit, tombstone):
            for part in ({}, {"amount": "1.00"}):
                assert (await refusal(house, original, **part))["code"] == "not_reversible"
        assert (await refusal(house, fresh_id()))["code"] == "reference_not_found"
        assert (await refusal(house, fresh_id(), amount="1.00"))["code"] == "reference_not_found"


async def test_the_amount_is_read_in_the_currency_of_the_original(database: Database) -> None:
    async with open_house(database) as house:
        ken = await house.person("900", currency="JPY")
        original = await made(ken.client, "debit", amount="500", currency="JPY")
        assert (await refusal(house, original, amount="5.0"))["code"] == "amount_precision"
        assert (await refusal(house, original, amount="0"))["code"] == "amount_out_of_range"
        assert (await refusal(house, original, amount="501"))["remaining"] == "500"
        assert (await reverse(house, original, amount="5"))["amount"] == "5"


async def test_users_reverse_nothing(database: Database) -> None:
    async with open_house(database) as house:
        ada = await house.person("100.00")
        original = await made(ada.client, "debit", amount="1.00")
        refused = await ada.client.refused("transaction_reverse", {"original_transaction_id": original})
        assert refused["data"]["code"] == "permission_denied"
        limited = await house.client("service", user_id=ada.user_id, account_id=(await house.person()).account_id)
        for part in ({}, {"amount": "1.00"}):
            refused = await limited.refused("transaction_reverse", {"original_transaction_id": original, **part})
            assert refused["data"]["code"] == "reference_not_found"


async def test_a_transaction_and_its_reversal_sent_without_waiting_find_each_other(database: Database) -> None:
    async with open_house(database) as house:
        ada = await house.person("100.00")
        debit, credit = fresh_id(), fresh_id()
        calls: list[tuple[str, dict[str, Any]]] = [
            ("debit", {"transaction_id": debit, "account_id": ada.account_id, "amount": "30.00"}),
            ("transaction_reverse", {"original_transaction_id": debit, "amount": "10.00"}),
            ("credit", {"transaction_id": credit, "account_id": ada.account_id, "amount": "5.00"}),
            ("transaction_reverse", {"original_transaction_id": credit}),
        ]
        for method, params in calls:
            await house.service.ask(method, params)
        replies = [await house.service.receive() for _ in calls]
        assert [reply["result"]["amount"] for reply in replies] == ["30.00", "10.00", "5.00", "5.00"]
        assert (await house.money(ada))[0] == "80.00"


async def test_both_sides_are_told_of_a_reversal(database: Database) -> None:
    async with open_house(database) as house:
        ada, bob = await house.person("100.00"), await house.person()
        original = await made(house.service, "transfer", source_account_id=ada.account_id,
                              destination_account_id=bob.account_id, amount="30.00")  # fmt: skip
        for person in (ada, bob):
            await follow(person.client, person.account_id)
        await reverse(house, original)
        for person, change in ((ada, "30.00"), (bob, "-30.00")):
            (event,) = await updates(person.client, 1)
            assert (event["kind"], event["balance_change"]) == ("reversal", change)


ORIGINAL = "01999999-0000-7000-8000-000000000001"
MALFORMED: list[tuple[Any, list[str]]] = [
    ({}, ["/original_transaction_id"]),
    ({"original_transaction_id": "x"}, ["/original_transaction_id"]),
    ({"original_transaction_id": 7}, ["/original_transaction_id"]),
    ({"original_transaction_id": ORIGINAL, "amount": "1,0"}, ["/amount"]),
    ({"original_transaction_id": ORIGINAL, "amount": None}, ["/amount"]),
    ({"original_transaction_id": ORIGINAL, "transaction_id": ORIGINAL[:-1]}, ["/transaction_id"]),
    ({"original_transaction_id": ORIGINAL, "reason": "x" * 256}, ["/reason"]),
    ({"original_transaction_id": ORIGINAL, "reference": 1}, ["/reference"]),
    ({"original_transaction_id": ORIGINAL, "metadata": 1}, ["/metadata"]),
    ({"original_transaction_id": ORIGINAL, "currency": "USD"}, ["/currency"]),
    ([ORIGINAL], [""]),
]


async def test_malformed_parameters_are_named(database: Database) -> None:
    async with open_house(database) as house:
        for params, pointers in MALFORMED:
            refused = await house.service.refused("transaction_reverse", params)
            assert refused["data"]["code"] == "invalid_params", params
            assert sorted(error["pointer"] for error in refused["data"]["errors"]) == pointers, params
