"""Signing in and out, changing the password, and the end that is announced."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
import trio

from ledgerd.gateway.authentication import Passwords, secret_hash
from ledgerd.gateway.clock import text_of
from tests.gateway.fakes import Door, open_door

PASSWORD = "correct horse battery"
NEW_PASSWORD = "battery staple"
RIGHT = {"email": "u1@example.org", "password": PASSWORD}


async def with_password(door: Door) -> None:
    """Give user 1 the password."""
    door.books.passwords["u1@example.org"] = await Passwords().hash(PASSWORD)


# -- signing in -------------------------------------------------------------------------------------------------------


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
            for email in ("u1@example.org", "u2@example.org", "nobody@example.org", "no e-mail at all")
        ]
        assert told[0]["code"] == 1002
        assert all(error == told[0] for error in told)


async def test_a_disabled_user_signs_in_and_reads() -> None:
    async with open_door() as door:
        await with_password(door)
        door.books.users[1] = msgspec.structs.replace(door.books.users[1], status="disabled")
        client = await door.client()
        assert (await client.call("session_login", RIGHT))["user"]["status"] == "disabled"
        assert (await client.call("account_get"))["account_id"] == 11


async def test_failed_logins_are_throttled_and_good_ones_are_not() -> None:
    async with open_door(login_failures_per_min=3) as door:
        await with_password(door)
        client = await door.client()
        for _ in range(5):
            await client.call("session_login", RIGHT)
        for _ in range(3):
            assert (await client.refused("session_login", {**RIGHT, "password": "wrong password"}))["code"] == 1002
        error = await client.refused("session_login", RIGHT)
        assert (error["code"], error["data"]["code"], error["data"]["applied"]) == (8001, "rate_limited", False)
        assert error["data"]["retry_after_ms"] == 20_000


async def test_a_login_while_the_database_is_away_is_unavailable() -> None:
    async with open_door() as door:
        await with_password(door)
        client = await door.client()
        door.books.away = True
        assert (await client.refused("session_login", RIGHT))["data"]["code"] == "unavailable"


async def test_a_login_with_a_password_that_is_changed_meanwhile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_door() as door:
        await with_password(door)
        client = await door.client()
        give_back = door.books.return_password_try

        async def change_first(*arguments: Any) -> None:
            door.books.passwords["u1@example.org"] = "another"
            await give_back(*arguments)

        monkeypatch.setattr(door.books, "return_password_try", change_first)
        assert (await client.refused("session_login", RIGHT))["code"] == 1002
        assert door.books.by_hash == {}


@pytest.mark.parametrize(
    ("params", "pointers"),
    [
        ({}, ["/email", "/password"]),
        ({"email": 1, "password": None}, ["/email", "/password"]),
        ({"email": "e" * 255, "password": "p" * 1025}, ["/email", "/password"]),
        ({**RIGHT, "remember": True}, ["/remember"]),
    ],
)
async def test_every_mistake_in_a_login_is_pointed_at(params: dict[str, Any], pointers: list[str]) -> None:
    async with open_door() as door:
        error = await (await door.client()).refused("session_login", params)
        assert sorted(problem["pointer"] for problem in error["data"]["errors"]) == pointers


@pytest.mark.parametrize("token", [1, None, "t" * 257])
async def test_a_token_that_is_no_text_of_that_length_is_pointed_at(token: Any) -> None:
    async with open_door() as door:
        error = await (await door.client()).refused("session_authenticate", {"token": token})
        assert [problem["pointer"] for problem in error["data"]["errors"]] == ["/token"]


# -- signing out ------------------------------------------------------------------------------------------------------


async def test_a_logout_revokes_the_token_or_all_of_the_user() -> None:
    async with open_door() as door:
        first, second = await door.user(1), await door.user(1)
        assert await first.call("session_logout") == {"revoked": 1}
        assert await second.call("session_logout", {"all": True}) == {"revoked": 1}
        assert (await second.refused("session_logout"))["code"] == 1001
        assert all(state.revoked_at for state in door.books.by_hash.values())


async def test_a_logout_with_something_else_than_a_truth_value_is_pointed_at() -> None:
    async with open_door() as door:
        error = await (await door.user(1)).refused("session_logout", {"all": 1})
        assert [problem["pointer"] for problem in error["data"]["errors"]] == ["/all"]


# -- changing the password --------------------------------------------------------------------------------------------

CHANGE = {"password": PASSWORD, "new_password": NEW_PASSWORD}


async def test_who_changes_the_password_stays_and_every_other_token_of_the_user_ends() -> None:
    async with open_door() as door:
        await with_password(door)
        client, other, stranger = await door.user(1), await door.user(1), await door.user(2)
        assert await client.call("session_change_password", CHANGE) == {"revoked": 1}
        assert (await client.call("session_status"))["authenticated"]
        assert (await other.closed())[0] == 4401
        assert (await stranger.call("session_status"))["authenticated"]
        fresh = await door.client()
        assert (await fresh.refused("session_login", RIGHT))["code"] == 1002
        assert (await fresh.call("session_login", {**RIGHT, "password": NEW_PASSWORD}))["authenticated"]


async def test_a_wrong_present_password_changes_nothing_and_is_counted_with_the_logins() -> None:
    async with open_door(login_failures_per_min=2) as door:
        await with_password(door)
        client, other = await door.user(1), await door.user(1)
        assert (await client.refused("session_change_password", {**CHANGE, "password": "wrong"}))["code"] == 1002
        assert (await client.refused("session_login", {**RIGHT, "password": "wrong"}))["code"] == 1002
        error = await client.refused("session_change_password", CHANGE)
        assert (error["code"], error["data"]["retry_after_ms"]) == (8001, 30_000)
        assert (await other.call("session_status"))["authenticated"]


async def test_a_user_without_an_e_mail_or_a_password_has_none_to_change() -> None:
    async with open_door() as door:
        door.books.users[2] = msgspec.structs.replace(door.books.users[2], email=None)
        for user_id in (1, 2):
            client = await door.user(user_id)
            assert (await client.refused("session_change_password", CHANGE))["code"] == 1002


async def test_only_a_token_of_the_whole_user_changes_its_password() -> None:
    async with open_door() as door:
        await with_password(door)
        limited = await door.client(door.books.token("user", user_id=1, account_id=11))
        nobodys = await door.client(door.books.token("operator"))
        for client in (limited, nobodys):
            assert (await client.refused("session_change_password", CHANGE))["code"] == 1004


@pytest.mark.parametrize(
    ("params", "pointers"),
    [
        ({}, ["/new_password", "/password"]),
        ({"password": PASSWORD, "new_password": "seven77"}, ["/new_password"]),
        ({"password": PASSWORD, "new_password": "p" * 1025}, ["/new_password"]),
        ({"password": "p" * 1025, "new_password": 12345678}, ["/new_password", "/password"]),
    ],
)
async def test_every_mistake_in_a_change_of_password_is_pointed_at(params: dict[str, Any], pointers: list[str]) -> None:
    async with open_door() as door:
        await with_password(door)
        error = await (await door.user(1)).refused("session_change_password", params)
        assert sorted(problem["pointer"] for problem in error["data"]["errors"]) == pointers


# -- the end that is announced ----------------------------------------------------------------------------------------


async def test_who_signs_in_with_a_token_that_has_less_than_a_minute_is_told_at_once(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledgerd.gateway.clock.time.time", lambda: 1_000_000 + trio.current_time())
    async with open_door() as door:
        expires_at_s = 1_000_000 + trio.current_time() + 20
        client = await door.client()
        await client.call(
            "session_authenticate", {"token": door.books.token("user", user_id=1, expires_at_s=expires_at_s)}
        )
        started = trio.current_time()
        notice = await client.receive()
        assert notice["params"] == {"type": "expiring", "expires_at": text_of(expires_at_s)}
        assert trio.current_time() - started <= 2
        assert (await client.closed())[0] == 4401


async def test_a_newer_token_keeps_the_connection_and_is_announced_again(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledgerd.gateway.clock.time.time", lambda: 1_000_000 + trio.current_time())
    async with open_door() as door:
        start = 1_000_000 + trio.current_time()
        client = await door.user(1, "user", expires_at_s=start + 70)
        assert (await client.receive())["params"]["expires_at"] == text_of(start + 70)
        newer = door.books.token("user", user_id=1, expires_at_s=start + 200)
        assert (await client.call("session_authenticate", {"token": newer}))["authenticated"]
        assert (await client.receive())["params"]["expires_at"] == text_of(start + 200)
        assert 139 <= trio.current_time() - (start - 1_000_000) <= 142
