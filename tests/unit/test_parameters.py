"""Parameters: the forms that are accepted, and every mistake said at once."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.messages import (
    BATCH_ITEMS_MAX,
    BalanceGet,
    Credit,
    LedgerSubscribe,
    Nothing,
    Params,
    SubscribeOptions,
    TransactionBatch,
    Transfer,
    WalletBet,
)
from ledgerd_protocol.methods import METHODS
from ledgerd_protocol.parameters import decode_items, decode_params
from ledgerd_protocol.problems import PROBLEMS_MAX, problems_of

ID = "01890a5d-ac96-774b-bcce-b302099a8057"


def read(method: str, raw: str) -> Params:
    return decode_params(METHODS[method], raw.encode())


def mistakes(method: str, raw: str) -> dict[str, str]:
    """What is refused, by pointer. The method's params must be refused, and with invalid_params."""
    with pytest.raises(LedgerError) as refusal:
        read(method, raw)
    assert refusal.value.code is ErrorCode.INVALID_PARAMS
    assert refusal.value.applied is False
    return {problem["pointer"]: problem["detail"] for problem in refusal.value.data["errors"]}


def batch(items: list[Any], **more: Any) -> TransactionBatch:
    params = read("transaction_batch", json.dumps({"items": items, **more}))
    assert isinstance(params, TransactionBatch)
    return params


def item_mistakes(items: list[Any], **more: Any) -> dict[str, str]:
    with pytest.raises(LedgerError) as refusal:
        decode_items(batch(items, **more))
    assert refusal.value.code is ErrorCode.INVALID_PARAMS
    return {problem["pointer"]: problem["detail"] for problem in refusal.value.data["errors"]}


# -- forms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", ["", "null", "{}", "[]", "[{}]"])
def test_absent_null_and_empty_params_are_the_same(raw: str) -> None:
    assert read("system_info", raw) == Nothing()
    assert read("balance_get", raw) == BalanceGet()
    assert set(mistakes("credit", raw)) == {"/0/amount" if raw == "[{}]" else "/amount"}


@pytest.mark.parametrize(
    "raw", ['{"account_id":7,"version":3}', '[{"account_id":7,"version":3}]', '[ {"version":3,"account_id":7} ]']
)
def test_one_object_in_an_array_is_by_name(raw: str) -> None:
    assert read("balance_get", raw) == BalanceGet(account_id=7, version=3)


def test_positional_params_are_in_the_order_of_the_fields() -> None:
    assert read("balance_get", "[7]") == BalanceGet(account_id=7)
    options = SubscribeOptions(account_ids=[1, 2], mode="latest")
    assert read("ledger_subscribe", '["balances",{"account_ids":[1,2],"mode":"latest"}]') == LedgerSubscribe(
        channel="balances", options=options
    )


def test_positional_params_of_every_reading_method_follow_its_fields() -> None:
    for method in METHODS.values():
        if method.positional and method.params is not Nothing and not method.params.lenient:
            pointers = set(mistakes(method.name, "[" + ",".join(["[]"] * len(method.params.__struct_fields__)) + "]"))
            assert {f"/{place}" for place in range(len(method.params.__struct_fields__))} <= pointers | {"/1"}


MONEY_METHODS = sorted(name for name, method in METHODS.items() if method.money and not method.params.lenient)
LENIENT_METHODS = sorted(name for name, method in METHODS.items() if method.params.lenient)


@pytest.mark.parametrize("method", MONEY_METHODS)
@pytest.mark.parametrize("raw", ["[1]", '["x",{}]', "[{},{}]", "[[]]", "[null]", '"x"', "7", "true", "[7,8,9]"])
def test_money_methods_take_an_object_or_an_array_of_one_and_nothing_else(method: str, raw: str) -> None:
    assert set(mistakes(method, raw)) == {""}


@pytest.mark.parametrize("method", LENIENT_METHODS)
@pytest.mark.parametrize("raw", ["", "null", "[]", "{}", '"x"', "7", '{"x":1}', "[[[[", "[1" + ",1" * 99 + "]"])
def test_lenient_methods_read_what_is_no_object_as_one_without_members(method: str, raw: str) -> None:
    assert read(method, raw) == METHODS[method].params()


@given(st.sampled_from(LENIENT_METHODS), st.binary(max_size=40))
def test_lenient_methods_refuse_nothing_at_all(method: str, raw: bytes) -> None:
    assert isinstance(decode_params(METHODS[method], raw), METHODS[method].params)


def test_members_of_lenient_methods_stay_as_they_were_spelled() -> None:
    params = read("wallet_bet", '{"amount":1.50e1,"user":null,"unheard_of":1}')
    assert isinstance(params, WalletBet)
    assert bytes(params.amount) == b"1.50e1"
    assert bytes(params.user) == b"null"


@pytest.mark.parametrize("raw", ['"x"', "7", "true", "-1.5"])
def test_scalars_are_no_params(raw: str) -> None:
    assert mistakes("system_ping", raw) == {"": "Expected an object or an array."}


def test_too_many_positional_params_are_named_by_their_place() -> None:
    assert set(mistakes("system_ping", '["a","b","c"]')) == {"/1", "/2"}
    assert set(mistakes("system_info", "[1]")) == {"/0"}


# -- mistakes ------------------------------------------------------------------------------------------------------


def test_all_mistakes_are_said_at_once_each_with_its_pointer() -> None:
    found = mistakes(
        "transfer",
        json.dumps(
            {
                "amount": "1e2",
                "acount": 7,
                "a/b~c": 1,
                "source_account_id": 0,
                "destination_user_id": "7",
                "transaction_id": ID.upper(),
                "currency": "usd",
                "direction": "sideways",
                "metadata": [],
                "reference": "x" * 256,
                "reason": None,
            }
        ),
    )
    assert set(found) == {
        "/amount", "/acount", "/a~1b~0c", "/source_account_id", "/destination_user_id", "/transaction_id", "/currency",
        "/direction", "/metadata", "/reference", "/reason",
    }  # fmt: skip
    assert "UUID" in found["/transaction_id"]
    assert found["/direction"] == "Expected one of debit, credit."
    assert found["/destination_user_id"] == "Expected an integer, got a string."
    assert "sideways" not in "".join(found.values())


def test_a_missing_parameter_is_named_where_it_should_be() -> None:
    assert mistakes("session_login", '{"email":"a@b.c"}') == {"/password": "This parameter is required."}
    assert mistakes("session_login", '["a@b.c"]') == {"/1": "This parameter is required."}


def test_an_unknown_parameter_is_refused_with_the_nearest_known_one() -> None:
    assert mistakes("credit", '{"amount":"1","acount_id":7}') == {
        "/acount_id": "There is no such parameter. Did you mean account_id?"
    }


def test_pointers_lead_into_the_params_as_they_were_sent() -> None:
    assert set(mistakes("credit", '[{"amount":"x"}]')) == {"/0/amount"}
    assert set(mistakes("balance_get", '[7,null,"usd"]')) == {"/1", "/2"}


def test_mistakes_inside_nested_options_and_maps_are_found() -> None:
    options = {
        "account_ids": [1, 0, "2", 3.0],
        "since": {"epoch": 7, "versions": {"x": 1, "7": -1, "8": 8}, "extra": 1},
        "moda": "stream",
        "heartbeat_ms": 999,
    }
    assert set(mistakes("ledger_subscribe", json.dumps({"channel": "balances", "options": options}))) == {
        "/options/account_ids/1",
        "/options/account_ids/2",
        "/options/account_ids/3",
        "/options/since/epoch",
        "/options/since/versions/x",
        "/options/since/versions/7",
        "/options/since/extra",
        "/options/moda",
        "/options/heartbeat_ms",
    }
    assert set(mistakes("ledger_subscribe", json.dumps(["balances", options]))) >= {"/1/since/extra", "/1/moda"}


def test_a_value_of_the_wrong_type_for_an_object_or_list_is_one_mistake() -> None:
    assert set(mistakes("ledger_subscribe", '{"channel":"balances","options":7}')) == {"/options"}
    assert set(mistakes("ledger_subscribe", '{"channel":"balances","options":{"account_ids":{}}}')) == {
        "/options/account_ids"
    }
    assert set(mistakes("ledger_subscribe", '{"channel":"balances","options":{"account_ids":[]}}')) == {
        "/options/account_ids"
    }


@pytest.mark.parametrize(
    ("method", "given_names"),
    [
        ("balance_get", ["account_id", "user_id"]),
        ("balance_get", ["version", "min_version"]),
        ("account_get", ["account_id", "user_id"]),
        ("credit", ["account_id", "user_id"]),
        ("debit", ["account_id", "user_id"]),
        ("account_set_limit", ["account_id", "user_id"]),
        ("transaction_cancel", ["account_id", "user_id"]),
        ("transaction_list", ["account_id", "user_id"]),
        ("transfer", ["source_account_id", "source_user_id"]),
        ("transfer", ["destination_account_id", "destination_user_id"]),
    ],
)
def test_an_account_is_named_in_one_way_only(method: str, given_names: list[str]) -> None:
    needed = {"amount": "1", "overdraft_limit": "1", "transaction_id": ID}
    fields = METHODS[method].params.__struct_fields__
    valid = {name: value for name, value in needed.items() if name in fields}
    for name in given_names:
        read(method, json.dumps({**valid, name: 7}))
    found = mistakes(method, json.dumps({**valid, **dict.fromkeys(given_names, 7)}))
    assert list(found) == [f"/{given_names[1]}"]
    assert "at most one of" in found[f"/{given_names[1]}"]


def test_a_token_may_belong_to_a_user_and_to_one_account() -> None:
    read("token_create", '{"user_id":1,"account_id":2,"scopes":["read"]}')


def test_amounts_may_be_strings_or_numbers_and_stay_raw() -> None:
    for spelling in ('"10.00"', "10.00", "-5", '"0"', "10.123456"):
        params = read("credit", f'{{"amount":{spelling}}}')
        assert isinstance(params, Credit)
        assert bytes(params.amount) == spelling.encode()


@pytest.mark.parametrize(
    "spelling", ["1e2", '"1e2"', "null", "true", '"NaN"', '"1,00"', "[1]", '" 1"', '""', "1.123456789"]
)
def test_what_does_not_match_the_grammar_of_amounts_is_invalid(spelling: str) -> None:
    assert set(mistakes("debit", f'{{"amount":{spelling}}}')) == {"/amount"}
    assert set(mistakes("account_set_limit", f'{{"account_id":7,"overdraft_limit":{spelling}}}')) == {
        "/overdraft_limit"
    }


def test_metadata_stays_raw_and_its_limits_are_checked() -> None:
    params = read("transfer", '{"amount":"1","metadata":{"b":1.0,"a":{}}}')
    assert isinstance(params, Transfer)
    assert params.metadata is not UNSET
    assert bytes(params.metadata) == b'{"b":1.0,"a":{}}'
    for bad in ("7", "null", '{"a":[[[[]]]]}', '{"a":"' + "x" * 4096 + '"}'):
        assert set(mistakes("transfer", f'{{"amount":"1","metadata":{bad}}}')) == {"/metadata"}


def test_of_very_many_mistakes_the_first_are_named_and_the_detail_says_that_there_are_more() -> None:
    with pytest.raises(LedgerError) as refusal:
        read("system_ping", json.dumps({f"x{number}": 1 for number in range(PROBLEMS_MAX + 5)}))
    assert len(refusal.value.data["errors"]) == PROBLEMS_MAX
    assert f"More than {PROBLEMS_MAX}" in refusal.value.detail


def test_a_mistake_is_answered_briefly_however_long_its_name_is() -> None:
    name = "~" * 100_000
    assert mistakes("credit", json.dumps({"amount": "1", name: 1})) == {
        "": "There is no parameter with a name of 100000 characters."
    }
    options = {"since": {"epoch": "e", "versions": {name: -1}}}
    assert set(mistakes("ledger_subscribe", json.dumps({"channel": "balances", "options": options}))) == {
        "/options/since/versions"
    }


# -- batches of commands -------------------------------------------------------------------------------------------


def test_the_items_of_a_batch_are_read_in_order_by_their_methods() -> None:
    items = [
        {"method": "credit", "params": {"amount": "1", "transaction_id": ID}},
        {"method": "transfer", "params": [{"amount": 2, "transaction_id": ID, "direction": "credit"}]},
    ]
    credit, transfer = decode_items(batch(items))
    assert credit[0].name == "credit"
    assert isinstance(credit[1], Credit)
    assert isinstance(transfer[1], Transfer)
    assert transfer[1].direction == "credit"


def test_mistakes_of_all_items_are_said_at_once() -> None:
    found = item_mistakes(
        [
            {"method": "credit", "params": {"amount": "x"}},
            {"method": "transaction_batch", "params": {"items": []}},
            {"method": "transfer", "params": [{"amount": "1", "bogus": 1}]},
            {"method": "debit"},
            {"method": "credit", "params": [1]},
            {"method": "no_such_method"},
        ],
        batch_id=ID,
    )
    assert set(found) == {
        "/items/0/params/amount", "/items/1/method", "/items/2/params/0/bogus", "/items/3/params/amount",
        "/items/4/params", "/items/5/method",
    }  # fmt: skip


def test_mistakes_in_items_are_said_together_with_those_of_the_batch_itself() -> None:
    raw = json.dumps(
        {
            "items": [
                {"method": "credit", "params": {"amount": "x"}, "extra": 1},
                7,
                {"method": 5},
                {"method": "user_get"},
            ],
            "atomic": "yes",
            "batch_id": "nil",
        }
    )
    assert set(mistakes("transaction_batch", raw)) == {
        "/items/0/extra", "/items/0/params/amount", "/items/1", "/items/2/method", "/items/3/method", "/atomic",
        "/batch_id",
    }  # fmt: skip
    assert set(mistakes("transaction_batch", f"[{raw}]")) >= {"/0/items/0/params/amount", "/0/atomic"}


@pytest.mark.parametrize("raw", ['{"items":[]}', '{"items":7}', '{"items":{}}', "{}"])
def test_a_batch_needs_at_least_one_item(raw: str) -> None:
    assert set(mistakes("transaction_batch", raw)) == {"/items"}


def test_a_batch_that_is_atomic_or_has_an_item_without_id_needs_a_batch_id() -> None:
    with_id, without_id = (
        {"method": "credit", "params": {"amount": "1", **more}} for more in ({"transaction_id": ID}, {})
    )
    assert len(decode_items(batch([with_id]))) == 1
    assert set(item_mistakes([with_id, without_id])) == {"/batch_id"}
    assert set(item_mistakes([with_id], atomic=True)) == {"/batch_id"}
    assert len(decode_items(batch([with_id, without_id], atomic=True, batch_id=ID))) == 2


def test_a_batch_over_the_limit_is_too_large_whatever_is_in_it() -> None:
    assert (
        len(decode_items(batch([{"method": "credit", "params": {"amount": 1}}] * BATCH_ITEMS_MAX, batch_id=ID)))
        == BATCH_ITEMS_MAX
    )
    with pytest.raises(LedgerError) as refusal:
        decode_items(batch([{"method": "x"}] * (BATCH_ITEMS_MAX + 1)))
    assert refusal.value.code is ErrorCode.BATCH_TOO_LARGE


# -- whatever comes ------------------------------------------------------------------------------------------------

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(["1.00", "x", "USD", ID, "debit", "credit", "2026-01-01T00:00:00Z", "balances", "read", "stream"])
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
)
PARAMETERS = {name for method in METHODS.values() for name in method.params.__struct_fields__}
NAMES = st.sampled_from(sorted(PARAMETERS | {"epoch", "versions", "7"}))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from(sorted(METHODS)), st.dictionaries(NAMES, VALUES, max_size=6) | st.lists(VALUES, max_size=4) | VALUES
)
def test_any_json_is_either_decoded_or_refused_with_pointers_that_lead_somewhere(name: str, value: Any) -> None:
    refusal = None
    try:
        params = decode_params(METHODS[name], msgspec.json.encode(value))
    except LedgerError as error:
        refusal = error
    if refusal is None:
        assert isinstance(params, METHODS[name].params)
        return
    assert refusal.code is ErrorCode.INVALID_PARAMS
    assert refusal.data["errors"]
    for problem in refusal.data["errors"]:
        assert problem["detail"].endswith((".", "?"))
        assert_leads_somewhere(value or {}, problem["pointer"])


def assert_leads_somewhere(value: Any, pointer: str) -> None:
    """Follow a pointer; only its last step may lead to something that is missing."""
    steps = [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]
    for position, step in enumerate(steps):
        last = position == len(steps) - 1
        if isinstance(value, dict):
            assert last or step in value
            value = value.get(step)
        elif isinstance(value, list):
            assert last or int(step) < len(value)
            value = value[int(step)] if int(step) < len(value) else None
        else:
            assert last
            assert value is None


@given(st.sampled_from(sorted(set(METHODS) - set(LENIENT_METHODS))), st.dictionaries(NAMES, VALUES, max_size=6))
def test_the_walk_that_explains_finds_a_mistake_exactly_when_decoding_does(name: str, value: dict[str, Any]) -> None:
    raw = msgspec.json.encode(value)
    found = list(problems_of(METHODS[name].params, raw))
    try:
        decode_params(METHODS[name], raw)
    except LedgerError:
        assert found
    else:
        assert not found
