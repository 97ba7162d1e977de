"""Hypothesis on the pure targets: texts that are nearly JSON, and nearly requests."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import codec
from tests.fuzz.profile import examples

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=10,
)
REQUESTS = st.fixed_dictionaries(
    {"jsonrpc": st.sampled_from(["2.0", "2.0", "2.0", "1.0", None])},
    optional={
        "id": st.integers() | st.text(max_size=260) | VALUES,
        "method": st.sampled_from(["credit", "balance_get", "\x00"]) | VALUES,
        "params": VALUES,
        "more": VALUES,
    },
)
MESSAGES = st.one_of(REQUESTS, st.lists(REQUESTS | VALUES, max_size=5), VALUES)
PIECES = st.lists(
    st.sampled_from(
        ['{', '}', '[', ']', ',', ':', '"id"', '"id":1', '"jsonrpc":"2.0"', '"method":"m"', '"params":', '1', '-0',
         '1.5', '"a"', '"\\u0061"', '"\\u0000"', '"\\ud800"', '"\\ud83d\\ude00"', 'NaN', 'null', ' ', '\\', '"',
         '\ud800', '\ufeff', '{"a":1,"a":2}', "[[[[[[", "]]]]]]"]
    ),
    max_size=14,
).map("".join)  # fmt: skip


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _bytes(value: Any) -> bytes:
    return json.dumps(value).encode()


ENVELOPE = '{"jsonrpc":"2.0","id":1,"method":"m","params":'
NUMBERS = st.one_of(
    st.from_regex(rb'\A"?-?[0-9]{0,20}(\.[0-9]{0,9})?([eE_+ ][0-9]?)?"?\Z'),
    st.from_regex(rb'\A("-?[1-9][0-9]{15,19}(\.[0-9]{1,9})?"|-?[1-9][0-9]{15,19})\Z'),
)
FIRST = st.binary(min_size=1, max_size=1)


DEEP = st.integers(0, 40).map(lambda levels: f"{ENVELOPE}{'[' * levels}{']' * levels}}}")


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """A message as text, now and then with something cut out or put in."""
    text: str = draw(MESSAGES.map(_text) | PIECES | DEEP)
    if draw(st.booleans()):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(PIECES) + text[at + draw(st.integers(0, 4)) :]
    return text.encode("utf-8", "surrogateescape" if _encodable(text) else "surrogatepass")


def _encodable(text: str) -> bool:
    return not any("\ud800" <= sign <= "\udfff" for sign in text)


@examples(600)
@given(st.sampled_from([b"N", b"L"]), texts())
def test_the_codec_and_a_second_reading_agree_on_every_text(limits: bytes, text: bytes) -> None:
    codec.frames(limits + text)


@examples(200)
@given(st.binary(max_size=80))
def test_the_codec_and_a_second_reading_agree_on_bytes(data: bytes) -> None:
    codec.frames(data)


@examples(400)
@given(FIRST, texts() | st.dictionaries(st.sampled_from(["amount", "account_id", "items", "x"]), VALUES).map(_bytes))
def test_parameters_are_read_the_same_in_every_spelling_and_mistakes_have_a_place(first: bytes, text: bytes) -> None:
    codec.parameters(first + text)


@examples(400)
@given(FIRST, NUMBERS | st.binary(max_size=12))
def test_amounts_are_what_decimal_says_and_nothing_else_is_one(first: bytes, raw: bytes) -> None:
    codec.amounts(first + raw)


@examples(300)
@given(texts() | st.dictionaries(st.text(max_size=4), VALUES).map(_bytes))
def test_metadata_has_one_canonical_text(data: bytes) -> None:
    codec.metadata(data)


@examples(150)
@given(st.binary(max_size=80))
def test_cursors_are_read_where_they_were_written_and_nowhere_else(data: bytes) -> None:
    codec.cursors(data)
