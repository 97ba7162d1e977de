"""Registering, listing, changing, disabling users."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.gateway.fakes import Client, open_door

ADA = {"name": "Ada", "email": "ada@example.org", "password": "correct horse"}


async def pointers(client: Client, method: str, params: Any) -> list[str]:
    """What a refused request is told to mend."""
    error = await client.refused(method, params)
    assert error["data"]["code"] == "invalid_params"
    return sorted(problem["pointer"] for problem in error["data"]["errors"])


async def code_of(client: Client, method: str, params: Any = None) -> str:
    return str((await client.refused(method, params))["data"]["code"])


# -- registering ------------------------------------------------------------------------------------------------------

NAMES = ["", " ", "\t", " Ada", "Ada ", "A\nda", "Ada\n", "A\x1bda", "A\x7fda", "a" * 201, 1, None, ["Ada"]]
EMAILS = [
    "", " ", "ada", "@example.org", "ada@", "ada@example", "ada@.org", "ada@example.", "ada@example..org",
    "ada@@example.org", "a da@example.org", "ada@exa mple.org", " ada@example.org", "ada@example.org\n",
    "a\x1bda@example.org", "a" * 65 + "@example.org", "a@" + "e" * 250 + ".org", 1, None,
]  # fmt: skip
PASSWORDS = ["", "seven77", "p" * 1025, 12345678, None, True]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("name", value) for value in NAMES),
        *(("email", value) for value in EMAILS),
        *(("password", value) for value in PASSWORDS),
        *(("currency", value) for value in ("", "usd", "US", "U" * 13, "USD ", 840, None, "XXZ")),
    ],
)
async def test_an_empty_or_malformed_field_is_refused_and_pointed_at(field: str, value: Any) -> None:
    async with open_door(open_sign_up=True) as door:
        before = dict(door.books.users)
        assert await pointers(await door.client(), "user_register", {**ADA, field: value}) == [f"/{field}"]
        assert door.books.users == before


async def test_every_field_that_is_wrong_is_pointed_at_at_once() -> None:
    async with open_door(open_sign_up=True) as door:
        client = await door.client()
        wrong = {"name": "", "email": "ada", "password": "short", "currency": "usd", "colour": "red"}
        assert await pointers(client, "user_register", wrong) == [
            "/colour", "/currency", "/email", "/name", "/password"
        ]  # fmt: skip
        assert await pointers(client, "user_register", {"name": "Ada"}) == ["/email", "/password"]


@pytest.mark.parametrize(
    "good",
    [
        {"name": "a"},
        {"name": "Ada Lovelace née Byron 李"},
        {"name": "x" * 200},
        {"email": "ADA+ledger@mail.example.co.uk"},
        {"password": "p" * 8},
        {"password": "п" * 1024},
        {"currency": "EUR"},
    ],
)
async def test_what_people_have_is_accepted(good: dict[str, str]) -> None:
    async with open_door(open_sign_up=True) as door:
        made = await (await door.client()).call("user_register", {**ADA, **good})
        assert made["user"]["name"] == good.get("name", "Ada")
        assert made["account"]["currency"] == good.get("currency", "USD")


async def test_a_service_makes_house_accounts_without_e_mail_and_password_but_not_with_one_of_them() -> None:
    async with open_door() as door:
        service = await door.service()
        made = await service.call("user_register", {"name": "house"})
        assert (made["user"]["email"], made["account"]["balance"]) == (None, "0.00")
        for given, missing in (("email", "/password"), ("password", "/email")):
            assert await pointers(service, "user_register", {"name": "x", given: ADA[given]}) == [missing]


# -- listing ----------------------------------------------------------------------------------------------------------


async def test_services_and_operators_list_everybody_page_by_page() -> None:
    async with open_door() as door:
        for client in (await door.service(), await door.client(door.books.token("operator"))):
            for name in "abc":
                await client.call("user_register", {"name": name})
            listed: list[Any] = []
            params: dict[str, Any] = {"limit": 2}
            while True:
                page = await client.call("user_list", params)
                assert len(page["items"]) <= 2
                listed += page["items"]
                if page["next_cursor"] is None:
                    break
                params["cursor"] = page["next_cursor"]
            assert [item["user_id"] for item in listed] == sorted(door.books.users)
            assert listed[0] == await client.call("user_get", {"user_id": 1})


async def test_a_cursor_of_another_list_is_no_cursor_of_users() -> None:
    async with open_door() as door:
        service = await door.service()
        cursor = (await service.call("account_list", {"limit": 1}))["next_cursor"]
        assert await code_of(service, "user_list", {"cursor": cursor}) == "invalid_cursor"


async def test_a_token_of_one_account_manages_no_users() -> None:
    async with open_door() as door:
        for scope in ("service", "operator"):
            limited = await door.client(door.books.token(scope, account_id=11))
            assert await code_of(limited, "user_list") == "permission_denied"
        for method in ("user_disable", "user_enable"):
            assert await code_of(limited, method, {"user_id": 2}) == "permission_denied"
        limited = await door.client(door.books.token("user", user_id=1, account_id=11))
        assert await code_of(limited, "user_update", {"name": "Eve"}) == "permission_denied"


@pytest.mark.parametrize(
    ("params", "pointer"),
    [({"limit": 0}, "/limit"), ({"limit": 1001}, "/limit"), ({"limit": "2"}, "/limit"), ({"cursor": 1}, "/cursor")],
)
async def test_limits_and_cursors_that_are_none_are_pointed_at(params: Any, pointer: str) -> None:
    async with open_door() as door:
        assert await pointers(await door.service(), "user_list", params) == [pointer]


# -- changing ---------------------------------------------------------------------------------------------------------


async def test_a_user_changes_its_own_name_and_e_mail_and_what_is_left_out_stays() -> None:
    async with open_door() as door:
        client = await door.user(1)
        assert (await client.call("user_update", {"name": "Ada"}))["email"] == "u1@example.org"
        changed = await client.call("user_update", {"user_id": 1, "email": "ada@example.org"})
        assert (changed["name"], changed["email"]) == ("Ada", "ada@example.org")
        assert await client.call("user_update", {}) == changed
        assert await client.call("user_get") == changed


async def test_a_user_changes_nobody_else_and_an_operator_anybody() -> None:
    async with open_door() as door:
        assert await code_of(await door.user(1), "user_update", {"user_id": 2, "name": "Eve"}) == "not_found"
        operator = await door.client(door.books.token("operator"))
        assert (await operator.call("user_update", {"user_id": 2, "name": "Bob"}))["name"] == "Bob"
        assert await code_of(operator, "user_update", {"user_id": 9, "name": "Bob"}) == "not_found"
        assert await pointers(operator, "user_update", {"name": "Bob"}) == ["/user_id"]


async def test_an_e_mail_that_somebody_else_has_is_refused() -> None:
    async with open_door() as door:
        client = await door.user(1)
        assert await code_of(client, "user_update", {"email": "u2@example.org"}) == "already_exists"
        assert (await client.call("user_update", {"email": "u1@example.org"}))["user_id"] == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("name", value) for value in NAMES),
        *(("email", value) for value in EMAILS),
        *(("user_id", value) for value in (0, -1, 2**63, "1", 1.5, None)),
    ],
)
async def test_a_change_to_something_malformed_is_refused_and_pointed_at(field: str, value: Any) -> None:
    async with open_door() as door:
        before = door.books.users[1]
        assert await pointers(await door.user(1), "user_update", {field: value}) == [f"/{field}"]
        assert door.books.users[1] == before


# -- disabling --------------------------------------------------------------------------------------------------------


async def test_an_operator_disables_and_enables_users() -> None:
    async with open_door() as door:
        operator = await door.client(door.books.token("operator"))
        for method, status in (("user_disable", "disabled"), ("user_disable", "disabled"), ("user_enable", "active")):
            assert (await operator.call(method, {"user_id": 1}))["status"] == status
            assert (await operator.call("user_get", {"user_id": 1}))["status"] == status
        for method in ("user_disable", "user_enable"):
            assert await code_of(operator, method, {"user_id": 9}) == "not_found"


@pytest.mark.parametrize("method", ["user_disable", "user_enable"])
@pytest.mark.parametrize("params", [{}, {"user_id": 0}, {"user_id": 2**63}, {"user_id": "1"}, {"user_id": None}])
async def test_who_is_disabled_or_enabled_must_be_named(method: str, params: Any) -> None:
    async with open_door() as door:
        operator = await door.client(door.books.token("operator", user_id=1))
        assert await pointers(operator, method, params) == ["/user_id"]


async def test_a_disabled_user_keeps_its_sessions_and_reads() -> None:
    async with open_door() as door:
        client = await door.user(1)
        door.books.users[1] = msgspec.structs.replace(door.books.users[1], status="disabled")
        assert (await client.call("user_get"))["status"] == "disabled"
        assert (await client.call("account_get"))["account_id"] == 11
