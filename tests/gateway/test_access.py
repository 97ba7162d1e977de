"""The scope table, row by row: what each scope must not do. What is outside the view looks like what does not exist."""

from __future__ import annotations

import time
from typing import Any

import pytest

from ledgerd.engine.commands import AccountRef
from ledgerd_protocol.methods import ANYBODY, METHODS
from tests.gateway.fakes import Client, Door, open_door

MINE, OTHERS, MINE_IN_EUR, NOBODYS = 11, 12, 13, 99

PARAMS: dict[str, Any] = {
    "session_change_password": {"password": "correct horse", "new_password": "battery staple"},
    "user_update": {"name": "Ada"},
    "user_disable": {"user_id": 1},
    "user_enable": {"user_id": 1},
    "token_create": {"scopes": ["read"]},
    "token_revoke": {"token_id": 1},
    "account_open": {"currency": "CHF"},
    "account_set_limit": {"account_id": MINE, "overdraft_limit": "1"},
    "account_freeze": {"account_id": MINE},
    "account_unfreeze": {"account_id": MINE},
    "account_close": {"account_id": MINE},
    "hold_place": {"account_id": MINE, "amount": "1"},
    "hold_capture": {"hold_id": "01890000-0000-7000-8000-000000000000"},
    "hold_release": {"hold_id": "01890000-0000-7000-8000-000000000000"},
    "transaction_reverse": {"original_transaction_id": "01890000-0000-7000-8000-000000000000"},
    "advance_request": {"account_id": MINE, "amount": "1"},
    "advance_get": {"advance_id": "01890000-0000-7000-8000-000000000000"},
    "advance_list": {"account_id": MINE},
    "advance_repay": {"advance_id": "01890000-0000-7000-8000-000000000000"},
    "credit": {"account_id": MINE, "amount": "1"},
    "debit": {"account_id": MINE, "amount": "1"},
    "transfer": {"source_account_id": MINE, "destination_account_id": OTHERS, "amount": "1"},
    "transaction_batch": {
        "batch_id": "01890000-0000-7000-8000-000000000000",
        "items": [{"method": "debit", "params": {"account_id": MINE, "amount": "1"}}],
    },
    "transaction_get": {"transaction_id": "01890000-0000-7000-8000-000000000000"},
    "transaction_cancel": {"account_id": MINE, "transaction_id": "01890000-0000-7000-8000-000000000000"},
    "ledger_subscribe": {"channel": "balances"},
    "ledger_unsubscribe": {"subscription": "sub_1"},
}

READS = {
    "user_get", "account_get", "account_list", "balance_get", "transaction_get", "transaction_list",
    "transaction_report", "monitor_list", "advance_get", "advance_list",
}  # fmt: skip
FEED = {"ledger_subscribe", "ledger_unsubscribe"}
SPENDING = {
    "debit", "transfer", "hold_place", "hold_release", "transaction_batch", "transaction_cancel", "advance_repay",
    "monitor_set", "monitor_remove",
}  # fmt: skip
MANAGING = {
    "session_change_password", "user_update", "token_create", "token_list", "token_revoke", "account_open",
    "account_close",
}  # fmt: skip
SERVING = {"hold_capture", "transaction_reverse", "advance_request", "credit", "user_list"}
WALLET = {"wallet_create_users", "wallet_balance", "wallet_bet", "wallet_win", "wallet_rollback"}

ALLOWED: dict[str, set[str]] = {
    "read": READS | FEED,
    "user": READS | FEED | SPENDING | MANAGING,
    "topup": {"credit", "transaction_batch"},
    "service": READS | FEED | SPENDING | WALLET | SERVING,
    "operator": {name for name, method in METHODS.items() if method.scopes != ANYBODY},
}

SCOPED = sorted(name for name, method in METHODS.items() if method.scopes != ANYBODY)


async def code_of(client: Client, method: str, params: Any = None) -> str:
    """The stable text of the error of a call that must fail."""
    return str((await client.refused(method, params if params is not None else PARAMS.get(method)))["data"]["code"])


@pytest.mark.parametrize("scope", sorted(ALLOWED))
async def test_a_scope_allows_exactly_its_methods(scope: str) -> None:
    async with open_door() as door:
        client = await door.user(1, scope)
        for method in SCOPED:
            number = await client.ask(method, PARAMS.get(method))
            reply = await client.receive()
            while reply.get("id") != number:
                reply = await client.receive()
            denied = reply.get("error", {}).get("data", {}).get("code") == "permission_denied"
            assert denied == (method not in ALLOWED[scope]), method


async def test_who_has_not_signed_in_may_only_sign_in_and_ask_about_the_daemon() -> None:
    async with open_door() as door:
        for method in SCOPED:
            client = await door.client()  # one may only ask a few times
            assert await code_of(client, method) == "unauthenticated"
        assert door.router.units == []
        assert (await client.call("session_status"))["authenticated"] is False
        assert (await client.call("system_info"))["protocol"] == "ledgerd.v1"
        assert (await client.call("rpc.discover"))["openrpc"]


async def test_a_token_that_has_expired_meanwhile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_door() as door:
        client = await door.user(1, "user", expires_at_s=time.time() + 100)
        later = time.time() + 200
        monkeypatch.setattr("ledgerd.gateway.clock.time.time", lambda: later)
        assert await code_of(client, "debit") == "session_expired"
        assert door.router.units == []


# -- users: an own account on the side the money leaves ---------------------------------------------------------------

FOREIGN_PAYERS: list[tuple[str, dict[str, Any]]] = [
    ("debit", {"account_id": OTHERS, "amount": "1"}),
    ("debit", {"account_id": NOBODYS, "amount": "1"}),
    ("debit", {"user_id": 2, "amount": "1"}),
    ("transfer", {"source_account_id": OTHERS, "destination_account_id": MINE, "amount": "1"}),
    ("transfer", {"source_user_id": 2, "destination_account_id": MINE, "amount": "1"}),
    (
        "transfer",
        {"source_account_id": MINE, "destination_account_id": OTHERS, "amount": "1", "direction": "credit"},
    ),
    ("transfer", {"source_account_id": MINE, "destination_user_id": 2, "amount": "1", "direction": "credit"}),
    ("transaction_cancel", {"account_id": OTHERS, "transaction_id": "01890000-0000-7000-8000-000000000000"}),
]


@pytest.mark.parametrize("remembered", [False, True])
@pytest.mark.parametrize(("method", "params"), FOREIGN_PAYERS)
async def test_a_user_may_not_take_money_from_an_account_of_others(
    method: str, params: dict[str, Any], remembered: bool
) -> None:
    async with open_door() as door:
        if remembered:
            door.directory.learn()
        client = await door.user(1)
        error = await client.refused(method, params)
        assert (error["data"]["code"], error["data"]["resource"]) == ("not_found", "account")
        assert door.router.units == []


async def test_an_account_of_others_looks_like_one_that_does_not_exist() -> None:
    async with open_door() as door:
        client = await door.user(1)
        answers = []
        for account_id in (OTHERS, NOBODYS):
            error = await client.refused("debit", {"account_id": account_id, "amount": "1"})
            answers.append({**error["data"], "transaction_id": ""})
        assert answers[0] == answers[1]


async def test_the_receiving_account_may_be_anybodys() -> None:
    async with open_door() as door:
        client = await door.user(1)
        await client.call("transfer", {"source_account_id": MINE, "destination_account_id": OTHERS, "amount": "1"})
        pulled = {"source_user_id": 2, "destination_account_id": MINE, "amount": "1", "direction": "credit"}
        await client.call("transfer", pulled)
        assert [(command.debit, command.credit) for command in door.router.commands] == [
            (AccountRef(account_id=MINE), AccountRef(account_id=OTHERS)),
            (AccountRef(account_id=MINE), AccountRef(user_id=2)),
        ]


async def test_a_user_may_leave_its_own_account_out() -> None:
    async with open_door() as door:
        client = await door.user(1)
        await client.call("debit", {"amount": "1"})
        await client.call("transfer", {"destination_user_id": 2, "amount": "1"})
        assert {command.debit for command in door.router.commands} == {AccountRef(user_id=1)}
        missing = await client.refused("transfer", {"source_account_id": MINE, "amount": "1"})
        assert [error["pointer"] for error in missing["data"]["errors"]] == ["/destination_account_id"]


async def test_topup_credits_its_own_account_and_no_other() -> None:
    async with open_door() as door:
        client = await door.user(1, "user", "topup")
        await client.call("credit", {"amount": "1"})
        for params in ({"account_id": OTHERS}, {"user_id": 2}, {"account_id": NOBODYS}):
            assert await code_of(client, "credit", {**params, "amount": "1"}) == "not_found"
        assert [command.credit for command in door.router.commands] == [AccountRef(user_id=1)]


async def test_a_service_moves_money_of_any_account_but_must_name_it() -> None:
    async with open_door() as door:
        client = await door.service()
        await client.call("debit", {"account_id": OTHERS, "amount": "1"})
        await client.call("credit", {"user_id": 1, "amount": "1"})
        assert await code_of(client, "debit", {"amount": "1"}) == "invalid_params"
        assert len(door.router.units) == 2


# -- reads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["account_get", "balance_get", "transaction_list"])
async def test_a_user_may_not_see_an_account_of_others(method: str) -> None:
    async with open_door() as door:
        client = await door.user(1, "read")
        for params in ({"account_id": OTHERS}, {"account_id": NOBODYS}, {"user_id": 2}):
            assert await code_of(client, method, params) == "not_found"
        await client.call(method, {"account_id": MINE})
        await client.call(method)


async def test_a_user_may_not_list_or_get_others() -> None:
    async with open_door() as door:
        client = await door.user(1, "read")
        assert await code_of(client, "user_get", {"user_id": 2}) == "not_found"
        assert await code_of(client, "account_list", {"user_id": 2}) == "not_found"
        assert {item["account_id"] for item in (await client.call("account_list"))["items"]} == {MINE, MINE_IN_EUR}


async def test_a_service_lists_everybodys_accounts() -> None:
    async with open_door() as door:
        client = await door.service()
        assert {item["account_id"] for item in (await client.call("account_list"))["items"]} == {11, 12, 13}


async def test_a_user_may_only_follow_its_own_accounts() -> None:
    async with open_door() as door:
        client = await door.user(1, "read")
        for options in ({"account_ids": [MINE, OTHERS]}, {"account_ids": [NOBODYS]}, {"user_id": 2}):
            params = {"channel": "balances", "options": options}
            assert await code_of(client, "ledger_subscribe", params) == "not_found"
        everything = {"channel": "balances", "options": {"all": True}}
        assert await code_of(client, "ledger_subscribe", everything) == "permission_denied"
        assert door.hub.subscriptions == {}
        await client.call("ledger_subscribe", {"channel": "balances"})
        _, _, accounts = door.hub.subscriptions["sub_1"]
        assert {state.account_id for state in accounts} == {MINE, MINE_IN_EUR}


async def test_a_service_may_not_follow_everything() -> None:
    async with open_door() as door:
        everything = {"channel": "balances", "options": {"all": True}}
        assert await code_of(await door.service(), "ledger_subscribe", everything) == "permission_denied"
        operator = await door.client(door.books.token("operator"))
        assert await operator.call("ledger_subscribe", everything) == "sub_1"


@pytest.mark.parametrize(
    ("options", "pointer"),
    [
        ({"all": True, "since": {"epoch": "e", "position": "1", "versions": {"7": 1}}}, "/options/since/versions"),
        ({"all": True, "since": {"epoch": "e"}}, "/options/since/position"),
        ({"account_ids": [11], "since": {"epoch": "e", "versions": {}, "position": "1"}}, "/options/since/position"),
        ({"account_ids": [11], "since": {"epoch": "e"}}, "/options/since/versions"),
    ],
)
async def test_everything_is_resumed_from_a_position_and_accounts_from_versions(options: Any, pointer: str) -> None:
    async with open_door() as door:
        operator = await door.client(door.books.token("operator"))
        refused = await operator.refused("ledger_subscribe", {"channel": "balances", "options": options})
        assert refused["data"]["code"] == "invalid_params"
        assert [error["pointer"] for error in refused["data"]["errors"]] == [pointer]


@pytest.mark.parametrize("versions", [{}, {"versions": {}}])
async def test_everything_resumes_with_an_epoch_and_a_position(versions: Any) -> None:
    async with open_door() as door:
        operator = await door.client(door.books.token("operator"))
        options = {"all": True, "since": {"epoch": "e", "position": "1", **versions}}
        assert await operator.call("ledger_subscribe", {"channel": "balances", "options": options}) == "sub_1"


# -- tokens of one account --------------------------------------------------------------------------------------------


async def limited(door: Door, *scopes: str, user_id: int | None = 1) -> Client:
    return await door.client(door.books.token(*(scopes or ("user",)), user_id=user_id, account_id=MINE))


async def test_a_token_of_one_account_sees_and_spends_from_no_other() -> None:
    async with open_door() as door:
        door.directory.learn()
        client = await limited(door)
        for account_id in (OTHERS, MINE_IN_EUR, NOBODYS):
            assert await code_of(client, "debit", {"account_id": account_id, "amount": "1"}) == "not_found"
            for method in ("account_get", "balance_get", "transaction_list"):
                assert await code_of(client, method, {"account_id": account_id}) == "not_found"
            follow = {"channel": "balances", "options": {"account_ids": [account_id]}}
            assert await code_of(client, "ledger_subscribe", follow) == "not_found"
        assert door.router.units == []
        assert [item["account_id"] for item in (await client.call("account_list"))["items"]] == [MINE]


@pytest.mark.parametrize("named", [{}, {"user_id": 1}, {"account_id": MINE}])
async def test_a_token_of_one_account_means_that_account(named: dict[str, int]) -> None:
    async with open_door() as door:
        client = await limited(door)
        await client.call("debit", {**named, "amount": "1"})
        assert door.router.commands[0].debit == AccountRef(account_id=MINE)
        assert (await client.call("account_get", named))["account_id"] == MINE


async def test_a_service_token_of_one_account_is_no_wider_than_it() -> None:
    async with open_door() as door:
        client = await limited(door, "service", user_id=None)
        assert await code_of(client, "debit", {"account_id": OTHERS, "amount": "1"}) == "not_found"
        assert await code_of(client, "account_get", {"account_id": OTHERS}) == "not_found"
        assert await code_of(client, "user_register", {"name": "x"}) == "permission_denied"
        await client.call("debit", {"amount": "1"})
        assert len(door.router.units) == 1


async def test_a_token_of_one_account_opens_none_and_makes_none_wider() -> None:
    async with open_door() as door:
        client = await limited(door)
        assert await code_of(client, "account_open", {"currency": "CHF"}) == "permission_denied"
        assert await code_of(client, "token_create", {"scopes": ["user"], "account_id": MINE_IN_EUR}) == "not_found"
        made = await client.call("token_create", {"scopes": ["read"]})
        assert (made["account_id"], made["user_id"]) == (MINE, 1)
        assert await code_of(client, "session_logout", {"all": True}) == "permission_denied"


@pytest.mark.parametrize("expires_at", ["9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59Z", "2200-01-01T00:00:00Z"])
async def test_a_token_that_is_to_last_for_more_than_a_hundred_years_is_refused(expires_at: str) -> None:
    async with open_door() as door:
        client = await door.user(1, "user")
        answer = await client.refused("token_create", {"scopes": ["read"], "expires_at": expires_at})
        assert answer["data"]["errors"][0]["pointer"] == "/expires_at"


async def test_a_token_of_one_account_lists_and_revokes_only_tokens_of_it() -> None:
    async with open_door() as door:
        wide = door.books.by_hash
        door.books.token("user", user_id=1)
        (wide_state,) = wide.values()
        client = await limited(door)
        listed = (await client.call("token_list"))["items"]
        assert [item["account_id"] for item in listed] == [MINE]
        assert await code_of(client, "token_revoke", {"token_id": wide_state.token_id}) == "not_found"
        await client.call("token_revoke", {"token_id": listed[0]["token_id"]})


# -- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scopes", "wanted"),
    [
        (("user",), ["topup"]),
        (("user",), ["user", "service"]),
        (("user",), ["operator"]),
        (("user", "topup"), ["service"]),
        (("user", "service"), ["operator"]),
    ],
)
async def test_a_token_has_no_scope_that_its_maker_has_not(scopes: tuple[str, ...], wanted: list[str]) -> None:
    async with open_door() as door:
        client = await door.user(1, *scopes)
        assert await code_of(client, "token_create", {"scopes": wanted}) == "permission_denied"


async def test_a_token_is_for_no_other_user_and_no_account_of_others() -> None:
    async with open_door() as door:
        for client in (await door.user(1), await door.user(1, "user", "service")):
            assert await code_of(client, "token_create", {"scopes": ["read"], "user_id": 2}) == "not_found"
            for account_id in (OTHERS, NOBODYS):
                params = {"scopes": ["read"], "account_id": account_id}
                assert await code_of(client, "token_create", params) == "not_found"


async def test_a_token_does_not_outlive_its_maker() -> None:
    async with open_door() as door:
        client = await door.user(1, "user", expires_at_s=time.time() + 3600)
        later = {"scopes": ["read"], "expires_at": "2100-01-01T00:00:00Z"}
        assert await code_of(client, "token_create", later) == "permission_denied"
        made = await client.call("token_create", {"scopes": ["read"]})
        assert made["expires_at"] is not None


async def test_an_operator_makes_tokens_for_users_and_for_accounts() -> None:
    async with open_door() as door:
        client = await door.client(door.books.token("operator"))
        assert (await client.call("token_create", {"scopes": ["user"], "user_id": 2}))["user_id"] == 2
        made = await client.call("token_create", {"scopes": ["user"], "account_id": OTHERS})
        assert (made["user_id"], made["account_id"]) == (2, OTHERS)
        assert (
            await code_of(client, "token_create", {"scopes": ["user"], "account_id": OTHERS, "user_id": 1})
            == "not_found"
        )
        assert await code_of(client, "token_create", {"scopes": ["user"]}) == "invalid_params"
        assert (await client.call("token_create", {"scopes": ["service"]}))["user_id"] is None


async def test_a_new_token_works_and_its_secret_is_shown_once() -> None:
    async with open_door() as door:
        client = await door.user(1)
        made = await client.call("token_create", {"scopes": ["read"], "label": "reports"})
        assert (await (await door.client(made["token"])).call("session_status"))["scopes"] == ["read"]
        assert all("token" not in item for item in (await client.call("token_list"))["items"])


async def test_tokens_of_others_are_neither_listed_nor_revoked() -> None:
    async with open_door() as door:
        await door.user(2)
        (theirs,) = door.books.by_hash.values()
        for client in (await door.user(1), await door.user(1, "user", "service")):
            assert await code_of(client, "token_list", {"user_id": 2}) == "not_found"
            assert await code_of(client, "token_revoke", {"token_id": theirs.token_id}) == "not_found"
            assert {item["user_id"] for item in (await client.call("token_list"))["items"]} == {1}
        assert theirs.revoked_at is None


async def test_a_user_opens_accounts_only_for_itself() -> None:
    async with open_door() as door:
        client = await door.user(1)
        assert (await client.call("account_open", {"currency": "CHF"}))["user_id"] == 1
        assert [state.currency for state in door.hub.announced] == ["CHF"]
        for caller in (client, await door.user(1, "user", "service")):
            assert await code_of(caller, "account_open", {"currency": "CHF", "user_id": 2}) == "not_found"
        operator = await door.client(door.books.token("operator"))
        assert (await operator.call("account_open", {"currency": "CHF", "user_id": 2}))["user_id"] == 2


# -- signing up -------------------------------------------------------------------------------------------------------


async def test_sign_up_is_closed_unless_it_is_opened() -> None:
    person = {"name": "Ada", "email": "ada@example.org", "password": "correct horse"}
    async with open_door() as door:
        assert await code_of(await door.client(), "user_register", person) == "unauthenticated"
        assert await code_of(await door.user(1), "user_register", person) == "permission_denied"
    async with open_door(open_sign_up=True, sign_up_scopes=("user", "topup")) as door:
        made = await (await door.client()).call("user_register", person)
        assert made["account"]["balance"] == "0.00"
        status = await (await door.client(made["token"])).call("session_status")
        assert (status["scopes"], status["user"]["name"]) == (["topup", "user"], "Ada")
        assert [state.account_id for state in door.hub.announced] == [made["account"]["account_id"]]


async def test_who_signs_up_must_give_e_mail_and_password_and_a_service_need_not() -> None:
    async with open_door(open_sign_up=True) as door:
        error = await (await door.client()).refused("user_register", {"name": "Ada"})
        assert [problem["pointer"] for problem in error["data"]["errors"]] == ["/email", "/password"]
        service = await door.service()
        assert (await service.call("user_register", {"name": "house"}))["user"]["email"] is None
        assert await code_of(service, "user_register", {"name": "x", "email": "x@example.org"}) == "invalid_params"
