"""Signing in, reads, pages."""

from __future__ import annotations

import base64
import time
from typing import Any

import msgspec
import pytest
import trio

from ledgerd.engine.ports import ActorInfo, AttemptState
from ledgerd.gateway.authentication import Passwords, Tokens, new_secret, secret_hash
from ledgerd.gateway.throttle import Throttle
from ledgerd_protocol.errors import ErrorCode, LedgerError
from tests.gateway.fake_books import NOW, FakeBooks, record, side
from tests.gateway.fakes import Door, open_door

MINE, OTHERS = 11, 12
PASSWORD = "correct horse battery"
TRANSACTION_ID = "01890000-0000-7000-8000-000000000000"


def rows(number: int, reference: str | None = None) -> list[Any]:
    return [
        record(f"01890000-0000-7000-8000-{version:012}", [side(MINE, 1, version=version)], reference=reference)
        for version in range(1, number + 1)
    ]


# -- tokens and passwords ---------------------------------------------------------------------------------------------


def test_a_secret_has_the_prefix_and_256_random_bits() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    for secret in secrets:
        assert secret.startswith("lgd_")
        assert len(base64.urlsafe_b64decode(secret.removeprefix("lgd_") + "=")) == 32


async def test_a_token_is_remembered_no_longer_than_the_refresh(autojump_clock: Any) -> None:
    books = FakeBooks()
    tokens = Tokens(books, refresh_s=2)  # type: ignore[arg-type]
    secret = books.token("read", user_id=1)
    first = await tokens.principal(secret)
    assert await tokens.principal(secret) == first
    assert books.reads == 1
    books.revoke(secret)
    assert await tokens.principal(secret) == first
    await trio.sleep(2)
    with pytest.raises(LedgerError) as caught:
        await tokens.principal(secret)
    assert caught.value.code is ErrorCode.SESSION_EXPIRED


async def test_text_that_cannot_be_a_secret_is_not_looked_up() -> None:
    books = FakeBooks()
    tokens = Tokens(books, refresh_s=2)  # type: ignore[arg-type]
    for text in ("", "lgd_", "lgd_" + "A" * 42, "xyz_" + "A" * 43, "lgd_" + "é" * 43, new_secret() + "\n"):
        with pytest.raises(LedgerError):
            await tokens.principal(text)
    assert books.reads == 0


async def test_a_password_matches_itself_and_nothing_matches_nobody() -> None:
    passwords = Passwords()
    stored = await passwords.hash(PASSWORD)
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert await passwords.matches(stored, PASSWORD)
    assert not await passwords.matches(stored, PASSWORD + "x")
    assert not await passwords.matches(None, PASSWORD)


async def test_an_unknown_user_costs_the_same_hash_as_a_wrong_password(monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[str] = []
    passwords = Passwords()
    real = passwords._verify

    def verify(stored: str, given: str) -> bool:
        verified.append(stored)
        return real(stored, given)

    monkeypatch.setattr(passwords, "_verify", verify)
    await passwords.matches(await passwords.hash(PASSWORD), "wrong")
    await passwords.matches(None, "wrong")
    parameters = [stored.rsplit("$", 2)[0] for stored in verified]
    lengths = [[len(part) for part in stored.split("$")] for stored in verified]
    assert parameters[0] == parameters[1]
    assert lengths[0] == lengths[1]


async def with_password(door: Door) -> None:
    door.books.passwords["u1@example.org"] = await Passwords().hash(PASSWORD)


async def test_a_login_signs_in_and_gives_a_token_that_expires() -> None:
    async with open_door() as door:
        await with_password(door)
        client = await door.client()
        session = await client.call("session_login", {"email": "U1@example.org", "password": PASSWORD})
        assert (session["authenticated"], session["user"]["user_id"], session["scopes"]) == (True, 1, ["user"])
        assert door.books.by_hash[secret_hash(session["token"])].expires_at_s == pytest.approx(
            time.time() + 86_400, abs=60
        )
        await client.call("debit", {"amount": "1"})
        assert (await (await door.client(session["token"])).call("session_status"))["authenticated"]


async def test_a_wrong_password_and_an_unknown_user_are_told_the_same() -> None:
    async with open_door() as door:
        await with_password(door)
        client = await door.client()
        told = [
            await client.refused("session_login", {"email": email, "password": "wrong password"})
            for email in ("u1@example.org", "u2@example.org", "nobody@example.org")
        ]
        assert told[0]["code"] == 1002
        assert told[0] == told[1] == told[2]


async def test_a_disabled_user_learns_it_only_with_the_right_password() -> None:
    async with open_door() as door:
        await with_password(door)
        door.books.users[1] = msgspec.structs.replace(door.books.users[1], status="disabled")
        client = await door.client()
        wrong = {"email": "u1@example.org", "password": "wrong password"}
        assert (await client.refused("session_login", wrong))["code"] == 1002
        assert (await client.refused("session_login", {**wrong, "password": PASSWORD}))["code"] == 1005


async def test_failed_logins_are_throttled_and_good_ones_are_not() -> None:
    async with open_door(login_failures_per_min=3) as door:
        await with_password(door)
        client = await door.client()
        right = {"email": "u1@example.org", "password": PASSWORD}
        for _ in range(5):
            await client.call("session_login", right)
        for _ in range(3):
            assert (await client.refused("session_login", {**right, "password": "wrong password"}))["code"] == 1002
        error = await client.refused("session_login", right)
        assert error["data"]["code"] == "rate_limited"
        assert 0 < error["data"]["retry_after_ms"] <= 20_000


async def test_a_logout_revokes_the_token_or_all_of_the_user() -> None:
    async with open_door() as door:
        first, second = await door.user(1), await door.user(1)
        assert await first.call("session_logout") == {"revoked": 1}
        assert await second.call("session_logout", {"all": True}) == {"revoked": 1}
        assert (await second.refused("session_logout"))["code"] == 1001
        assert all(state.revoked_at for state in door.books.by_hash.values())


def test_a_throttle_gives_a_burst_and_then_its_rate(mock_clock: trio.testing.MockClock) -> None:
    async def scenario() -> None:
        throttle = Throttle(2.0, 4)
        assert [throttle.take("a") for _ in range(4)] == [0.0] * 4
        assert throttle.take("a") == pytest.approx(0.5)
        assert throttle.take("b") == 0.0
        mock_clock.jump(0.5)
        assert throttle.take("a") == 0.0
        assert throttle.take("a") > 0

    trio.run(scenario, clock=mock_clock)


def test_a_rate_of_zero_is_no_limit() -> None:
    throttle = Throttle(0.0, 1)
    assert [throttle.take("a") for _ in range(10)] == [0.0] * 10


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
