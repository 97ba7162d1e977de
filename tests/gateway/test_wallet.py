"""The betting wallet, from a supplier's message to its status, on a real database."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from ledgerd.gateway.authentication import new_secret, secret_hash
from ledgerd.gateway.clock import now_s
from tests.conftest import Database
from tests.gateway.fakes import Client
from tests.gateway.house import House, open_house

OK = "RS_OK"
UNKNOWN = "RS_ERROR_UNKNOWN"
INVALID_TOKEN = "RS_ERROR_INVALID_TOKEN"
TOKEN_EXPIRED = "RS_ERROR_TOKEN_EXPIRED"
WRONG_CURRENCY = "RS_ERROR_WRONG_CURRENCY"
NOT_ENOUGH_MONEY = "RS_ERROR_NOT_ENOUGH_MONEY"
USER_DISABLED = "RS_ERROR_USER_DISABLED"
WRONG_SYNTAX = "RS_ERROR_WRONG_SYNTAX"
WRONG_TYPES = "RS_ERROR_WRONG_TYPES"
DUPLICATE = "RS_ERROR_DUPLICATE_TRANSACTION"
DOES_NOT_EXIST = "RS_ERROR_TRANSACTION_DOES_NOT_EXIST"

ABSENT = object()
"""A member that is left out."""


def fresh() -> str:
    return str(uuid.uuid4())


def body(user: str, amount: Any = ABSENT, *, currency: Any = "USD", **members: Any) -> dict[str, Any]:
    """What a supplier sends, with fresh uuids unless they are given."""
    whole = {
        "user": user,
        "transaction_uuid": fresh(),
        "request_uuid": fresh(),
        "amount": amount,
        "currency": currency,
        **members,
    }
    return {name: value for name, value in whole.items() if value is not ABSENT}


class Supplier:
    """Somebody with scope `service` who sends bodies and reads statuses."""

    def __init__(self, house: House, client: Client) -> None:
        self.house = house
        self.client = client

    async def bet(self, user: str, amount: Any, **members: Any) -> Any:
        return await self.client.call("wallet_bet", body(user, amount, **members))

    async def win(self, user: str, amount: Any, bet: Any, **members: Any) -> Any:
        return await self.client.call("wallet_win", body(user, amount, reference_transaction_uuid=bet, **members))

    async def rollback(self, user: str, bet: Any, **members: Any) -> Any:
        members = {"currency": ABSENT, "reference_transaction_uuid": bet, **members}
        return await self.client.call("wallet_rollback", body(user, **members))

    async def balance(self, user: str) -> int:
        answer = await self.client.call("wallet_balance", {"user": user})
        assert answer["status"] == OK, answer
        return int(answer["balance"])

    async def user_id(self, user: str) -> int:
        (row,) = await self.house.owner("SELECT user_id FROM ledgerd.users WHERE wallet_name = $1", user)
        return int(row["user_id"])

    async def account_id(self, user: str, currency: str = "USD") -> int:
        (row,) = await self.house.owner(
            "SELECT account_id FROM ledgerd.accounts WHERE user_id = $1 AND currency = $2",
            await self.user_id(user),
            currency,
        )
        return int(row["account_id"])

    async def all_money(self) -> int:
        (row,) = await self.house.owner("SELECT sum(balance)::bigint AS s FROM ledgerd.accounts")
        return int(row["s"])


@asynccontextmanager
async def open_supplier(database: Database, **settings: Any) -> AsyncIterator[Supplier]:
    """A wallet with the users ann and bob, who have 100,000 each."""
    async with open_house(database, **settings) as house:
        created = await house.service.call("wallet_create_users", {"users": ["ann", "bob"]})
        assert created == {"created": 2}
        yield Supplier(house, house.service)


# -- users and balances -----------------------------------------------------------------------------------------------


async def test_new_users_begin_with_a_hundred_thousand_and_others_are_passed_over(database: Database) -> None:
    async with open_supplier(database) as supplier:
        create = supplier.client.call
        assert await create("wallet_create_users", {"users": ["ann", "", "cid", "cid", "bob"]}) == {"created": 1}
        assert await create("wallet_create_users", {"users": ["ann", "", "cid", "cid", "bob"]}) == {"created": 0}
        assert await create("wallet_create_users", {"users": []}) == {"created": 0}
        assert [await supplier.balance(name) for name in ("ann", "bob", "cid")] == [100_000] * 3
        account = await create("account_get", {"account_id": await supplier.account_id("cid")})
        assert (account["balance"], account["currency"], account["version"]) == ("1000.00", "USD", 1)
        user = await create("user_get", {"user_id": await supplier.user_id("cid")})
        assert (user["name"], user["email"]) == ("cid", None)
        listed = await create("transaction_list", {"account_id": account["account_id"]})
        assert [(item["kind"], item["amount"], item["reason"]) for item in listed["items"]] == [
            ("credit", "1000.00", "wallet_create_users")
        ]


async def test_a_thousand_users_are_created_at_once(database: Database) -> None:
    async with open_supplier(database) as supplier:
        names = [f"user {number}" for number in range(1_000)]
        assert await supplier.client.call("wallet_create_users", {"users": names}) == {"created": 1_000}
        assert await supplier.balance("user 999") == 100_000


@pytest.mark.parametrize(
    ("params", "status"),
    [
        (None, WRONG_SYNTAX),
        ({}, WRONG_SYNTAX),
        ({"users": None}, WRONG_SYNTAX),
        (7, WRONG_SYNTAX),
        ({"users": "ann"}, WRONG_TYPES),
        ({"users": {"ann": 1}}, WRONG_TYPES),
        ({"users": ["new", 7]}, WRONG_TYPES),
        ({"users": ["new", None]}, WRONG_TYPES),
        ({"users": ["new", "x" * 256]}, WRONG_TYPES),
        ({"users": [f"n{number}" for number in range(1_001)]}, WRONG_TYPES),
    ],
)
async def test_a_list_that_is_none_creates_nobody(database: Database, params: Any, status: str) -> None:
    async with open_supplier(database) as supplier:
        answer = await supplier.client.call("wallet_create_users", params)
        assert answer == {"created": 0, "status": status}
        assert len(await supplier.house.owner("SELECT 1 FROM ledgerd.users")) == 2


async def test_a_wallet_name_is_neither_a_display_name_nor_taken_from_one(database: Database) -> None:
    async with open_supplier(database) as supplier:
        await supplier.house.operator.call("user_register", {"name": "dora"})
        assert (await supplier.bet("dora", 1))["status"] == UNKNOWN
        assert await supplier.client.call("wallet_create_users", {"users": ["dora"]}) == {"created": 1}
        await supplier.house.operator.call("user_update", {"user_id": await supplier.user_id("dora"), "name": "ann"})
        assert (await supplier.bet("dora", 1))["status"] == OK
        assert await supplier.balance("ann") == 100_000


async def test_who_follows_everything_is_told_of_a_first_credit(database: Database) -> None:
    async with open_supplier(database) as supplier:
        watcher = await supplier.house.client("operator")
        await watcher.call("ledger_subscribe", {"channel": "balances", "options": {"all": True}})
        await supplier.client.call("wallet_create_users", {"users": ["cid"]})
        while (event := (await watcher.receive())["params"]["result"])["type"] != "update":
            pass
        assert (event["kind"], event["balance"], event["version"]) == ("credit", "1000.00", 1)


async def test_a_balance_is_told_in_units_with_what_was_asked(database: Database) -> None:
    async with open_supplier(database) as supplier:
        request = fresh()
        ask = supplier.client.call
        assert await ask("wallet_balance", {"user": "ann", "request_uuid": request, "currency": "USD"}) == {
            "user": "ann", "status": OK, "request_uuid": request, "currency": "USD", "balance": 100_000,
        }  # fmt: skip
        assert await ask("wallet_balance", ["ann"]) == {
            "user": "ann", "status": OK, "currency": "USD", "balance": 100_000,
        }  # fmt: skip


@pytest.mark.parametrize(
    ("params", "status"),
    [
        (None, UNKNOWN),
        ("ann", UNKNOWN),
        ({"user": 7}, UNKNOWN),
        ({"user": ""}, UNKNOWN),
        ({"user": "nobody"}, UNKNOWN),
        ({"user": "x" * 300}, UNKNOWN),
        ({"user": "ann", "currency": "EUR"}, WRONG_CURRENCY),
        ({"user": "ann", "currency": 7}, WRONG_CURRENCY),
        ({"user": "ann", "currency": "usd"}, WRONG_CURRENCY),
        ({"user": "ann", "request_uuid": "x"}, WRONG_TYPES),
        ({"user": "ann", "currency": None, "request_uuid": None, "more": 1}, OK),
    ],
)
async def test_a_balance_that_cannot_be_told_has_a_status(database: Database, params: Any, status: str) -> None:
    async with open_supplier(database) as supplier:
        assert (await supplier.client.call("wallet_balance", params))["status"] == status


# -- bets -------------------------------------------------------------------------------------------------------------


async def test_a_bet_takes_its_stake_and_answers_what_is_left(database: Database) -> None:
    async with open_supplier(database) as supplier:
        sent = body("ann", 2_500, round="r1", game_code="g1", round_closed=False, unheard_of=[1])
        assert await supplier.client.call("wallet_bet", sent) == {
            "user": "ann", "status": OK, "request_uuid": sent["request_uuid"], "currency": "USD", "balance": 97_500,
        }  # fmt: skip
        posted = await supplier.client.call("transaction_get", {"transaction_id": sent["transaction_uuid"]})
        assert (posted["kind"], posted["amount"], posted["reference"], posted["reason"]) == ("bet", "25.00", "r1", "g1")


async def test_members_come_in_the_order_of_the_wallet_api(database: Database) -> None:
    async with open_supplier(database) as supplier:
        await supplier.client.ask("wallet_bet", body("ann", 1))
        text = await supplier.client.connection.get_message()
        assert list(json.loads(text)["result"]) == ["user", "status", "request_uuid", "currency", "balance"]


async def test_the_same_bet_again_gets_the_first_answer_word_for_word(database: Database) -> None:
    async with open_supplier(database) as supplier:
        sent = body("ann", 1_000, round="r1", game_code="g1", supplier_user="s")
        first = await supplier.client.call("wallet_bet", sent)
        await supplier.bet("ann", 98_000)
        again = {**sent, "request_uuid": fresh(), "supplier_user": "other", "token": "x", "meta": {"n": 1}}
        assert await supplier.client.call("wallet_bet", again) == first
        again = {**sent, "request_uuid": 7, "transaction_uuid": sent["transaction_uuid"].upper()}
        assert await supplier.client.call("wallet_bet", again) == first
        assert await supplier.balance("ann") == 1_000


@pytest.mark.parametrize(
    "change",
    [
        {"user": "bob"},
        {"amount": 1_001},
        {"currency": "EUR"},
        {"currency": ABSENT},
        {"round": "r2"},
        {"round": ABSENT},
        {"round": 7},
        {"game_code": "g2"},
        {"game_code": None},
    ],
)
async def test_another_bet_under_a_seen_uuid_is_a_duplicate(database: Database, change: dict[str, Any]) -> None:
    async with open_supplier(database) as supplier:
        sent = body("ann", 1_000, round="r1", game_code="g1")
        await supplier.client.call("wallet_bet", sent)
        changed = {name: value for name, value in {**sent, **change}.items() if value is not ABSENT}
        answer = await supplier.client.call("wallet_bet", changed)
        assert answer == {"user": changed["user"], "status": DUPLICATE, "request_uuid": sent["request_uuid"]}
        assert (await supplier.balance("ann"), await supplier.balance("bob")) == (99_000, 100_000)


async def test_a_text_that_cannot_be_stored_is_not_the_same_as_none(database: Database) -> None:
    async with open_supplier(database) as supplier:
        sent = body("ann", 1_000)
        await supplier.client.call("wallet_bet", sent)
        assert (await supplier.client.call("wallet_bet", {**sent, "round": 7}))["status"] == DUPLICATE


async def test_a_uuid_belongs_to_everybody_and_to_every_kind(database: Database) -> None:
    async with open_supplier(database) as supplier:
        bet = fresh()
        assert (await supplier.bet("ann", 10, transaction_uuid=bet))["status"] == OK
        assert (await supplier.bet("bob", 10, transaction_uuid=bet))["status"] == DUPLICATE
        assert (await supplier.win("ann", 10, bet, transaction_uuid=bet))["status"] == DUPLICATE
        assert (await supplier.rollback("ann", bet, transaction_uuid=bet))["status"] == DUPLICATE
        credit = await supplier.house.operator.call(
            "credit", {"account_id": await supplier.account_id("bob"), "amount": "1.00", "transaction_id": fresh()}
        )
        answer = await supplier.bet("bob", 100, transaction_uuid=credit["transaction_id"])
        assert answer["status"] == DUPLICATE
        refused = await supplier.house.operator.refused(
            "debit", {"account_id": await supplier.account_id("ann"), "amount": "0.10", "transaction_id": bet}
        )
        assert refused["data"]["code"] == "transaction_id_reused"


async def test_a_uuid_that_was_cancelled_is_a_duplicate(database: Database) -> None:
    async with open_supplier(database) as supplier:
        bet = fresh()
        account_id = await supplier.account_id("ann")
        await supplier.house.operator.call("transaction_cancel", {"transaction_id": bet, "account_id": account_id})
        assert (await supplier.bet("ann", 10, transaction_uuid=bet))["status"] == DUPLICATE


async def test_a_refused_uuid_may_be_used_again(database: Database) -> None:
    async with open_supplier(database) as supplier:
        sent = body("ann", 100_001)
        refused = await supplier.client.call("wallet_bet", sent)
        assert refused == {"user": "ann", "status": NOT_ENOUGH_MONEY, "request_uuid": sent["request_uuid"]}
        posted = await supplier.client.call("wallet_bet", {**sent, "amount": 100_000})
        assert (posted["status"], posted["balance"]) == (OK, 0)


def raw_bet(user: str, amount: str) -> str:
    """A message in which the amount is spelled just so."""
    params = f'{{"user":"{user}","currency":"USD","amount":{amount}}}'
    return f'{{"jsonrpc":"2.0","id":1,"method":"wallet_bet","params":{params}}}'


@pytest.mark.parametrize("amount", ["10.0", "1e2", "true", '"10"', "null", "[1]", "{}", "10.5", "-0.0", '"x"'])
async def test_an_amount_that_is_no_integer_is_of_the_wrong_type(database: Database, amount: str) -> None:
    async with open_supplier(database) as supplier:
        await supplier.client.send(raw_bet("nobody", amount))
        assert (await supplier.client.receive())["result"] == {"user": "nobody", "status": WRONG_TYPES}


@pytest.mark.parametrize("digits", ["0", "-0", "-5", "1" + 18 * "0", 27 * "9", 5_000 * "9"])
async def test_an_amount_out_of_range_is_unknown(database: Database, digits: str) -> None:
    async with open_supplier(database) as supplier:
        await supplier.client.send(raw_bet("ann", digits))
        assert (await supplier.client.receive())["result"]["status"] == UNKNOWN


async def test_checks_of_a_bet_come_in_the_order_of_the_profile(database: Database) -> None:
    async with open_supplier(database) as supplier:
        seen = fresh()
        await supplier.bet("ann", 10, transaction_uuid=seen)
        wrong: dict[str, Any] = {
            "amount": "x", "user": "nobody", "transaction_uuid": seen, "currency": "EUR", "request_uuid": ABSENT,
        }  # fmt: skip
        statuses = []
        for repair in (
            {"amount": -1},
            {"amount": 200_000},
            {"user": "ann"},
            {"transaction_uuid": "no uuid"},
            {"currency": "USD"},
            {"amount": 1},
            {"request_uuid": "no uuid"},
            {"request_uuid": fresh()},
            {"transaction_uuid": fresh()},
        ):
            statuses.append((await supplier.client.call("wallet_bet", body(**wrong)))["status"])
            wrong |= repair
        statuses.append((await supplier.client.call("wallet_bet", body(**wrong)))["status"])
        assert statuses == [
            WRONG_TYPES,  # the amount is no number
            UNKNOWN,  # not above zero
            UNKNOWN,  # no such user
            DUPLICATE,
            WRONG_CURRENCY,
            NOT_ENOUGH_MONEY,
            WRONG_SYNTAX,  # something is missing, although something else is malformed
            WRONG_TYPES,
            WRONG_TYPES,
            OK,
        ]
        assert await supplier.balance("ann") == 99_989


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"user": ABSENT}, UNKNOWN),
        ({"user": None}, UNKNOWN),
        ({"user": ["ann"]}, UNKNOWN),
        ({"user": "x" * 256}, UNKNOWN),
        ({"transaction_uuid": ABSENT}, WRONG_SYNTAX),
        ({"transaction_uuid": None}, WRONG_SYNTAX),
        ({"transaction_uuid": 7}, WRONG_TYPES),
        ({"transaction_uuid": "00000000-0000-0000-0000-000000000000"}, WRONG_TYPES),
        ({"transaction_uuid": "0" * 32}, WRONG_TYPES),
        ({"request_uuid": ABSENT}, WRONG_SYNTAX),
        ({"request_uuid": True}, WRONG_TYPES),
        ({"request_uuid": "x" * 300}, WRONG_TYPES),
        ({"currency": ABSENT}, WRONG_CURRENCY),
        ({"currency": None}, WRONG_CURRENCY),
        ({"currency": 840}, WRONG_CURRENCY),
        ({"currency": "EUR"}, WRONG_CURRENCY),
        ({"currency": "BHD"}, WRONG_CURRENCY),
        ({"currency": "JPY"}, WRONG_CURRENCY),
        ({"currency": "nonsense"}, WRONG_CURRENCY),
        ({"currency": "X" * 500}, WRONG_CURRENCY),
        ({"round": 7}, WRONG_TYPES),
        ({"round": "x" * 256}, WRONG_TYPES),
        ({"game_code": {}}, WRONG_TYPES),
        ({"game_code": "x" * 256}, WRONG_TYPES),
        ({"round": "x" * 255, "game_code": "\u00e4" * 255}, OK),
        ({"round": None, "token": 7, "round_closed": "x", "is_free": [], "meta": 1, "bet": {}, "reward_uuid": 0}, OK),
        ({"meta": {"a": {"b": {"c": {"d": 1}}}}}, OK),
        ({"meta": "x" * 5_000, "supplier_user": "s"}, OK),
        ({"supplier_user": "x" * 5_000, "bet": "b"}, OK),
    ],
)
async def test_a_member_of_a_bet_that_is_not_as_it_should_be(
    database: Database, change: dict[str, Any], status: str
) -> None:
    async with open_supplier(database) as supplier:
        sent = {name: value for name, value in {**body("ann", 5), **change}.items() if value is not ABSENT}
        answer = await supplier.client.call("wallet_bet", sent)
        assert answer["status"] == status
        said = {name for name in ("user", "request_uuid") if isinstance(sent.get(name), str) and len(sent[name]) < 256}
        assert set(answer) == {"status"} | said | ({"currency", "balance"} if status == OK else set())
        assert await supplier.balance("ann") == (99_995 if status == OK else 100_000)
        if status == OK:
            again = {**sent, "request_uuid": fresh()}
            assert await supplier.client.call("wallet_bet", again) == answer


@pytest.mark.parametrize("params", [None, [], {}, 7, "x", [1, 2], [{}, {}], True])
@pytest.mark.parametrize("method", ["wallet_bet", "wallet_win", "wallet_rollback"])
async def test_params_that_are_no_object_are_a_body_without_members(
    database: Database, method: str, params: Any
) -> None:
    async with open_supplier(database) as supplier:
        answer = await supplier.client.call(method, params)
        assert answer == {"status": UNKNOWN if method == "wallet_rollback" else WRONG_TYPES}


async def test_a_body_may_come_as_an_array_of_one(database: Database) -> None:
    async with open_supplier(database) as supplier:
        assert (await supplier.client.call("wallet_bet", [body("ann", 5)]))["status"] == OK


async def test_what_is_kept_of_a_body_is_its_first_request_and_never_its_token(database: Database) -> None:
    async with open_supplier(database) as supplier:
        sent = body("ann", 5, token="secret-token", supplier_user="s", is_free=True, bet="b", meta={"k": [1.50]})
        await supplier.client.call("wallet_bet", sent)
        (row,) = await supplier.house.owner(
            "SELECT metadata FROM ledgerd.transactions WHERE transaction_id = $1", sent["transaction_uuid"]
        )
        assert msgspec.json.decode(row["metadata"]) == {
            "request_uuid": sent["request_uuid"], "supplier_user": "s", "is_free": True, "bet": "b",
            "meta": {"k": [1.5]},
        }  # fmt: skip
        tables = await supplier.house.owner("SELECT tablename FROM pg_tables WHERE schemaname = 'ledgerd'")
        assert len(tables) > 5
        for table in tables:
            rows = await supplier.house.owner(f"SELECT t::text AS r FROM ledgerd.{table['tablename']} AS t")
            assert not any("secret-token" in row["r"] for row in rows)


async def test_disabled_users_and_frozen_accounts_may_not_bet_but_win_and_get_back(database: Database) -> None:
    async with open_supplier(database) as supplier:
        won, lost = fresh(), fresh()
        for bet in (won, lost):
            await supplier.bet("ann", 100, transaction_uuid=bet)
        account = {"account_id": await supplier.account_id("ann")}
        await supplier.house.operator.call("user_disable", {"user_id": await supplier.user_id("ann")})
        assert (await supplier.bet("ann", 1))["status"] == USER_DISABLED
        assert (await supplier.bet("ann", 200_000))["status"] == USER_DISABLED
        assert (await supplier.win("ann", 500, won))["status"] == OK
        await supplier.house.operator.call("user_enable", {"user_id": await supplier.user_id("ann")})
        await supplier.house.operator.call("account_freeze", account)
        assert (await supplier.bet("ann", 1))["status"] == USER_DISABLED
        assert (await supplier.rollback("ann", lost))["status"] == OK
        assert await supplier.balance("ann") == 100_400


async def test_a_closed_account_takes_no_bet(database: Database) -> None:
    async with open_supplier(database) as supplier:
        await supplier.bet("ann", 100_000)
        await supplier.house.operator.call("account_close", {"account_id": await supplier.account_id("ann")})
        assert (await supplier.bet("ann", 1))["status"] == USER_DISABLED


# -- wins and rollbacks -----------------------------------------------------------------------------------------------


async def test_a_win_pays_a_bet_once(database: Database) -> None:
    async with open_supplier(database) as supplier:
        bet = fresh()
        await supplier.bet("ann", 1_000, transaction_uuid=bet)
        sent = body("ann", 5_000, reference_transaction_uuid=bet.upper())
        won = await supplier.client.call("wallet_win", sent)
        assert (won["status"], won["balance"], won["currency"]) == (OK, 104_000, "USD")
        await supplier.bet("ann", 104_000)
        again = {**sent, "request_uuid": fresh(), "reference_transaction_uuid": bet}
        assert await supplier.client.call("wallet_win", again) == won
        assert (await supplier.win("ann", 5_000, bet))["status"] == UNKNOWN
        assert (await supplier.win("ann", 1, fresh(), transaction_uuid=sent["transaction_uuid"]))["status"] == DUPLICATE
        assert await supplier.balance("ann") == 0


async def test_checks_of_a_win_come_in_the_order_of_the_profile(database: Database) -> None:
    async with open_supplier(database) as supplier:
        seen, bet = fresh(), fresh()
        await supplier.bet("ann", 10, transaction_uuid=seen)
        await supplier.bet("ann", 10, transaction_uuid=bet)
        await supplier.win("ann", 1, seen)
        wrong: dict[str, Any] = {
            "amount": 1.5, "user": "nobody", "transaction_uuid": seen, "currency": "EUR", "request_uuid": ABSENT,
            "reference_transaction_uuid": ABSENT,
        }  # fmt: skip
        statuses = []
        for repair in (
            {"amount": 0},
            {"amount": 10},
            {"user": "ann"},
            {"transaction_uuid": "no uuid"},
            {"currency": "USD"},
            {"reference_transaction_uuid": "no uuid"},
            {"reference_transaction_uuid": fresh()},
            {"reference_transaction_uuid": seen},
            {"reference_transaction_uuid": bet},
            {"request_uuid": fresh()},
            {"transaction_uuid": fresh()},
        ):
            statuses.append((await supplier.client.call("wallet_win", body(**wrong)))["status"])
            wrong |= repair
        statuses.append((await supplier.client.call("wallet_win", body(**wrong)))["status"])
        assert statuses == [
            WRONG_TYPES,
            UNKNOWN,  # not above zero
            UNKNOWN,  # no such user
            DUPLICATE,
            WRONG_CURRENCY,
            DOES_NOT_EXIST,  # no reference
            DOES_NOT_EXIST,  # one that is no uuid
            DOES_NOT_EXIST,  # one of no bet
            UNKNOWN,  # a bet that has been won
            WRONG_SYNTAX,
            WRONG_TYPES,
            OK,
        ]


async def test_a_win_needs_a_bet_of_its_own_user(database: Database) -> None:
    async with open_supplier(database) as supplier:
        bet = fresh()
        await supplier.bet("ann", 100, transaction_uuid=bet)
        credit = await supplier.house.operator.call("credit", {"user_id": await supplier.user_id("ann"), "amount": "1"})
        before = await supplier.all_money()
        for reference in (bet, credit["transaction_id"], 7, None, "x"):
            assert (await supplier.win("bob", 100, reference))["status"] == DOES_NOT_EXIST
        assert await supplier.all_money() == before


async def test_a_rollback_gives_the_stake_back_once(database: Database) -> None:
    async with open_supplier(database) as supplier:
        bet = fresh()
        await supplier.bet("ann", 1_000, transaction_uuid=bet)
        sent = body("ann", currency=ABSENT, reference_transaction_uuid=bet)
        first = await supplier.client.call("wallet_rollback", sent)
        assert first == {
            "user": "ann", "status": OK, "request_uuid": sent["request_uuid"], "currency": "USD", "balance": 100_000,
        }  # fmt: skip
        second = await supplier.rollback("ann", bet)
        assert (second["status"], second["balance"]) == (OK, 100_000)
        await supplier.bet("ann", 7)
        assert await supplier.client.call("wallet_rollback", {**sent, "request_uuid": fresh()}) == first
        third = await supplier.rollback("ann", bet)
        assert (third["status"], third["balance"]) == (OK, 99_993)
        again = body("ann", 1_000, transaction_uuid=bet)
        assert (await supplier.client.call("wallet_bet", again))["balance"] == 99_000, "the stored answer"


async def test_a_win_after_a_rollback_and_a_rollback_after_a_win_move_nothing(database: Database) -> None:
    async with open_supplier(database) as supplier:
        rolled_back, won = fresh(), fresh()
        for bet in (rolled_back, won):
            await supplier.bet("ann", 1_000, transaction_uuid=bet)
        await supplier.rollback("ann", rolled_back)
        await supplier.win("ann", 3_000, won)
        before = await supplier.all_money()
        assert (await supplier.win("ann", 1_000, rolled_back))["status"] == DOES_NOT_EXIST
        assert (await supplier.rollback("ann", won))["status"] == UNKNOWN
        assert await supplier.all_money() == before
        assert await supplier.balance("ann") == 102_000


async def test_a_rollback_that_comes_before_its_bet_makes_it_a_duplicate(database: Database) -> None:
    async with open_supplier(database) as supplier:
        bet = fresh()
        answer = await supplier.rollback("ann", bet)
        assert (answer["status"], answer["balance"], answer["currency"]) == (OK, 100_000, "USD")
        assert (await supplier.bet("ann", 500, transaction_uuid=bet))["status"] == DUPLICATE
        assert (await supplier.win("ann", 500, bet))["status"] == DOES_NOT_EXIST
        assert await supplier.balance("ann") == 100_000
        # It is a tombstone for this user only.
        assert (await supplier.bet("bob", 500, transaction_uuid=bet))["status"] == OK


async def test_a_tombstone_aimed_at_anothers_bet_touches_neither_the_bet_nor_a_cent(database: Database) -> None:
    async with open_supplier(database) as supplier:
        bet = fresh()
        await supplier.bet("ann", 1_000, transaction_uuid=bet)
        before = await supplier.all_money()
        assert (await supplier.rollback("bob", bet))["status"] == OK
        assert await supplier.all_money() == before
        won = await supplier.win("ann", 2_000, bet)
        assert (won["status"], won["balance"]) == (OK, 101_000)
        other = fresh()
        await supplier.bet("ann", 1_000, transaction_uuid=other)
        await supplier.rollback("bob", other)
        given_back = await supplier.rollback("ann", other)
        assert (given_back["status"], given_back["balance"]) == (OK, 101_000)
        assert await supplier.balance("bob") == 100_000


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"user": "nobody"}, UNKNOWN),
        ({"user": ABSENT}, UNKNOWN),
        ({"reference_transaction_uuid": ABSENT}, WRONG_SYNTAX),
        ({"reference_transaction_uuid": "x"}, WRONG_TYPES),
        ({"reference_transaction_uuid": "x", "transaction_uuid": ABSENT}, WRONG_SYNTAX),
        ({"transaction_uuid": ABSENT}, WRONG_SYNTAX),
        ({"transaction_uuid": 7}, WRONG_TYPES),
        ({"request_uuid": ABSENT}, WRONG_SYNTAX),
        ({"request_uuid": "x"}, WRONG_TYPES),
        ({"round": 7}, WRONG_TYPES),
        ({"currency": "EUR", "amount": "nonsense", "token": "x"}, OK),
    ],
)
async def test_a_member_of_a_rollback_that_is_not_as_it_should_be(
    database: Database, change: dict[str, Any], status: str
) -> None:
    async with open_supplier(database) as supplier:
        bet = fresh()
        await supplier.bet("ann", 1_000, transaction_uuid=bet)
        sent = body("ann", currency=ABSENT) | {"reference_transaction_uuid": bet} | change
        sent = {name: value for name, value in sent.items() if value is not ABSENT}
        assert (await supplier.client.call("wallet_rollback", sent))["status"] == status
        assert await supplier.balance("ann") == (100_000 if status == OK else 99_000)


async def test_a_rollback_finds_the_bet_on_whatever_account_of_the_user_it_is(database: Database) -> None:
    async with open_supplier(database) as supplier:
        user_id = await supplier.user_id("ann")
        await supplier.house.operator.call("account_open", {"user_id": user_id, "currency": "EUR"})
        await supplier.house.operator.call("credit", {"user_id": user_id, "currency": "EUR", "amount": "5.00"})
        bet = fresh()
        placed = await supplier.bet("ann", 200, currency="EUR", transaction_uuid=bet)
        assert (placed["currency"], placed["balance"]) == ("EUR", 300)
        assert (await supplier.bet("ann", 200, transaction_uuid=bet))["status"] == DUPLICATE
        assert (await supplier.win("ann", 200, bet))["status"] == WRONG_CURRENCY
        answer = await supplier.rollback("ann", bet)
        assert (answer["status"], answer["currency"], answer["balance"]) == (OK, "EUR", 500)


async def test_a_tombstone_holds_on_all_accounts_of_its_user(database: Database) -> None:
    async with open_supplier(database) as supplier:
        user_id = await supplier.user_id("ann")
        await supplier.house.operator.call("account_open", {"user_id": user_id, "currency": "EUR"})
        await supplier.house.operator.call("credit", {"user_id": user_id, "currency": "EUR", "amount": "5.00"})
        bet = fresh()
        await supplier.rollback("ann", bet)
        assert (await supplier.bet("ann", 200, currency="EUR", transaction_uuid=bet))["status"] == DUPLICATE


# -- several at once --------------------------------------------------------------------------------------------------


async def test_members_of_one_message_see_each_other(database: Database) -> None:
    async with open_supplier(database) as supplier:
        bet, other = fresh(), fresh()
        same = body("ann", 100, transaction_uuid=other)
        members = [
            ("wallet_bet", body("ann", 1_000, transaction_uuid=bet)),
            ("wallet_bet", body("ann", "x")),
            ("wallet_win", body("ann", 3_000, reference_transaction_uuid=bet)),
            ("wallet_rollback", body("ann", reference_transaction_uuid=bet)),
            ("wallet_balance", {"user": "ann"}),
            ("wallet_bet", same),
            ("wallet_bet", {**same, "request_uuid": fresh()}),
            ("wallet_bet", {**same, "currency": "EUR"}),
            ("wallet_rollback", body("ann", reference_transaction_uuid=other)),
            ("wallet_win", body("ann", 1, reference_transaction_uuid=other)),
        ]
        await supplier.client.send(
            [
                {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
                for number, (method, params) in enumerate(members)
            ]
        )
        results = [reply["result"] for reply in await supplier.client.receive()]
        assert [result["status"] for result in results] == [
            OK, WRONG_TYPES, OK, UNKNOWN, OK, OK, OK, DUPLICATE, OK, DOES_NOT_EXIST,
        ]  # fmt: skip
        assert [result.get("balance") for result in results] == [
            99_000, None, 102_000, None, 102_000, 101_900, 101_900, None, 102_000, None,
        ]  # fmt: skip
        assert results[5] == results[6]


async def test_a_message_of_nothing_but_mistakes_is_answered_in_order(database: Database) -> None:
    async with open_supplier(database) as supplier:
        await supplier.client.send(
            [
                {"jsonrpc": "2.0", "id": 1, "method": "wallet_bet", "params": body("ann", "x")},
                {"jsonrpc": "2.0", "id": 2, "method": "wallet_rollback"},
            ]
        )
        assert [reply["result"]["status"] for reply in await supplier.client.receive()] == [WRONG_TYPES, UNKNOWN]


async def test_transaction_batch_takes_no_bets(database: Database) -> None:
    async with open_supplier(database) as supplier:
        error = await supplier.client.refused(
            "transaction_batch", {"items": [{"method": "wallet_bet", "params": body("ann", 1)}], "batch_id": fresh()}
        )
        assert error["data"]["code"] == "invalid_params"


# -- who may ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["wallet_create_users", "wallet_balance", "wallet_bet", "wallet_win", "wallet_rollback"]
)
async def test_only_services_and_operators_may_play(database: Database, method: str) -> None:
    async with open_supplier(database) as supplier:
        user = await supplier.house.client("user", "topup", user_id=await supplier.user_id("ann"))
        assert (await user.refused(method, body("ann", 1)))["data"]["code"] == "permission_denied"
        operator = await supplier.house.operator.call(method, body("ann", 1))
        assert operator["status" if method != "wallet_create_users" else "created"] is not None


async def test_a_token_of_one_account_sees_and_plays_with_no_other_wallet(database: Database) -> None:
    async with open_supplier(database) as supplier:
        bet = await supplier.client.call("wallet_bet", body("ann", 1))
        assert bet["status"] == "RS_OK"
        other = await supplier.house.person("1.00")
        for scope in ("service", "operator"):
            limited = await supplier.house.client(scope, account_id=other.account_id)
            for method in ("wallet_balance", "wallet_bet"):
                answer = await limited.call(method, body("ann", 1))
                assert (answer["status"], "balance" in answer) == ("RS_ERROR_UNKNOWN", False)


async def test_duplicate_keys_are_a_mistake_of_the_message_and_not_of_the_body(database: Database) -> None:
    async with open_supplier(database) as supplier:
        await supplier.client.send(
            '{"jsonrpc":"2.0","id":1,"method":"wallet_bet","params":{"user":"ann","user":"bob","amount":1}}'
        )
        assert (await supplier.client.receive())["error"]["code"] == -32600


async def token_of(house: House, user_id: int, *, expires_at_s: float | None = None) -> str:
    secret = new_secret()
    await house.books.create_token(
        token_hash=secret_hash(secret), user_id=user_id, account_id=None, scopes=["user"], expires_at_s=expires_at_s,
        label=None,
    )  # fmt: skip
    return secret


async def test_tokens_are_looked_at_only_when_told_so_and_never_for_wins_and_rollbacks(database: Database) -> None:
    async with open_supplier(database, wallet_tokens="check", token_refresh_s=0.001) as supplier:
        ann, bob = await supplier.user_id("ann"), await supplier.user_id("bob")
        good, others = await token_of(supplier.house, ann), await token_of(supplier.house, bob)
        old = await token_of(supplier.house, ann, expires_at_s=now_s() - 60)
        bet = body("ann", 100, token=good)
        first = await supplier.client.call("wallet_bet", bet)
        assert (first["status"], first["balance"]) == (OK, 99_900)
        for token, status in (
            (ABSENT, INVALID_TOKEN),
            (None, INVALID_TOKEN),
            (7, INVALID_TOKEN),
            ("x", INVALID_TOKEN),
            (new_secret(), INVALID_TOKEN),
            (others, INVALID_TOKEN),
            (old, TOKEN_EXPIRED),
        ):
            assert (await supplier.bet("ann", 100, token=token))["status"] == status
            asked = body("ann", token=token)
            assert (await supplier.client.call("wallet_balance", asked))["status"] == status
        assert (await supplier.client.call("wallet_balance", {"user": "ann", "token": good}))["balance"] == 99_900
        # What is judged before it.
        assert (await supplier.bet("nobody", 100, token="x"))["status"] == UNKNOWN
        assert (await supplier.bet("ann", 100, token="x", currency="EUR"))["status"] == WRONG_CURRENCY
        assert (await supplier.bet("ann", 200_000, token="x"))["status"] == NOT_ENOUGH_MONEY
        assert (await supplier.bet("ann", 1, token="x", transaction_uuid="x"))["status"] == INVALID_TOKEN
        assert await supplier.client.call("wallet_bet", {**bet, "token": old}) == first
        reference = bet["transaction_uuid"]
        assert (await supplier.win("ann", 5, reference, token="x"))["status"] == OK
        assert (await supplier.rollback("ann", fresh(), token="x"))["status"] == OK


async def test_with_tokens_one_connections_bets_keep_their_order(database: Database) -> None:
    async with open_supplier(database, wallet_tokens="check") as supplier:
        good = await token_of(supplier.house, await supplier.user_id("ann"))
        numbers = [
            await supplier.client.ask("wallet_bet", body("ann", 1, token=good if number % 3 else "x"))
            for number in range(12)
        ]
        members = [
            {"jsonrpc": "2.0", "id": -number, "method": "wallet_bet", "params": body("ann", 1, token=token)}
            for number, token in enumerate((good, "x", good), start=1)
        ]
        await supplier.client.send(members)
        replies = {}
        while len(replies) < len(numbers) + 1:
            reply = await supplier.client.receive()
            replies["batch" if isinstance(reply, list) else reply["id"]] = reply
        balances = [replies[number]["result"].get("balance") for number in numbers]
        assert [balance for balance in balances if balance is not None] == list(range(99_999, 99_991, -1))
        assert [one["result"].get("balance") for one in replies["batch"]] == [99_991, None, 99_990]


# -- the unit ---------------------------------------------------------------------------------------------------------


async def test_amounts_may_be_in_hundred_thousandths(database: Database) -> None:
    async with open_supplier(database, wallet_unit_decimals=5) as supplier:
        assert await supplier.balance("ann") == 100_000
        account = await supplier.client.call("account_get", {"account_id": await supplier.account_id("ann")})
        assert account["balance"] == "1.00"
        bet = fresh()
        placed = await supplier.bet("ann", 25_000, transaction_uuid=bet)
        assert (placed["status"], placed["balance"]) == (OK, 75_000)
        assert (await supplier.bet("ann", 25_000, transaction_uuid=bet))["balance"] == 75_000
        assert (await supplier.bet("ann", 1_500))["status"] == WRONG_TYPES, "no whole number of cents"
        assert (await supplier.bet("ann", 76_000))["status"] == NOT_ENOUGH_MONEY
        assert (await supplier.win("ann", 1_000, bet))["balance"] == 76_000
        posted = await supplier.client.call("transaction_get", {"transaction_id": bet})
        assert posted["amount"] == "0.25"


async def test_a_currency_with_more_decimals_than_the_unit_is_the_wrong_one(database: Database) -> None:
    async with open_supplier(database, wallet_unit_decimals=2) as supplier:
        user_id = await supplier.user_id("ann")
        await supplier.house.operator.call("account_open", {"user_id": user_id, "currency": "BHD"})
        await supplier.house.operator.call("credit", {"user_id": user_id, "currency": "BHD", "amount": "5.001"})
        assert (await supplier.bet("ann", 1, currency="BHD"))["status"] == WRONG_CURRENCY
        assert (await supplier.bet("ann", 1, currency="BHD"))["status"] == WRONG_CURRENCY
        asked = {"user": "ann", "currency": "BHD"}
        assert (await supplier.client.call("wallet_balance", asked))["status"] == WRONG_CURRENCY


async def test_a_unit_in_which_the_first_balance_cannot_be_told_creates_nobody(database: Database) -> None:
    for decimals in (1, 8):
        async with open_house(database, wallet_unit_decimals=decimals) as house:
            answer = await house.service.call("wallet_create_users", {"users": ["ann"]})
            assert answer == {"created": 0, "status": WRONG_CURRENCY}


async def test_a_daemon_with_another_unit_moves_no_money(database: Database) -> None:
    async with open_house(database, wallet_unit_decimals=5) as other, open_supplier(database) as supplier:
        # It came up before the unit was fixed.
        refused = await other.service.refused("wallet_create_users", {"users": ["cid"]})
        assert refused["data"]["code"] == "unavailable"
        assert (await other.service.call("wallet_bet", body("ann", 1_000)))["status"] == UNKNOWN
        assert (await other.service.call("wallet_balance", {"user": "ann"}))["status"] == UNKNOWN
        assert await supplier.balance("ann") == 100_000
