"""Amounts: what is one, what it is worth in minor units, and how it is written."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledgerd_protocol.money import (
    MINOR_MAX,
    SCALE_MAX,
    AmountOutOfRange,
    AmountPrecision,
    AmountSyntax,
    amount_text,
    iso_scale,
    to_minor,
    to_text,
)

NOT_AMOUNTS = [
    "", " ", "1 ", " 1", "+1", ".5", "5.", "01", "00", "1e2", "1E2", "1_000", "1,000", "0x1", "NaN", "Infinity",
    "-Infinity", "--1", "1.2.3", "1.123456789", "1234567890123456789", "\u0661\u0662", "1\u0660", "\uff11", "1\n", "$1",
    "true", "null",
]  # fmt: skip


@pytest.mark.parametrize("text", ["0", "1", "10.00", "0.00000001", "999999999999999999", "-1", "-0", "1.10"])
def test_an_amount_is_the_same_text_whether_sent_as_string_or_as_number(text: str) -> None:
    assert amount_text(json.dumps(text).encode()) == text
    assert amount_text(text.encode()) == text


@pytest.mark.parametrize("text", NOT_AMOUNTS)
def test_text_that_is_not_an_amount_is_refused_as_string_and_as_bare_json(text: str) -> None:
    with pytest.raises(AmountSyntax):
        amount_text(json.dumps(text).encode())
    with pytest.raises(AmountSyntax):
        amount_text(text.encode())


@pytest.mark.parametrize("raw", [b"null", b"true", b"[1]", b'{"a":1}', b'"\xff"', b'"1', b'["1"]'])
def test_a_value_of_another_json_type_is_not_an_amount(raw: bytes) -> None:
    with pytest.raises(AmountSyntax):
        amount_text(raw)


def test_an_escaped_digit_in_a_string_is_a_digit() -> None:
    assert amount_text(rb'"1\u0030.5"') == "10.5"


@given(st.binary(max_size=40))
def test_amount_text_answers_or_refuses_but_never_fails_otherwise(raw: bytes) -> None:
    try:
        text = amount_text(raw)
    except AmountSyntax:
        return
    assert text.isascii()
    assert float(text) is not None


@pytest.mark.parametrize(
    ("text", "scale", "minor"),
    [("1", 2, 100), ("1.5", 2, 150), ("1.50", 2, 150), ("0.01", 2, 1), ("7", 0, 7), ("0.00000001", 8, 1)],
)
def test_an_amount_counts_minor_units(text: str, scale: int, minor: int) -> None:
    assert to_minor(text, scale) == minor


@pytest.mark.parametrize(("text", "scale"), [("1.500", 2), ("1.0", 0), ("0.001", 2), ("-1.000", 2), ("0.000", 2)])
def test_more_decimals_than_the_currency_has_are_refused_never_rounded_even_if_zero(text: str, scale: int) -> None:
    with pytest.raises(AmountPrecision):
        to_minor(text, scale)


@pytest.mark.parametrize(
    ("text", "scale"), [("0", 2), ("0.00", 2), ("-1", 2), ("-0", 2), ("10000000000000000", 2), ("10000000000", 8)]
)
def test_nothing_negative_zero_or_too_large_is_an_amount_to_move(text: str, scale: int) -> None:
    with pytest.raises(AmountOutOfRange):
        to_minor(text, scale)


def test_zero_is_accepted_where_it_is_allowed_but_minus_zero_is_not() -> None:
    assert to_minor("0.00", 2, zero_allowed=True) == 0
    with pytest.raises(AmountOutOfRange):
        to_minor("-0", 2, zero_allowed=True)


def test_the_largest_amount_is_accepted_and_one_more_is_not() -> None:
    assert to_minor("9999999999999999.99", 2) == MINOR_MAX
    assert to_minor("999999999999999999", 0) == MINOR_MAX
    with pytest.raises(AmountOutOfRange):
        to_minor("10000000000000000.00", 2)


@given(st.integers(min_value=-MINOR_MAX, max_value=MINOR_MAX), st.integers(min_value=0, max_value=SCALE_MAX))
def test_written_and_read_again_every_amount_is_itself(minor: int, scale: int) -> None:
    text = to_text(minor, scale)
    whole, _, decimals = text.removeprefix("-").partition(".")
    assert len(decimals) == scale
    assert whole == "0" or not whole.startswith("0")
    if minor > 0:
        assert to_minor(amount_text(json.dumps(text).encode()), scale) == minor
    assert int(text.replace(".", "")) == minor


@pytest.mark.parametrize(
    ("code", "scale"), [("USD", 2), ("JPY", 0), ("KWD", 3), ("CLF", 4), ("XAU", None), ("ZZZ", None)]
)
def test_the_scale_of_a_currency_is_that_of_iso_4217(code: str, scale: int | None) -> None:
    assert iso_scale(code) == scale
