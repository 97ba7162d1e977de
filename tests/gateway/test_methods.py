"""Reads, pages."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio

from ledgerd.engine.commands import ActorInfo
from ledgerd.engine.states import AttemptState
from ledgerd_protocol.errors import ErrorCode
from tests.gateway.fake_books import NOW, record, side
from tests.gateway.fakes import open_door

MINE, OTHERS = 11, 12
TRANSACTION_ID = "01890000-0000-7000-8000-000000000000"


def rows(number: int, reference: str | None = None) -> list[Any]:
    return [
        record(f"01890000-0000-7000-8000-{version:012}", [side(MINE, 1, version=version)], reference=reference)
        for version in range(1, number + 1)
    ]


# -- balances ---------------------------------------------------------------------------------------------------------


async def test_a_balance_is_given_now_at_a_time_and_after_a_version() -> None:
    async with open_door() as door:
        client = await door.user(1)
        assert (await client.call("balance_get"))["version"] == 0
        at = await client.call("balance_get", {"at": "2026-11-20T13:30:00+01:30"})
        assert at["as_of"] == "2026-11-20T12:00:00.000000Z"
        assert (await client.refused("balance_get", {"version": 5}))["data"]["resource"] == "balance"
        assert (await client.refused("balance_get", {"at": NOW, "version": 1}))["code"] == -32602


@pytest.mark.parametrize(
    "at", ["2026-11-20T12:00:00", "2026-02-30T12:00:00Z", "0001-01-01T00:00:00+10:00", "2026-11-20"]
)
async def test_a_time_without_an_offset_or_that_does_not_exist_is_refused(at: str) -> None:
    async with open_door() as door:
        error = await (await door.user(1)).refused("balance_get", {"at": at})
        assert [problem["pointer"] for problem in error["data"]["errors"]] == ["/at"]


async def test_a_wanted_version_is_waited_for(autojump_clock: Any) -> None:
    async with open_door(min_version_wait_s=2) as door:
        client = await door.user(1)
        number = await client.ask("balance_get", {"min_version": 3})
        await trio.sleep(1)
        door.books.states[MINE] = msgspec.structs.replace(door.books.states[MINE], version=4)
        reply = await client.receive()
        assert (reply["id"], reply["result"]["version"]) == (number, 4)


async def test_waiting_for_a_version_ends_with_a_timeout(autojump_clock: Any) -> None:
    async with open_door(min_version_wait_s=2) as door:
        client = await door.user(1)
        started = trio.current_time()
        error = await client.refused("balance_get", {"min_version": 3})
        assert (error["code"], error["data"]["applied"]) == (8005, False)
        assert 2 <= trio.current_time() - started <= 2.5


async def test_a_currency_that_is_not_the_accounts_is_refused() -> None:
    async with open_door() as door:
        client = await door.user(1)
        assert (await client.refused("account_get", {"account_id": MINE, "currency": "EUR"}))["code"] == 3002
        assert (await client.call("account_get", {"user_id": 1, "currency": "EUR"}))["account_id"] == 13


async def test_an_account_is_opened_only_in_a_currency_that_exists() -> None:
    async with open_door(currencies={"POINTS": 0}) as door:
        client = await door.user(1)
        error = await client.refused("account_open", {"currency": "ABC"})
        assert [problem["pointer"] for problem in error["data"]["errors"]] == ["/currency"]
        for currency in ("POINTS", "JPY", "USD"):
            assert (await client.call("account_open", {"currency": currency}))["currency"] == currency


async def test_reads_are_unavailable_while_the_database_is_away() -> None:
    async with open_door() as door:
        client = await door.user(1)
        door.books.away = True
        for method in ("account_get", "balance_get", "account_list", "user_get", "system_info", "transaction_list"):
            error = await client.refused(method)
            assert (error["data"]["code"], error["data"]["retryable"]) == ("unavailable", True)


# -- transactions -----------------------------------------------------------------------------------------------------


async def test_a_transaction_shows_only_the_sides_that_are_the_callers() -> None:
    async with open_door() as door:
        both = [side(MINE, 1, "debit"), side(OTHERS, 2, "credit")]
        door.books.records[TRANSACTION_ID] = record(TRANSACTION_ID, both)
        params = {"transaction_id": TRANSACTION_ID}
        mine = await (await door.user(1, "read")).call("transaction_get", params)
        assert [entry["account_id"] for entry in mine["entries"]] == [MINE]
        assert "actor" not in mine
        everything = await (await door.client(door.books.token("operator"))).call("transaction_get", params)
        assert len(everything["entries"]) == 2
        assert everything["actor"]["token_id"] == 1


async def test_a_transaction_of_others_looks_like_none() -> None:
    async with open_door() as door:
        door.books.records[TRANSACTION_ID] = record(TRANSACTION_ID, [side(OTHERS, 2)])
        client = await door.user(1)
        strange = await client.refused("transaction_get", {"transaction_id": TRANSACTION_ID})
        absent = await client.refused("transaction_get", {"transaction_id": TRANSACTION_ID[:-1] + "9"})
        assert strange == absent
        assert strange["data"]["resource"] == "transaction"


async def test_a_tombstone_is_seen_by_the_owner_of_its_account_only() -> None:
    async with open_door() as door:
        door.books.records[TRANSACTION_ID] = record(
            TRANSACTION_ID, [], status="cancelled", debit_account=MINE, actor=ActorInfo(99, None, ("service",))
        )
        params = {"transaction_id": TRANSACTION_ID}
        assert (await (await door.user(1)).call("transaction_get", params))["status"] == "cancelled"
        assert (await (await door.user(2)).refused("transaction_get", params))["code"] == 2001


async def test_attempts_are_shown_when_asked_for_posted_or_not() -> None:
    async with open_door() as door:
        client = await door.user(1)
        door.books.attempted = [AttemptState("a1", ErrorCode.INSUFFICIENT_FUNDS, NOW)]
        params = {"transaction_id": TRANSACTION_ID, "attempts": True}
        shown = [{"attempt_id": "a1", "reason": "insufficient_funds", "created_at": NOW}]
        assert (await client.refused("transaction_get", params))["data"]["attempts"] == shown
        door.books.records[TRANSACTION_ID] = record(TRANSACTION_ID, [side(MINE, 1)])
        assert (await client.call("transaction_get", params))["attempts"] == shown


# -- pages ------------------------------------------------------------------------------------------------------------


async def read_all(client: Any, method: str, params: dict[str, Any]) -> list[Any]:
    items: list[Any] = []
    cursor: dict[str, Any] = {}
    while True:
        page = await client.call(method, {**params, **cursor})
        items += page["items"]
        if page["next_cursor"] is None:
            return items
        cursor = {"cursor": page["next_cursor"]}


@pytest.mark.parametrize("order", ["newest_first", "oldest_first"])
@pytest.mark.parametrize("limit", [1, 7, 20, 21, 1000])
async def test_pages_put_together_are_the_whole_list(order: str, limit: int) -> None:
    async with open_door() as door:
        door.books.listed = rows(20)
        items = await read_all(await door.user(1), "transaction_list", {"order": order, "limit": limit})
        versions = [item["entries"][0]["version"] for item in items]
        assert versions == sorted(range(1, 21), reverse=order == "newest_first")


async def test_a_page_ends_early_rather_than_exceed_a_frame() -> None:
    async with open_door(frame_out_bytes_max=5_000) as door:
        door.books.listed = rows(50, reference="é" * 250)
        client = await door.user(1)
        await client.ask("transaction_list", {"limit": 50})
        text = await client.connection.get_message()
        assert isinstance(text, str)
        assert len(text.encode()) <= 5_000
        assert len(await read_all(client, "transaction_list", {"limit": 50})) == 50


async def test_an_item_that_fits_in_no_page_is_an_error_and_not_an_endless_list() -> None:
    async with open_door(frame_out_bytes_max=1_200) as door:
        door.books.listed = rows(3, reference="x" * 250)
        assert (await (await door.user(1)).refused("transaction_list"))["code"] == 8003


async def test_new_transactions_do_not_appear_while_paging_newest_first() -> None:
    async with open_door() as door:
        door.books.listed = rows(10)
        client = await door.user(1)
        first = await client.call("transaction_list", {"limit": 5})
        door.books.listed = rows(15)
        second = await client.call("transaction_list", {"limit": 100, "cursor": first["next_cursor"]})
        assert [item["entries"][0]["version"] for item in second["items"]] == [5, 4, 3, 2, 1]
        assert second["as_of"] == first["as_of"]


async def test_a_cursor_is_good_only_for_its_list_and_its_filters() -> None:
    async with open_door() as door:
        door.books.listed = rows(10)
        client = await door.user(1)
        cursor = (await client.call("transaction_list", {"limit": 5}))["next_cursor"]
        accounts = (await client.call("account_list", {"limit": 1}))["next_cursor"]
        assert cursor
        assert accounts
        broken = cursor[:-2] + ("AA" if cursor[-2:] != "AA" else "BB")
        for params in (
            {"cursor": cursor, "order": "oldest_first"},
            {"cursor": cursor, "kind": "debit"},
            {"cursor": cursor, "account_id": 13},
            {"cursor": accounts},
            {"cursor": broken},
            {"cursor": "!!!"},
            {"cursor": ""},
            {"cursor": "é"},
        ):
            assert (await client.refused("transaction_list", params))["code"] == 2010, params
        other = await door.user(2)
        assert (await other.refused("account_list", {"cursor": accounts}))["code"] == 2010
        assert (await client.refused("token_list", {"cursor": accounts}))["code"] == 2010
        await client.call("transaction_list", {"cursor": cursor, "limit": 2})


async def test_a_cursor_is_taken_by_another_daemon_on_the_same_database() -> None:
    async with open_door() as one, open_door() as two:
        one.books.listed = two.books.listed = rows(10)
        cursor = (await (await one.user(1)).call("transaction_list", {"limit": 5}))["next_cursor"]
        page = await (await two.user(1)).call("transaction_list", {"cursor": cursor})
        assert len(page["items"]) == 5


async def test_lists_of_tokens_skip_what_is_not_the_callers_without_ending_early() -> None:
    async with open_door() as door:
        for number in range(10):
            door.books.token("user", user_id=1, account_id=MINE if number % 2 else None)
        client = await door.client(door.books.token("user", user_id=1, account_id=MINE))
        items = await read_all(client, "token_list", {"limit": 2})
        assert len(items) == 6
        assert {item["account_id"] for item in items} == {MINE}


# -- subscriptions ----------------------------------------------------------------------------------------------------


async def test_subscriptions_are_limited_in_number_and_in_accounts() -> None:
    async with open_door(subscriptions_per_connection_max=2, accounts_per_subscription_max=1) as door:
        client = await door.user(2)
        for _ in range(2):
            await client.call("ledger_subscribe", {"channel": "balances"})
            await client.receive()
        assert (await client.refused("ledger_subscribe", {"channel": "balances"}))["code"] == 7002
        two = {"channel": "balances", "options": {"account_ids": [11, 13]}}
        assert (await (await door.user(1)).refused("ledger_subscribe", two))["code"] == 7002
        assert (await (await door.user(1)).refused("ledger_subscribe", {"channel": "balances"}))["code"] == 7002


async def test_only_one_way_to_choose_accounts_and_latest_only_for_balances() -> None:
    async with open_door() as door:
        client = await door.user(1)
        both = {"channel": "balances", "options": {"account_ids": [MINE], "user_id": 1}}
        latest = {"channel": "transactions", "options": {"mode": "latest"}}
        for params in (both, latest):
            assert (await client.refused("ledger_subscribe", params))["code"] == -32602


async def test_a_subscription_that_the_daemon_ended_is_not_found_and_makes_room() -> None:
    async with open_door(subscriptions_per_connection_max=1) as door:
        client = await door.user(1)
        await client.call("ledger_subscribe", {"channel": "balances"})
        await client.receive()
        door.hub.made[0].closed = True
        assert (await client.refused("ledger_unsubscribe", {"subscription": "sub_1"}))["code"] == 7001
        assert await client.call("ledger_subscribe", {"channel": "balances"}) == "sub_2"
        await client.receive()
        door.hub.made[1].closed = True
        assert await client.call("ledger_subscribe", {"channel": "balances"}) == "sub_3"
