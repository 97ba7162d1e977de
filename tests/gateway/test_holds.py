"""Holds over the wire: placed, captured, released, expired; what each does to the account, and who may."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid5

import pytest
import trio

from tests.conftest import Database
from tests.gateway.fakes import Client
from tests.gateway.house import House, Person, events_until, follow, fresh_id, open_house, until, updates

NEVER_S = 3600.0
"""An interval so long that no expiry is recorded by itself."""


def codes(replies: list[Any]) -> list[str | None]:
    """The stable string of each reply's error, None for results."""
    return [reply["error"]["data"]["code"] if "error" in reply else None for reply in replies]


async def hold(client: Client, amount: str = "10.00", **params: Any) -> str:
    """Place a hold; its id."""
    placed = await client.call("hold_place", {"amount": amount, **params})
    return str(placed["transaction_id"])


async def status(house: House, hold_id: str) -> str:
    return str((await house.operator.call("transaction_get", {"transaction_id": hold_id}))["status"])


# -- the life of a hold ------------------------------------------------------------------------------------------------


async def test_a_hold_lowers_what_is_available_and_leaves_the_balance(database: Database) -> None:
    async with open_house(database) as house:
        ada = await house.person("100.00")
        placed = await ada.client.call("hold_place", {"amount": "30.00", "reference": "room 5", "expires_in_s": 60})
        assert (placed["kind"], placed["status"], placed["amount"]) == ("hold", "pending", "30.00")
        assert placed["hold_id"] == placed["transaction_id"]
        assert (placed["debit_account_id"], placed["credit_account_id"]) == (ada.account_id, None)
        (entry,) = placed["entries"]
        assert (entry["balance_change"], entry["held_change"], entry["version"]) == ("0.00", "30.00", 2)
        assert (entry["balance"], entry["held"], entry["available"]) == ("100.00", "30.00", "70.00")
        assert placed["created_at"] < placed["expires_at"]
        assert await house.money(ada) == ("100.00", "30.00", "70.00")
        refused = await ada.client.refused("debit", {"amount": "70.01"})
        assert (refused["data"]["code"], refused["data"]["available"]) == ("insufficient_funds", "70.00")
        refused = await ada.client.refused("hold_place", {"amount": "70.01"})
        assert refused["data"]["code"] == "insufficient_funds"


async def test_a_captured_hold_is_one_version_in_which_the_part_leaves_and_the_rest_is_free(database: Database) -> None:
    async with open_house(database) as house:
        ada = await house.person("100.00")
        hold_id = await hold(ada.client, "30.00")
        captured = await house.service.call("hold_capture", {"hold_id": hold_id, "amount": "12.50"})
        assert (captured["kind"], captured["status"], captured["amount"]) == ("capture", "posted", "12.50")
        assert captured["hold_id"] == hold_id
        (entry,) = captured["entries"]
        assert (entry["balance_change"], entry["held_change"], entry["version"]) == ("-12.50", "-30.00", 3)
        assert await house.money(ada) == ("87.50", "0.00", "87.50")
        assert await status(house, hold_id) == "captured"


async def test_a_capture_without_an_amount_takes_all(database: Database) -> None:
    async with open_house(database) as house:
        ada = await house.person("100.00")
        captured = await house.service.call("hold_capture", {"hold_id": await hold(ada.client, "30.00")})
        assert captured["amount"] == "30.00"
        assert await house.money(ada) == ("70.00", "0.00", "70.00")


async def test_money_held_for_a_destination_arrives_there_with_the_capture(database: Database) -> None:
    async with open_house(database) as house:
        ada, bob = await house.person("100.00"), await house.person()
        placed = await ada.client.call("hold_place", {"amount": "30.00", "destination_account_id": bob.account_id})
        assert placed["credit_account_id"] == bob.account_id
        assert (await house.account(bob))["version"] == 0, "the far side of a hold takes no version"
        captured = await house.service.call("hold_capture", {"hold_id": placed["hold_id"], "amount": "25"})
        assert [(entry["account_id"], entry["balance_change"]) for entry in captured["entries"]] == [
            (ada.account_id, "-25.00"),
            (bob.account_id, "25.00"),
        ]
        assert await house.money(ada) == ("75.00", "0.00", "75.00")
        assert await house.money(bob) == ("25.00", "0.00", "25.00")
        seen = await bob.client.call("transaction_get", {"transaction_id": captured["transaction_id"]})
        assert [entry["account_id"] for entry in seen["entries"]] == [bob.account_id]


async def test_a_released_hold_frees_the_money(database: Database) -> None:
    async with open_house(database) as house:
        ada = await house.person("100.00")
        hold_id = await hold(ada.client, "30.00")
        released = await ada.client.call("hold_release", {"hold_id": hold_id, "reason": "not needed"})
        assert (released["kind"], released["status"], released["hold_id"]) == ("release", "posted", hold_id)
        assert [(entry["balance_change"], entry["held_change"]) for entry in released["entries"]] == [
            ("0.00", "-30.00")
        ]
        assert await house.money(ada) == ("100.00", "0.00", "100.00")
        assert await status(house, hold_id) == "released"


async def test_a_hold_is_ended_once_and_the_same_id_is_answered_again(database: Database) -> None:
    async with open_house(database) as house:
        ada = await house.person("100.00")
        hold_id = await hold(ada.client, "30.00")
        capture = {"transaction_id": fresh_id(), "hold_id": hold_id}
        first = await house.service.call("hold_capture", capture)
        assert await house.service.call("hold_capture", capture) == {**first, "replayed": True}
        other = await house.service.refused("hold_capture", {"hold_id": hold_id})
        assert (other["code"], other["data"]["code"], other["data"]["retryable"]) == (3009, "hold_not_active", False)
        late = await ada.client.refused("hold_release", {"hold_id": hold_id})
        assert late["data"]["code"] == "hold_not_active"
        reused = await house.service.refused("hold_capture", {**capture, "amount": "30.00"})
        assert reused["data"]["mismatch"] == ["amount"], "all there was is not an amount"
        other_hold = await hold(ada.client)
        reused = await house.service.refused("hold_capture", {**capture, "hold_id": other_hold})
        assert (reused["data"]["code"], reused["data"]["mismatch"]) == ("transaction_id_reused", ["hold_id"])
        assert await house.money(ada) == ("70.00", "10.00", "60.00")


async def test_placing_again_with_the_same_id_replays_and_with_another_lifetime_does_not(database: Database) -> None:
    async with open_house(database) as house:
        ada = await house.person("100.00")
        place = {"transaction_id": fresh_id(), "amount": "30.00"}
        first = await ada.client.call("hold_place", place)
        assert await ada.client.call("hold_place", {**place, "expires_in_s": 604_800}) == {**first, "replayed": True}
        reused = await ada.client.refused("hold_place", {**place, "expires_in_s": 60})
        assert reused["data"]["mismatch"] == ["expires_in_s"]
        await house.service.call("hold_capture", {"hold_id": place["transaction_id"]})
        assert await ada.client.call("hold_place", place) == {**first, "replayed": True}, "as it was then: pending"


async def test_more_than_is_held_cannot_be_captured(database: Database) -> None:
    async with open_house(database) as house:
        ada = await house.person("100.00")
        hold_id = await hold(ada.client, "30.00")
        refused = await house.service.refused("hold_capture", {"hold_id": hold_id, "amount": "30.01"})
        assert (refused["data"]["code"], refused["data"]["remaining"]) == ("amount_out_of_range", "30.00")
        assert await house.money(ada) == ("100.00", "30.00", "70.00")


async def test_the_amount_of_a_capture_is_read_in_the_currency_of_the_hold(database: Database) -> None:
    async with open_house(database) as house:
        ken = await house.person("900", currency="JPY")
        hold_id = await hold(ken.client, "500", currency="JPY")
        refused = await house.service.refused("hold_capture", {"hold_id": hold_id, "amount": "5.00"})
        assert refused["data"]["code"] == "amount_precision"
        refused = await house.service.refused("hold_capture", {"hold_id": hold_id, "amount": "0"})
        assert refused["data"]["code"] == "amount_out_of_range"
        captured = await house.service.call("hold_capture", {"hold_id": hold_id, "amount": "5"})
        assert (captured["amount"], captured["currency"]) == ("5", "JPY")


async def test_the_destination_must_be_able_to_receive(database: Database) -> None:
    async with open_house(database) as house:
        ada, eva = await house.person("100.00"), await house.person(currency="EUR")
        place = {"account_id": ada.account_id, "amount": "1.00"}
        cases = [(ada.account_id, "same_account"), (eva.account_id, "currency_mismatch"), (10**6, "not_found")]
        for destination, code in cases:
            refused = await house.service.refused("hold_place", {**place, "destination_account_id": destination})
            assert refused["data"]["code"] == code
        for destination in (eva.account_id, 10**6):
            refused = await ada.client.refused("hold_place", {**place, "destination_account_id": destination})
            assert (refused["data"]["code"], refused["data"]["resource"]) == ("not_found", "destination")
        assert (await house.account(ada))["version"] == 1


# -- who may -----------------------------------------------------------------------------------------------------------


async def test_only_services_capture_alone_or_in_a_batch(database: Database) -> None:
    async with open_house(database) as house:
        ada = await house.person("100.00")
        hold_id = await hold(ada.client)
        refused = await ada.client.refused("hold_capture", {"hold_id": hold_id})
        assert refused["data"]["code"] == "permission_denied"
        item = {"method": "hold_capture", "params": {"transaction_id": fresh_id(), "hold_id": hold_id}}
        (outcome,) = (await ada.client.call("transaction_batch", {"items": [item]}))["outcomes"]
        assert outcome["error"]["data"]["code"] == "permission_denied"
        assert await status(house, hold_id) == "pending"


async def test_a_user_releases_only_what_it_placed_itself(database: Database) -> None:
    async with open_house(database) as house:
        ada = await house.person("100.00")
        of_the_house = await hold(house.service, account_id=ada.account_id)
        refused = await ada.client.refused("hold_release", {"hold_id": of_the_house})
        assert refused["data"]["code"] == "permission_denied"
        by_another_token = await house.client("user", user_id=ada.user_id)
        assert await by_another_token.call("hold_release", {"hold_id": await hold(ada.client)})
        assert await house.service.call("hold_release", {"hold_id": of_the_house})


async def test_to_a_stranger_a_hold_is_one_that_does_not_exist(database: Database) -> None:
    async with open_house(database) as house:
        ada, eve = await house.person("100.00"), await house.person("100.00")
        answers = []
        for hold_id in (await hold(ada.client), fresh_id()):
            refused = await eve.client.refused("hold_release", {"transaction_id": fresh_id(), "hold_id": hold_id})
            data = refused["data"]
            answers.append({name: data[name] for name in data.keys() - {"transaction_id", "attempt_id", "created_at"}})
            assert refused["code"] == 3008
        assert answers[0] == answers[1]
        limited = await house.client("service", user_id=eve.user_id, account_id=eve.account_id)
        refused = await limited.refused("hold_capture", {"hold_id": await hold(ada.client), "amount": "1.00"})
        assert refused["data"]["code"] == "reference_not_found"
        assert (await house.account(ada))["held"] == "20.00"


async def test_a_strangers_release_with_an_id_of_its_own_past_is_told_of_that(database: Database) -> None:
    async with open_house(database) as house:
        ada, eve = await house.person("100.00"), await house.person("100.00")
        paid = await eve.client.call("debit", {"amount": "1.00"})
        refused = await eve.client.refused(
            "hold_release", {"transaction_id": paid["transaction_id"], "hold_id": await hold(ada.client)}
        )
        assert refused["data"]["code"] == "transaction_id_reused"


@pytest.mark.parametrize("amount", [None, "1.00"])
async def test_an_unknown_hold_is_not_found_with_or_without_an_amount(database: Database, amount: str | None) -> None:
    async with open_house(database) as house:
        part = {} if amount is None else {"amount": amount}
        refused = await house.service.refused("hold_capture", {"hold_id": fresh_id(), **part})
        assert (refused["data"]["code"], refused["data"]["retryable"]) == ("reference_not_found", True)


async def test_what_is_no_hold_is_not_one(database: Database) -> None:
    async with open_house(database) as house:
        ada = await house.person("100.00")
        paid = await ada.client.call("debit", {"amount": "1.00"})
        for method in ("hold_capture", "hold_release"):
            refused = await house.service.refused(method, {"hold_id": paid["transaction_id"]})
            assert refused["data"]["code"] == "reference_not_found"
        tombstone = fresh_id()
        await ada.client.call("transaction_cancel", {"transaction_id": tombstone})
        refused = await house.service.refused("hold_capture", {"hold_id": tombstone})
        assert refused["data"]["code"] == "reference_not_found"


# -- sent without waiting ----------------------------------------------------------------------------------------------


async def test_a_hold_and_its_capture_sent_without_waiting_find_each_other(database: Database) -> None:
    async with open_house(database) as house:
        people = [await house.person("100.00") for _ in range(5)]
        holds = [fresh_id() for _ in people]
        for hold_id, person in zip(holds, people, strict=True):
            place = {"transaction_id": hold_id, "account_id": person.account_id, "amount": "10.00"}
            await house.service.ask("hold_place", place)
            await house.service.ask("hold_capture", {"hold_id": hold_id, "amount": "4.00"})
        assert codes([await house.service.receive() for _ in range(10)]) == [None] * 10
        for person in people:
            assert await house.money(person) == ("96.00", "0.00", "96.00")


async def test_a_user_may_place_and_release_without_waiting(database: Database) -> None:
    async with open_house(database) as house:
        ada = await house.person("100.00")
        fresh_token = await house.client("user", user_id=ada.user_id)
        hold_id = fresh_id()
        await fresh_token.ask("hold_place", {"transaction_id": hold_id, "amount": "10.00"})
        await fresh_token.ask("hold_release", {"hold_id": hold_id})
        assert codes([await fresh_token.receive() for _ in range(2)]) == [None, None]
        assert await house.money(ada) == ("100.00", "0.00", "100.00")


async def test_members_of_one_json_rpc_batch_find_each_other(database: Database) -> None:
    async with open_house(database) as house:
        ada = await house.person("100.00")
        hold_id, capture_id = fresh_id(), fresh_id()
        calls = [
            ("hold_place", {"transaction_id": hold_id, "account_id": ada.account_id, "amount": "10.00"}),
            ("hold_capture", {"transaction_id": capture_id, "hold_id": hold_id, "amount": "4.00"}),
            ("transaction_reverse", {"original_transaction_id": capture_id, "amount": "1.00"}),
            ("hold_release", {"hold_id": hold_id}),
        ]
        await house.service.send(
            [
                {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
                for number, (method, params) in enumerate(calls)
            ]
        )
        assert codes(await house.service.receive()) == [None, None, None, "hold_not_active"]
        assert await house.money(ada) == ("97.00", "0.00", "97.00")


async def test_an_atomic_batch_of_a_hold_and_its_capture_is_all_or_nothing(database: Database) -> None:
    async with open_house(database) as house:
        ada = await house.person("100.00")
        hold_id = fresh_id()
        place = {"transaction_id": hold_id, "account_id": ada.account_id, "amount": "10.00"}

        def batch(part: str) -> dict[str, Any]:
            return {
                "atomic": True,
                "batch_id": fresh_id(),
                "items": [
                    {"method": "hold_place", "params": place},
                    {"method": "hold_capture", "params": {"hold_id": hold_id, "amount": part}},
                ],
            }

        refused = await house.service.refused("transaction_batch", batch("10.01"))
        assert (refused["data"]["code"], refused["data"]["index"]) == ("amount_out_of_range", 1)
        assert (await house.account(ada))["version"] == 1
        done = await house.service.call("transaction_batch", batch("4.00"))
        assert [outcome["result"]["kind"] for outcome in done["outcomes"]] == ["hold", "capture"]
        assert await house.money(ada) == ("96.00", "0.00", "96.00")


async def test_a_thousand_holds_and_captures_at_once_never_hold_more_than_there_is(database: Database) -> None:
    async with open_house(database, user_inbox_max=4_000) as house:
        ada = await house.person("5.00")
        results: list[str | None] = []

        async def work(client: Client) -> None:
            for _ in range(25):
                hold_id = fresh_id()
                place = {"transaction_id": hold_id, "account_id": ada.account_id, "amount": "0.01"}
                await client.ask("hold_place", place)
                await client.ask("hold_capture", {"hold_id": hold_id})
            for _ in range(50):
                results.extend(codes([await client.receive()]))

        clients = [await house.client("service") for _ in range(40)]
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(work, client)
        assert results.count(None) == 1000, "500 cents: as many holds, and as many captures"
        assert sorted(set(results) - {None}, key=str) == ["insufficient_funds", "reference_not_found"]
        account = await house.account(ada)
        assert (account["balance"], account["held"], account["version"]) == ("0.00", "0.00", 1001)


# -- time --------------------------------------------------------------------------------------------------------------


async def test_a_hold_whose_time_is_over_expires_by_itself_with_a_version_and_a_push(database: Database) -> None:
    async with open_house(database, expiry_interval_s=0.05) as house:
        ada = await house.person("100.00")
        await follow(ada.client, ada.account_id)
        second = await house.client("user", user_id=ada.user_id)
        hold_id = await hold(second, "30.00", expires_in_s=60)
        lasting = await hold(second, "5.00", expires_in_s=3600)
        await house.advance_clock(61)
        *_, expired = await updates(ada.client, 3)
        assert (expired["kind"], expired["held_change"], expired["held"]) == ("expiry", "-30.00", "5.00")
        assert (expired["balance"], expired["available"], expired["version"]) == ("100.00", "95.00", 4)
        assert await status(house, hold_id) == "expired"
        assert await status(house, lasting) == "pending"
        record = await house.operator.call("transaction_get", {"transaction_id": expired["transaction_id"]})
        assert (record["kind"], record["hold_id"], record["actor"]["token_id"]) == ("expiry", hold_id, 0)
        for method in ("hold_capture", "hold_release"):
            refused = await house.service.refused(method, {"hold_id": hold_id})
            assert refused["data"]["code"] == "hold_not_active"


async def test_nobody_keeps_a_hold_for_ever_by_taking_the_id_of_its_expiry(database: Database) -> None:
    async with open_house(database, expiry_interval_s=0.05) as house:
        ada = await house.person("100.00")
        mallory = await house.person("1.00")
        posted, cancelled = await hold(ada.client, "30.00", expires_in_s=60), await hold(ada.client, expires_in_s=60)
        await mallory.client.call("debit", {"amount": "1.00", "transaction_id": str(uuid5(UUID(posted), "expiry"))})
        await mallory.client.call("transaction_cancel", {"transaction_id": str(uuid5(UUID(cancelled), "expiry"))})
        await house.advance_clock(61)

        async def free() -> bool:
            return bool((await ada.client.call("balance_get"))["held"] == "0.00")

        await until(free)
        assert [await status(house, posted), await status(house, cancelled)] == ["expired", "expired"]


async def test_from_its_time_on_a_hold_is_not_active_whether_that_is_recorded_or_not(database: Database) -> None:
    async with open_house(database, expiry_interval_s=NEVER_S) as house:
        ada = await house.person("100.00")
        hold_id = await hold(ada.client, expires_in_s=60)
        await house.advance_clock(59)
        kept = await hold(ada.client, expires_in_s=60)
        await house.advance_clock(2)
        refused = await house.service.refused("hold_capture", {"hold_id": hold_id})
        assert refused["data"]["code"] == "hold_not_active"
        refused = await ada.client.refused("hold_release", {"hold_id": hold_id})
        assert refused["data"]["code"] == "hold_not_active"
        assert await status(house, hold_id) == "pending"
        assert await house.service.call("hold_capture", {"hold_id": kept})


async def test_two_daemons_expire_a_hold_once(database: Database) -> None:
    async with open_house(database, expiry_interval_s=0.01) as one, open_house(database, expiry_interval_s=0.01) as two:
        people = [await one.person("100.00") for _ in range(10)]
        for person in people:
            for _ in range(5):
                await hold(one.service, "1.00", account_id=person.account_id, expires_in_s=60)
        await one.advance_clock(61)

        async def free() -> bool:
            return {(await two.account(person))["held"] for person in people} == {"0.00"}

        await until(free)
        for person in people:
            account = await one.account(person)
            assert (account["version"], account["available"]) == (11, "100.00")
        assert await one.owner("SELECT FROM ledgerd.attempts") == []


# -- the feed ----------------------------------------------------------------------------------------------------------


async def life(house: House, person: Person) -> None:
    """Six versions: 2 to 7."""
    captured, released = await hold(person.client, "30.00"), await hold(person.client, "20.00")
    await house.service.call("hold_capture", {"hold_id": captured, "amount": "10.00"})
    await person.client.call("hold_release", {"hold_id": released})
    await house.service.call("credit", {"account_id": person.account_id, "amount": 1})
    await hold(person.client, "5.00")


LIFE = [
    # kind, balance_change, held_change, balance, held
    ("hold", "0.00", "30.00", "100.00", "30.00"),
    ("hold", "0.00", "20.00", "100.00", "50.00"),
    ("capture", "-10.00", "-30.00", "90.00", "20.00"),
    ("release", "0.00", "-20.00", "90.00", "0.00"),
    ("credit", "1.00", "0.00", "91.00", "0.00"),
    ("hold", "0.00", "5.00", "91.00", "5.00"),
]


def told(event: Any) -> tuple[Any, ...]:
    return tuple(event[name] for name in ("kind", "balance_change", "held_change", "balance", "held"))


async def test_every_step_of_a_hold_is_pushed_with_its_changes(database: Database) -> None:
    async with open_house(database) as house:
        ada = await house.person("100.00")
        follower = await house.client("read", user_id=ada.user_id)
        await follow(follower, ada.account_id)
        await life(house, ada)
        pushed = await updates(follower, 6)
        assert [told(event) for event in pushed] == LIFE
        assert [event["version"] for event in pushed] == [2, 3, 4, 5, 6, 7]


async def test_a_resumed_feed_replays_what_holds_did(database: Database) -> None:
    async with open_house(database) as house:
        ada = await house.person("100.00")
        (start, _) = await follow(ada.client, ada.account_id)
        second = Person(ada.user_id, ada.account_id, await house.client("user", user_id=ada.user_id))
        await life(house, second)
        third = await house.client("read", user_id=ada.user_id)
        since = {"epoch": start["epoch"], "versions": {str(ada.account_id): 1}}
        begin, *replayed, live = await follow(third, ada.account_id, since=since)
        assert begin["accounts"][0]["from"] == "resumed"
        assert [told(event) for event in replayed] == LIFE
        assert live["type"] == "live"
        assert replayed == await updates(ada.client, 6), "replayed or pushed, it is the same event"


async def test_a_snapshot_and_the_latest_balance_have_what_is_held(database: Database) -> None:
    async with open_house(database) as house:
        ada = await house.person("100.00")
        hold_id = await hold(ada.client, "30.00")
        follower = await house.client("read", user_id=ada.user_id)
        start, _ = await follow(follower, ada.account_id, mode="latest")
        (account,) = start["accounts"]
        assert (account["balance"], account["held"], account["available"]) == ("100.00", "30.00", "70.00")
        await house.service.call("hold_capture", {"hold_id": hold_id, "amount": "1.00"})
        (event,) = await updates(follower, 1)
        assert (event["balance"], event["held"], event["held_change"]) == ("99.00", "0.00", "-30.00")


async def test_a_destination_follows_captures_and_not_holds(database: Database) -> None:
    async with open_house(database) as house:
        ada, bob = await house.person("100.00"), await house.person()
        channel = {"channel": "transactions", "options": {"account_ids": [bob.account_id]}}
        follower = await house.client("read", user_id=bob.user_id)
        await follower.call("ledger_subscribe", channel)
        await events_until(follower, lambda event: event["type"] == "live")
        hold_id = await hold(ada.client, destination_account_id=bob.account_id)
        await house.service.call("hold_capture", {"hold_id": hold_id})
        (event,) = await updates(follower, 1)
        assert (event["transaction"]["kind"], event["transaction"]["hold_id"]) == ("capture", hold_id)
        assert [entry["account_id"] for entry in event["transaction"]["entries"]] == [bob.account_id]


async def test_the_list_of_transactions_shows_what_became_of_a_hold(database: Database) -> None:
    async with open_house(database) as house:
        ada = await house.person("100.00")
        await life(house, ada)
        page = await ada.client.call("transaction_list", {"order": "oldest_first"})
        assert [(item["kind"], item["status"]) for item in page["items"]] == [
            ("credit", "posted"),
            ("hold", "captured"),
            ("hold", "released"),
            ("capture", "posted"),
            ("release", "posted"),
            ("credit", "posted"),
            ("hold", "pending"),
        ]


# -- what is refused ---------------------------------------------------------------------------------------------------

HOLD_ID = "01999999-0000-7000-8000-000000000001"
MALFORMED: list[tuple[str, Any, list[str]]] = [
    ("hold_place", {}, ["/amount"]),
    ("hold_place", {"amount": "1", "expires_in_s": 59}, ["/expires_in_s"]),
    ("hold_place", {"amount": "1", "expires_in_s": 2_678_401}, ["/expires_in_s"]),
    ("hold_place", {"amount": "1", "expires_in_s": -1}, ["/expires_in_s"]),
    ("hold_place", {"amount": "1", "expires_in_s": 60.5}, ["/expires_in_s"]),
    ("hold_place", {"amount": "1", "expires_in_s": "60"}, ["/expires_in_s"]),
    ("hold_place", {"amount": "1", "expires_in_s": True}, ["/expires_in_s"]),
    ("hold_place", {"amount": "1", "expires_in_s": None}, ["/expires_in_s"]),
    ("hold_place", {"amount": "1", "expires_in_s": 10**30}, ["/expires_in_s"]),
    ("hold_place", {"amount": "1", "destination_account_id": 0}, ["/destination_account_id"]),
    ("hold_place", {"amount": "1", "destination_account_id": 2**63}, ["/destination_account_id"]),
    ("hold_place", {"amount": "1", "destination_account_id": "7"}, ["/destination_account_id"]),
    ("hold_place", {"amount": "1e2", "account_id": 1, "user_id": 1}, ["/amount", "/user_id"]),
    ("hold_place", {"amount": "1", "reason": "x" * 256, "reference": "x" * 256}, ["/reason", "/reference"]),
    ("hold_place", {"amount": "1", "metadata": []}, ["/metadata"]),
    ("hold_place", {"amount": "1", "expires_in": 60}, ["/expires_in"]),
    ("hold_place", ["1"], [""]),
    ("hold_capture", {}, ["/hold_id"]),
    ("hold_capture", {"hold_id": HOLD_ID.upper().replace("0", "A")}, ["/hold_id"]),
    ("hold_capture", {"hold_id": 7}, ["/hold_id"]),
    ("hold_capture", {"hold_id": "00000000-0000-0000-0000-000000000000"}, ["/hold_id"]),
    ("hold_capture", {"hold_id": HOLD_ID, "amount": None}, ["/amount"]),
    ("hold_capture", {"hold_id": HOLD_ID, "amount": "NaN"}, ["/amount"]),
    ("hold_capture", {"hold_id": HOLD_ID, "account_id": 1}, ["/account_id"]),
    ("hold_capture", {"hold_id": HOLD_ID, "transaction_id": "x"}, ["/transaction_id"]),
    ("hold_release", {}, ["/hold_id"]),
    ("hold_release", {"hold_id": HOLD_ID + "0"}, ["/hold_id"]),
    ("hold_release", {"hold_id": HOLD_ID, "amount": "1"}, ["/amount"]),
    ("hold_release", {"hold_id": HOLD_ID, "metadata": "x"}, ["/metadata"]),
    ("hold_release", {"hold_id": HOLD_ID, "reason": 1}, ["/reason"]),
    ("hold_release", [HOLD_ID], [""]),
]


async def test_malformed_parameters_are_named_and_nothing_happens(database: Database) -> None:
    async with open_house(database) as house:
        for method, params, pointers in MALFORMED:
            refused = await house.service.refused(method, params)
            assert refused["data"]["code"] == "invalid_params", (method, params)
            assert sorted(error["pointer"] for error in refused["data"]["errors"]) == pointers, (method, params)
        nobody = await house.service.refused("hold_place", {"amount": "1"})
        assert nobody["data"]["errors"][0]["pointer"] == "/account_id"


@pytest.mark.parametrize("expires_in_s", [60, 2_678_400])
async def test_a_lifetime_at_the_edge_of_its_range_is_taken(database: Database, expires_in_s: int) -> None:
    async with open_house(database) as house:
        ada = await house.person("100.00")
        assert await hold(ada.client, expires_in_s=expires_in_s)
        info = await ada.client.call("system_info")
        assert (info["limits"]["hold_expires_in_s_min"], info["limits"]["hold_expires_in_s_max"]) == (60, 2_678_400)
