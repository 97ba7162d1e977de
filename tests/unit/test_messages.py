"""The table of methods, the grammars of its parameters, and the table of errors."""

from __future__ import annotations

import re
import uuid
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledgerd_protocol import messages
from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.fields import CurrencyCode, Email, Time, TransactionId, is_transaction_id
from ledgerd_protocol.messages import Params
from ledgerd_protocol.methods import BATCHABLE, METHODS

SCOPES = {"read", "user", "topup", "service", "operator"}
MOVES_MONEY = {
    "credit", "debit", "transfer", "transaction_batch", "transaction_cancel", "transaction_reverse",
    "hold_place", "hold_capture", "hold_release",
    "account_set_limit", "account_freeze", "account_unfreeze", "account_close",
    "wallet_bet", "wallet_win", "wallet_rollback", "advance_request", "advance_repay",
}  # fmt: skip


def matches(grammar: Any, text: str) -> bool:
    try:
        msgspec.convert(text, grammar)
    except msgspec.ValidationError:
        return False
    return True


def test_the_table_names_every_method_once_and_under_its_own_name() -> None:
    assert all(name == method.name for name, method in METHODS.items())
    assert all(re.fullmatch("[a-z]+(_[a-z]+)*", name) for name in METHODS if name != "rpc.discover")


def test_methods_that_move_money_are_marked_and_take_no_positional_params() -> None:
    assert {name for name, method in METHODS.items() if method.money} == MOVES_MONEY
    assert not any(METHODS[name].positional for name in MOVES_MONEY)
    assert all(method.positional for name, method in METHODS.items() if name not in MOVES_MONEY)


def test_only_known_scopes_are_asked_for_and_money_always_needs_one() -> None:
    for method in METHODS.values():
        assert method.scopes <= SCOPES
        if method.money:
            assert method.scopes
            assert "read" not in method.scopes


def test_what_a_batch_takes_are_money_methods_that_can_have_an_id() -> None:
    for name in BATCHABLE:
        assert METHODS[name].money
        assert "transaction_id" in METHODS[name].params.__struct_fields__


def test_every_params_struct_is_frozen_and_refuses_unknown_names_unless_it_is_lenient() -> None:
    structs = [value for value in vars(messages).values() if isinstance(value, type) and issubclass(value, Params)]
    assert len(structs) > 20
    for struct in structs:
        assert struct.__struct_config__.frozen
        assert struct.__struct_config__.forbid_unknown_fields is not struct.lenient


def test_groups_of_which_one_may_be_given_name_optional_fields() -> None:
    for method in METHODS.values():
        fields = {field.name: field for field in msgspec.structs.fields(method.params)}
        for group in method.params.exclusive:
            assert len(group) > 1
            assert not any(fields[name].required for name in group)


@given(st.uuids())
def test_a_uuid_of_any_version_in_canonical_lower_case_is_a_transaction_id(value: uuid.UUID) -> None:
    good = value.int not in (0, 2**128 - 1)
    assert matches(TransactionId, str(value)) is good
    assert is_transaction_id(str(value)) is good
    if str(value) != str(value).upper():
        assert not matches(TransactionId, str(value).upper())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "01890a5dac96774bbcceb302099a8057",
        "{01890a5d-ac96-774b-bcce-b302099a8057}",
        "01890a5d-ac96-774b-bcce-b302099a8057\n",
        " 01890a5d-ac96-774b-bcce-b302099a8057",
        "01890a5d-ac96-774b-bcce-b302099a805",
        "0189\u0660a5d-ac96-774b-bcce-b302099a8057",
    ],
)
def test_nil_max_and_other_spellings_are_not_transaction_ids(text: str) -> None:
    assert not matches(TransactionId, text)
    assert not is_transaction_id(text)


@pytest.mark.parametrize("text", ["USD", "KWD", "BTC", "POINTS", "A1B2", "ABCDEFGHIJKL"])
def test_currency_codes_of_three_to_twelve_capitals_are_accepted(text: str) -> None:
    assert matches(CurrencyCode, text)


@pytest.mark.parametrize("text", ["", "US", "usd", "USD\n", " USD", "1USD", "ABCDEFGHIJKLM", "ÜSD", "US D", "USD\x00"])
def test_other_currency_codes_are_refused(text: str) -> None:
    assert not matches(CurrencyCode, text)


@pytest.mark.parametrize(
    "text",
    ["2026-01-31T23:59:59Z", "2026-01-31T23:59:59.123456Z", "2026-01-31t23:59:59.1z", "2026-01-31T23:59:59+05:30"],
)
def test_times_with_an_offset_are_accepted(text: str) -> None:
    assert matches(Time, text)


@pytest.mark.parametrize(
    "text",
    ["2026-01-31T23:59:59", "2026-01-31", "2026-01-31 23:59:59Z", "2026-01-31T23:59Z", "2026-01-31T23:59:59.1234567Z",
     "2026-01-31T23:59:59Z\n", "2026-01-31T23:59:59+0530", "٢٠٢٦-01-31T23:59:59Z", "now"],
)  # fmt: skip
def test_times_without_an_offset_or_in_other_spellings_are_refused(text: str) -> None:
    assert not matches(Time, text)


@pytest.mark.parametrize(
    ("text", "good"),
    [("a@b.c", True), ("a@b", False), ("a@b.c\n", False), ("a b@c.d", False), ("@b.c", False), ("a@b.", False),
     ("a@b.c.d", True), ("a@b..c", False), ("a@.b", False), ("a@b@c.d", False), ("a\x00@b.c", False)],
)  # fmt: skip
def test_an_email_has_a_name_a_host_and_a_domain(text: str, good: bool) -> None:
    assert matches(Email, text) is good


# -- errors --------------------------------------------------------------------------------------------------------


def test_application_errors_are_positive_and_the_envelopes_are_those_of_json_rpc() -> None:
    for code in ErrorCode:
        assert (code > 0) or (-32700 <= code <= -32600)
        assert re.fullmatch("[a-z]+(_[a-z]+)*", code.text)
        assert code.sentence.endswith(".")


def test_integers_and_strings_of_errors_are_those_promised_for_ever() -> None:
    promised = {
        -32700: "parse_error",
        -32600: "invalid_request",
        -32601: "method_not_found",
        -32602: "invalid_params",
        -32603: "internal_error",
        1001: "unauthenticated",
        1002: "invalid_credentials",
        1003: "session_expired",
        1004: "permission_denied",
        1005: "user_disabled",
        2001: "not_found",
        2002: "already_exists",
        2003: "account_closed",
        2004: "account_not_empty",
        2005: "account_frozen",
        2010: "invalid_cursor",
        3001: "insufficient_funds",
        3002: "currency_mismatch",
        3003: "amount_precision",
        3004: "amount_out_of_range",
        3005: "same_account",
        3006: "limit_exceeded",
        3007: "already_reversed",
        3008: "reference_not_found",
        3009: "hold_not_active",
        3010: "not_reversible",
        4001: "transaction_id_reused",
        4002: "already_posted",
        4003: "transaction_id_cancelled",
        6001: "advance_not_active",
        7001: "subscription_not_found",
        7002: "too_many_subscriptions",
        8001: "rate_limited",
        8002: "batch_too_large",
        8003: "response_too_large",
        8004: "overloaded",
        8005: "timeout",
        8007: "shutting_down",
        8008: "unavailable",
    }
    assert {int(code): code.text for code in ErrorCode} == promised


def test_an_error_on_the_wire_keeps_its_own_members_beside_the_common_ones() -> None:
    wire = LedgerError(ErrorCode.NOT_FOUND, "No such account.", resource="destination").to_wire()
    assert wire["code"] == 2001
    assert wire["message"] == ErrorCode.NOT_FOUND.sentence
    assert wire["data"] == {
        "code": "not_found",
        "retryable": False,
        "applied": False,
        "detail": "No such account.",
        "resource": "destination",
    }
