"""The canonical text of metadata."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledgerd_protocol.metadata import METADATA_BYTES_MAX, METADATA_DEPTH_MAX, canonical_metadata

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max((depth(inner) for inner in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((depth(inner) for inner in value), default=0)
    return 0


def test_keys_are_sorted_at_every_depth_and_white_space_is_gone() -> None:
    raw = b' { "b" : [ { "z" : 1 , "a" : 2 } , [ ] ] , "a" : { } } '
    assert canonical_metadata(raw) == '{"a":{},"b":[{"a":2,"z":1},[]]}'


def test_a_list_keeps_its_order() -> None:
    assert canonical_metadata(b'{"a":[3,1,2]}') == '{"a":[3,1,2]}'


@pytest.mark.parametrize("number", ["1", "1.0", "1.10", "1e2", "1E+2", "-0", "0.1", "9" * 400, "1e999"])
def test_numbers_keep_their_spelling(number: str) -> None:
    assert canonical_metadata(f'{{"n":{number}}}'.encode()) == f'{{"n":{number}}}'


def test_two_spellings_of_one_text_have_one_canonical_form() -> None:
    escaped = rb'{"\u0061":"\u00e9\/\ud83d\ude00"}'
    assert canonical_metadata(escaped) == canonical_metadata('{"a":"é/😀"}'.encode())


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=4))
def test_the_canonical_text_means_the_same_and_is_its_own_canonical_text(value: dict[str, Any]) -> None:
    raw = json.dumps(value, indent=1).encode()
    if depth(value) > METADATA_DEPTH_MAX:
        with pytest.raises(ValueError, match="deeper"):
            canonical_metadata(raw)
        return
    text = canonical_metadata(raw)
    assert json.loads(text) == value
    assert canonical_metadata(text.encode()) == text
    assert canonical_metadata(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()) == text


@pytest.mark.parametrize("raw", [b"[]", b"1", b'"x"', b"null", b"true", b""])
def test_metadata_that_is_not_an_object_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="must be an object"):
        canonical_metadata(raw)


def test_four_levels_are_accepted_and_five_are_not() -> None:
    assert canonical_metadata(b'{"a":{"b":[{"c":1}]}}') == '{"a":{"b":[{"c":1}]}}'
    with pytest.raises(ValueError, match="deeper than 4 levels"):
        canonical_metadata(b'{"a":{"b":[{"c":[]}]}}')


def test_the_limit_counts_bytes_of_the_canonical_text_not_characters_and_not_white_space() -> None:
    room = METADATA_BYTES_MAX - len('{"a":""}')
    spaced = b'{ "a" :    "' + b"x" * room + b'" }'
    assert len(canonical_metadata(spaced)) == METADATA_BYTES_MAX
    with pytest.raises(ValueError, match="at most 4096 bytes"):
        canonical_metadata(b'{"a":"' + b"x" * (room + 1) + b'"}')
    with pytest.raises(ValueError, match="at most 4096 bytes"):
        canonical_metadata(b'{"a":"' + "é".encode() * (room // 2 + 1) + b'"}')


@pytest.mark.parametrize("raw", [b'{"a":}', b'{"a":"\\ud800"}', b'{"a":' + b"[" * 100_000, b"{"])
def test_what_is_not_json_is_a_value_error_too(raw: bytes) -> None:
    with pytest.raises(ValueError, match="metadata"):
        canonical_metadata(raw)
