"""Freezing, thawing and closing accounts over the wire: what each stops, and what it lets through."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Database
from tests.gateway.fakes import Client
from tests.gateway.house import follow, fresh_id, open_house, updates


async def code(client: Client, method: str, **params: Any) -> str:
    """The stable string of the error this call must end with."""
    return str((await client.refused(method, params))["data"]["code"])


async def made(client: Client, method: str, **params: Any) -> str:
    """Post a transaction; its id."""
    return str((await client.call(method, params))["transaction_id"])


async def test_a_frozen_account_spends_nothing_and_still_receives(database: Database) -> None:
    async with open_house(database) as house:
        ada, bob = await house.person("100.00"), await house.person("100.00")
        account = {"account_id": ada.account_id}
        hold_id = await made(ada.client, "hold_place", amount="10.00")
        spare = await made(ada.client, "hold_place", amount="5.00")
        paid = await made(ada.client, "debit", amount="1.00")
        received = await made(bob.client, "transfer", destination_account_id=ada.account_id, amount="1.00")
        frozen = await house.operator.call("account_freeze", {**account, "reason": "lost card"})
        assert (frozen["status"], frozen["version"], frozen["balance"]) == ("frozen", 6, "100.00")

        assert await code(ada.client, "debit", amount="1.00") == "account_frozen"
        assert await code(ada.client, "hold_place", amount="1.00") == "account_frozen"
        to_bob = {"destination_account_id": bob.account_id, "amount": "1.00"}
        assert await code(ada.client, "transfer", **to_bob) == "account_frozen"
        assert await code(house.service, "debit", amount="1.00", **account) == "account_frozen"

        await made(house.service, "credit", amount="2.00", **account)
        await made(bob.client, "transfer", destination_account_id=ada.account_id, amount="1.00")
        await made(house.service, "hold_capture", hold_id=hold_id, amount="4.00")
        await made(ada.client, "hold_release", hold_id=spare)
        await made(house.service, "transaction_reverse", original_transaction_id=paid)
        await made(house.service, "transaction_reverse", original_transaction_id=received)
        assert await house.money(ada) == ("99.00", "0.00", "99.00")

        thawed = await house.operator.call("account_unfreeze", account)
        assert thawed["status"] == "active"
        await made(ada.client, "debit", amount="1.00")


async def test_a_disabled_user_spends_nothing_and_what_was_held_is_captured_all_the_same(database: Database) -> None:
    async with open_house(database) as house:
        ada = await house.person("100.00")
        hold_id = await made(ada.client, "hold_place", amount="10.00")
        paid = await made(ada.client, "debit", amount="1.00")
        await house.operator.call("user_disable", {"user_id": ada.user_id})
        for method in ("debit", "hold_place"):
            assert await code(house.service, method, account_id=ada.account_id, amount="1.00") == "user_disabled"
        await made(house.service, "hold_capture", hold_id=hold_id)
        await made(house.service, "transaction_reverse", original_transaction_id=paid)
        assert await house.money(ada) == ("90.00", "0.00", "90.00")


async def test_a_hold_expires_on_a_frozen_account(database: Database) -> None:
    async with open_house(database, expiry_interval_s=0.05) as house:
        ada = await house.person("100.00")
        await made(ada.client, "hold_place", amount="10.00", expires_in_s=60)
        await house.operator.call("account_freeze", {"account_id": ada.account_id})
        await follow(ada.client, ada.account_id)
        await house.advance_clock(60)
        (event,) = await updates(ada.client, 1)
        assert (event["kind"], event["held"]) == ("expiry", "0.00")


async def test_freezing_takes_a_version_and_is_pushed(database: Database) -> None:
    async with open_house(database) as house:
        ada = await house.person("100.00")
        await follow(ada.client, ada.account_id)
        await house.operator.call("account_freeze", {"account_id": ada.account_id})
        await house.operator.call("account_unfreeze", {"user_id": ada.user_id})
        events = await updates(ada.client, 2)
        assert [(event["kind"], event["version"], event["balance_change"]) for event in events] == [
            ("freeze", 2, "0.00"),
            ("unfreeze", 3, "0.00"),
        ]


async def test_freezing_again_with_the_same_id_is_done_once(database: Database) -> None:
    async with open_house(database) as house:
        ada = await house.person("100.00")
        freeze = {"account_id": ada.account_id, "transaction_id": fresh_id(), "reason": "lost card"}
        first = await house.operator.call("account_freeze", freeze)
        assert await house.operator.call("account_freeze", freeze) == first
        refused = await house.operator.refused("account_unfreeze", freeze)
        assert (refused["data"]["code"], refused["data"]["mismatch"]) == ("transaction_id_reused", ["kind"])
        record = await house.operator.call("transaction_get", {"transaction_id": freeze["transaction_id"]})
        assert (record["kind"], record["amount"], record["reason"]) == ("freeze", "0.00", "lost card")


async def test_an_account_is_closed_only_at_zero_and_without_holds(database: Database) -> None:
    async with open_house(database) as house:
        ada = await house.person("10.00")
        assert await code(ada.client, "account_close") == "account_not_empty"
        hold_id = await made(ada.client, "hold_place", amount="10.00")
        assert await code(ada.client, "account_close") == "account_not_empty"
        await made(house.service, "hold_capture", hold_id=hold_id)
        closed = await ada.client.call("account_close", {"reason": "moving on"})
        assert (closed["status"], closed["balance"], closed["version"]) == ("closed", "0.00", 4)


async def test_a_closed_account_is_over(database: Database) -> None:
    async with open_house(database) as house:
        ada, bob = await house.person("10.00"), await house.person("10.00")
        paid = await made(ada.client, "debit", amount="10.00")
        await ada.client.call("account_close")
        account = {"account_id": ada.account_id}
        for method in ("credit", "debit", "hold_place"):
            assert await code(house.service, method, amount="1.00", **account) == "account_closed"
        for method in ("account_close", "account_freeze", "account_unfreeze"):
            assert await code(house.operator, method, **account) == "account_closed"
        to_ada = {"destination_account_id": ada.account_id, "amount": "1.00"}
        assert await code(bob.client, "transfer", **to_ada) == "not_found"
        assert await code(bob.client, "hold_place", **to_ada) == "not_found"
        assert await code(house.service, "transaction_reverse", original_transaction_id=paid) == "account_closed"
        assert (await ada.client.call("account_get"))["status"] == "closed"


async def test_a_hold_for_a_destination_that_was_closed_cannot_be_captured_but_released(database: Database) -> None:
    async with open_house(database) as house:
        ada, bob = await house.person("10.00"), await house.person()
        hold_id = await made(ada.client, "hold_place", amount="10.00", destination_account_id=bob.account_id)
        await bob.client.call("account_close")
        assert await code(house.service, "hold_capture", hold_id=hold_id) == "account_closed"
        await made(ada.client, "hold_release", hold_id=hold_id)
        assert await house.money(ada) == ("10.00", "0.00", "10.00")


async def test_only_operators_freeze_and_users_close_only_their_own(database: Database) -> None:
    async with open_house(database) as house:
        ada, bob = await house.person(), await house.person()
        for client in (ada.client, house.service):
            for method in ("account_freeze", "account_unfreeze"):
                assert await code(client, method, account_id=ada.account_id) == "permission_denied"
        assert await code(house.service, "account_close", account_id=ada.account_id) == "permission_denied"
        assert await code(ada.client, "account_close", account_id=bob.account_id) == "not_found"
        assert await code(ada.client, "account_close", user_id=bob.user_id) == "not_found"
        assert await code(house.operator, "account_freeze", account_id=10**6) == "not_found"
        assert (await house.operator.call("account_close", {"user_id": bob.user_id}))["status"] == "closed"


@pytest.mark.parametrize("method", ["account_freeze", "account_unfreeze", "account_close"])
async def test_malformed_parameters_are_named(database: Database, method: str) -> None:
    async with open_house(database) as house:
        cases: list[tuple[Any, list[str]]] = [
            ({"account_id": 0}, ["/account_id"]),
            ({"account_id": "1"}, ["/account_id"]),
            ({"account_id": 1, "user_id": 1}, ["/user_id"]),
            ({"user_id": 2**63}, ["/user_id"]),
            ({"account_id": 1, "currency": "usd"}, ["/currency"]),
            ({"account_id": 1, "transaction_id": "1"}, ["/transaction_id"]),
            ({"account_id": 1, "reason": "x" * 256}, ["/reason"]),
            ({"account_id": 1, "reason": None}, ["/reason"]),
            ({"account_id": 1, "metadata": {}}, ["/metadata"]),
            ([1], [""]),
            ({}, ["/account_id"]),
        ]
        for params, pointers in cases:
            refused = await house.operator.refused(method, params)
            assert refused["data"]["code"] == "invalid_params", params
            assert sorted(error["pointer"] for error in refused["data"]["errors"]) == pointers, params
