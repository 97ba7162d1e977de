"""Frames in and out: ugly text is answered, never crashed on, and what is valid arrives exactly as it was sent."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ledgerd_protocol import events
from ledgerd_protocol.codec import (
    TOO_LARGE_ANSWERS_MAX,
    Frame,
    Invalid,
    Limits,
    Request,
    decode_frame,
    encode_batch,
    encode_error,
    encode_event,
    encode_notification,
    encode_result,
    event_frame,
)
from ledgerd_protocol.errors import ErrorCode, LedgerError

LIMITS = Limits(message_bytes_max=262_144, depth_max=32, batch_members_max=1_000)
PARSE, REQUEST, TOO_LARGE = ErrorCode.PARSE_ERROR, ErrorCode.INVALID_REQUEST, ErrorCode.BATCH_TOO_LARGE


def request(method: str = "system_ping", raw_id: str = "1", params: str = "{}") -> str:
    """One request as text, its id and params as raw JSON."""
    return f'{{"jsonrpc":"2.0","id":{raw_id},"method":"{method}","params":{params}}}'


def only(frame: Frame) -> Request | Invalid:
    (member,) = frame.members
    return member


def accepted(text: str) -> Request:
    member = only(decode_frame(text, LIMITS))
    assert isinstance(member, Request), member
    return member


def refused(text: str, code: ErrorCode, raw_id: bytes | None = None) -> str:
    """Check that one text is refused as a whole; the detail for people."""
    frame = decode_frame(text, LIMITS)
    member = only(frame)
    assert isinstance(member, Invalid), member
    assert not frame.batch
    assert member.error.code is code, member.error
    assert member.id == raw_id
    return member.error.detail


# -- what is accepted ----------------------------------------------------------------------------------------------


def test_a_request_arrives_with_its_params_and_id_byte_for_byte() -> None:
    member = accepted(' {"params": { "amount" : 1.10 }, "id" : "a\\u0062" , "method":"credit", "jsonrpc":"2.0"}\r\n')
    assert member == Request(method="credit", params=b'{ "amount" : 1.10 }', id=b'"a\\u0062"')


def test_absent_params_are_empty_and_members_json_rpc_does_not_know_are_ignored() -> None:
    assert accepted('{"jsonrpc":"2.0","id":1,"method":"m","auth":[1]}') == Request("m", b"", b"1")


@pytest.mark.parametrize(
    "raw_id",
    [
        "0",
        "1",
        "-1",
        "-0",
        "9" * 64,
        "-" + "9" * 64,
        '""',
        '"1"',
        '"' + "x" * 256 + '"',
        '"' + "é" * 128 + '"',
        '"' + "\\u00e9" * 128 + '"',
        '"\\ud83d\\ude00"',
        '"\\\\ud800"',
        '"\\/"',
        '"\\\\u0000"',
    ],
)
def test_an_id_is_echoed_with_its_type_and_spelling(raw_id: str) -> None:
    member = accepted(request(raw_id=raw_id))
    assert member.id == raw_id.encode()
    assert encode_result(member.id, None) == b'{"jsonrpc":"2.0","id":' + raw_id.encode() + b',"result":null}'


@pytest.mark.parametrize("method", ["system_ping", "credit", "transfer", "no_such_method"])
def test_a_request_without_id_is_a_notification_that_says_so_whatever_its_method(method: str) -> None:
    assert accepted(f'{{"jsonrpc":"2.0","method":"{method}","params":{{"amount":"1"}}}}').id is None


def test_nesting_up_to_the_limit_is_accepted_and_brackets_in_strings_do_not_count() -> None:
    levels = LIMITS.depth_max - 1
    assert accepted(request(params="[" * levels + "]" * levels)).params == b"[" * levels + b"]" * levels
    text = '"' + "[{" * 100 + '\\"[\\\\"'
    assert accepted(request(params=f"[{text}]")).params == f"[{text}]".encode()


def test_many_flat_objects_are_not_deep() -> None:
    params = "[" + ",".join(["{}", "[]"] * 500) + "]"
    assert accepted(request(params=params)).params == params.encode()


def test_huge_numbers_in_params_are_left_for_the_method_to_judge() -> None:
    for number in ("9" * 10_000, "1e400", "-1E-400", "0." + "1" * 5_000):
        assert accepted(request(params=f'{{"amount":{number}}}')).params == f'{{"amount":{number}}}'.encode()


def test_colons_and_quotes_in_strings_are_not_keys() -> None:
    params = '{"a":":::\\":","b:":"\\":"}'
    assert accepted(request(params=params)).params == params.encode()


# -- what is not JSON ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "{",
        "]",
        "{]",
        "nul",
        "NaN",
        "Infinity",
        "-Infinity",
        "\ufeff{}",
        "{} {}",
        "{},",
        "[1,]",
        '{"a":1,}',
        "01",
        "1.",
        ".5",
        "+1",
        "'a'",
        '"\t"',
        '"\x00"',
        "\x00",
        "\u00a0{}",
        '{"a" 1}',
        '"\\x"',
        '"\\u12"',
        '"\\',
        "{a:1}",
        "/**/{}",
        "[NaN]",
        '{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":NaN}}',
        '{"jsonrpc":"2.0","id":1,"method":"m"}x',
        '\ufeff{"jsonrpc":"2.0","id":1,"method":"m"}',
        '{"jsonrpc":"2.0","id":1,"method":"m","params":[Infinity]}',
    ],
)
def test_text_that_is_not_strict_json_is_a_parse_error(text: str) -> None:
    refused(text, PARSE)


@pytest.mark.parametrize(
    "bad",
    [
        "\\u0000",
        "\\ud800",
        "\\udc00",
        "\\uDFFF",
        "\\ud800\\ud800",
        "\\ud800x",
        "\\ud800\\n",
        "\\udc00\\ud800",
        "\\ud83d\\\\ude00",
        "\ud800",
        "\\\\\\u0000",
    ],
)
@pytest.mark.parametrize("place", ['{{"a":"{}"}}', '{{"{}":1}}', '{{"a":[[{{"b{}c":null}}]]}}', '["x{}"]'])
def test_lone_surrogates_and_nul_are_parse_errors_in_values_and_keys_at_any_depth(bad: str, place: str) -> None:
    refused(request(params=place.format(bad)), PARSE)


@pytest.mark.parametrize("bad", ["\\u0000", "\\udead", "\ud800"])
def test_lone_surrogates_and_nul_are_parse_errors_in_id_and_method_too(bad: str) -> None:
    refused(request(raw_id=f'"{bad}"'), PARSE)
    refused(request(method=bad), PARSE)


# -- what is not a request -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw_id",
    [
        "null",
        "true",
        "false",
        "1.0",
        "1.5",
        "1e2",
        "-0.0",
        "9" * 65,
        "-" + "9" * 65,
        "[]",
        "[1]",
        "{}",
        '{"a":1}',
        '"' + "x" * 257 + '"',
        '"' + "é" * 129 + '"',
        '"' + "\\u00e9" * 129 + '"',
    ],
)
def test_an_id_of_a_bad_shape_is_refused_and_answered_null(raw_id: str) -> None:
    assert "id" in refused(request(raw_id=raw_id), REQUEST)


@pytest.mark.parametrize("text", ["1", '"x"', "null", "true", "-0", "1e2"])
def test_a_value_that_is_no_object_is_not_a_request(text: str) -> None:
    refused(text, REQUEST)


@pytest.mark.parametrize(
    "text",
    [
        '{"id":7}',
        '{"id":7,"method":"m"}',
        '{"id":7,"jsonrpc":"2.0"}',
        '{"id":7,"jsonrpc":2.0,"method":"m"}',
        '{"id":7,"jsonrpc":"1.0","method":"m"}',
        '{"id":7,"jsonrpc":"2.0","method":5}',
        '{"id":7,"jsonrpc":"2.0","method":null}',
        '{"id":7,"jsonrpc":"2.0","method":["m"]}',
        '{"id":7,"jsonrpc":"2.0","result":1}',
    ],
)
def test_a_wrong_envelope_is_refused_under_the_id_that_could_be_read(text: str) -> None:
    refused(text, REQUEST, b"7")


@pytest.mark.parametrize(
    "text",
    [
        '{"jsonrpc":"2.0","id":7,"method":"m","method":"m"}',
        '{"jsonrpc":"2.0","id":7,"method":"m","params":{"a":1,"a":1}}',
        '{"jsonrpc":"2.0","id":7,"method":"m","params":{"a":1,"\\u0061":2}}',
        '{"jsonrpc":"2.0","id":7,"method":"m","params":[[{"x":{"":0,"":0}}]]}',
        '{"jsonrpc":"2.0","id":7,"method":"m","params":{":":{"b":1,"b":2}}}',
        '{"jsonrpc":"2.0","id":7,"method":"m","x":{"b":1,"b":2}}',
    ],
)
def test_a_key_that_occurs_twice_at_any_depth_is_refused_under_the_id(text: str) -> None:
    assert "twice" in refused(text, REQUEST, b"7")


def test_an_id_that_occurs_twice_is_not_an_id_to_answer_to() -> None:
    refused('{"jsonrpc":"2.0","id":7,"id":7,"method":"m"}', REQUEST, None)


def test_a_request_that_nests_too_deep_is_refused_under_its_id() -> None:
    levels = LIMITS.depth_max
    assert "deeper than 32" in refused(request(raw_id="7", params="[" * levels + "]" * levels), REQUEST, b"7")
    assert "deeper" in refused(request(raw_id="7", params='{"a":' * levels + "1" + "}" * levels), REQUEST, b"7")


@pytest.mark.parametrize("levels", [33, 300, 500, 990, 1_000, 2_000, 5_000, 20_000, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_nesting_of_any_depth_is_refused_and_never_overflows(levels: int, opening: str, closing: str) -> None:
    limits = Limits(message_bytes_max=10**9, depth_max=32, batch_members_max=1_000)
    text = opening * levels + "1" + closing * levels
    for ugly in (text, text[: len(text) // 2], request(params=text), "[" + request(params=text) + "]"):
        frame = decode_frame(ugly, limits)
        assert frame.members
        assert all(isinstance(member, Invalid) for member in frame.members)


def test_a_message_over_the_limit_is_refused_by_its_bytes() -> None:
    text = request()
    assert only(decode_frame(text, Limits(len(text), 32, 10))) == accepted(text)
    over = only(decode_frame(text, Limits(len(text) - 1, 32, 10)))
    assert isinstance(over, Invalid)
    assert over.error.code is REQUEST
    wide = request(method="é")
    assert isinstance(only(decode_frame(wide, Limits(len(wide), 32, 10))), Invalid)


# -- batches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["[]", " [ ] "])
def test_an_empty_batch_is_one_invalid_request_and_no_array(text: str) -> None:
    refused(text, REQUEST)


def test_a_batch_of_one_is_still_a_batch() -> None:
    frame = decode_frame(f" [{request()}]", LIMITS)
    assert frame == Frame([Request("system_ping", b"{}", b"1")], batch=True)


def test_members_keep_their_order_and_a_bad_one_spares_its_neighbours() -> None:
    twice = '{"jsonrpc":"2.0","id":3,"method":"m","params":{"a":1,"a":1}}'
    deep = request(raw_id="4", params="[" * 31 + "]" * 31)
    nearly_deep = request(raw_id="5", params="[" * 30 + "]" * 30)
    frame = decode_frame(
        f"[{request(raw_id='1')},7,{request(raw_id='null')},{twice},{deep},{nearly_deep},{request(raw_id='6')}]", LIMITS
    )
    assert frame.batch
    assert [(type(member), member.id) for member in frame.members] == [
        (Request, b"1"),
        (Invalid, None),
        (Invalid, None),
        (Invalid, b"3"),
        (Invalid, b"4"),
        (Request, b"5"),
        (Request, b"6"),
    ]


def test_a_batch_with_text_that_is_not_json_is_refused_whole() -> None:
    refused(f"[{request()},NaN]", PARSE)
    refused(f'[{request()},"\\ud800"]', PARSE)


def test_a_batch_of_notifications_has_no_member_to_answer() -> None:
    frame = decode_frame('[{"jsonrpc":"2.0","method":"credit"},{"jsonrpc":"2.0","method":"debit","params":{}}]', LIMITS)
    assert frame.batch
    assert [(member.method, member.id) for member in frame.members if isinstance(member, Request)] == [
        ("credit", None),
        ("debit", None),
    ]
    assert len(frame.members) == 2


def test_a_batch_at_the_limit_is_accepted_and_over_it_every_member_with_an_id_is_refused_and_none_is_left() -> None:
    limits = Limits(262_144, 32, 3)
    notification = '{"jsonrpc":"2.0","method":"m"}'
    assert all(
        isinstance(member, Request)
        for member in decode_frame(f"[{request()},{notification},{request()}]", limits).members
    )
    for odd_ones in (["4"], ["{}", '{"id":null}', '{"id":"b"}'], [request(raw_id='"b"')]):
        members = [request(raw_id="1"), notification, request(raw_id='"a"'), *odd_ones]
        frame = decode_frame("[" + ",".join(members) + "]", limits)
        assert frame.batch
        expected = [b"1", b'"a"'] + [b'"b"'] * ('"b"' in "".join(odd_ones))
        assert [member.id for member in frame.members] == expected
        assert all(isinstance(member, Invalid) and member.error.code is TOO_LARGE for member in frame.members)


def test_a_batch_over_the_limit_without_any_id_is_not_answered() -> None:
    limits = Limits(262_144, 32, 2)
    assert decode_frame('[{"jsonrpc":"2.0","method":"m"},{"method":1},3]', limits) == Frame([], batch=True)


def test_a_batch_so_large_that_its_answer_would_be_too_large_is_answered_with_one_error() -> None:
    limits = Limits(1_000_000, 32, 10)
    at_most = "[" + ",".join(f'{{"id":{number}}}' for number in range(TOO_LARGE_ANSWERS_MAX)) + "]"
    refusals = [member for member in decode_frame(at_most, limits).members if isinstance(member, Invalid)]
    replies = [encode_error(refusal.id, refusal.error) for refusal in refusals]
    assert len(replies) == TOO_LARGE_ANSWERS_MAX
    assert len(encode_batch(replies)) < 1_048_576 - 262_144
    one_more = at_most[:-1] + ',{"id":"x"}]'
    member = only(decode_frame(one_more, limits))
    assert isinstance(member, Invalid)
    assert (member.id, member.error.code) == (None, TOO_LARGE)


# -- whatever comes ------------------------------------------------------------------------------------------------

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
ENVELOPES = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.sampled_from(["2.0", "2.0", "2.0", "1.0", 2.0, None]),
        "id": JSON_VALUES | st.integers() | st.text(max_size=300),
        "method": st.sampled_from(["credit", "balance_get", "rpc.discover", "", "\x00"]) | JSON_VALUES,
        "params": JSON_VALUES,
        "extra": JSON_VALUES,
    },
)
FRAGMENTS = st.lists(
    st.sampled_from(
        [
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            '"',
            "\\",
            "\\u0000",
            "\\ud800",
            "\\udc00",
            '"id"',
            '"jsonrpc"',
            '"2.0"',
            '"method"',
            '"params"',
            "1",
            "-",
            ".",
            "e",
            "NaN",
            "null",
            "true",
            " ",
            "\n",
            "\ufeff",
            "\ud800",
            "\x00",
            "é",
            "💶",
            '{"id":1,"id":2}',
            '{"jsonrpc":"2.0","id":1,"method":"credit"}',
        ]
    ),
    max_size=24,
).map("".join)


def no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("twice")
    return dict(pairs)


def is_strict_json(text: str) -> bool:
    """The judgement of the standard library's reader, made strict by hand."""

    def no_constant(_: str) -> None:
        raise ValueError("constant")

    try:
        value = json.loads(text, parse_constant=no_constant)
        again = json.dumps(value, ensure_ascii=False)
        again.encode()
        text.encode()
    except (ValueError, RecursionError):
        return False
    # A pair of backslashes is one backslash, whatever follows it.
    return "\\u0000" not in again.replace("\\\\", "")


@given(
    FRAGMENTS | st.text(st.characters(), max_size=60) | ENVELOPES.map(json.dumps) | st.lists(ENVELOPES).map(json.dumps)
)
@example("[" * 50)
@example('{"a":1}' * 2)
@example("\ud800")
@example('{"":{"\\\\u0000":null}}')
def test_decode_frame_answers_any_text_and_agrees_with_a_strict_reader(text: str) -> None:
    frame = decode_frame(text, LIMITS)
    whole_refused = any(isinstance(member, Invalid) and member.error.code is PARSE for member in frame.members)
    assert whole_refused == (not is_strict_json(text))
    if whole_refused:
        assert len(frame.members) == 1
        assert not frame.batch
        assert only(frame).id is None
    for member in frame.members:
        assert msgspec.json.decode(encode_error(member.id, LedgerError(PARSE)))["error"]["code"] == -32700
        if isinstance(member, Request):
            assert member.method.encode().decode() == member.method
            json.loads(member.params or "null", object_pairs_hook=no_twins)
            assert member.id is None or type(json.loads(member.id)) in (int, str)


@given(st.lists(ENVELOPES, min_size=1, max_size=6))
def test_a_member_is_judged_the_same_alone_and_in_a_batch(envelopes: list[dict[str, Any]]) -> None:
    texts = [json.dumps(envelope, ensure_ascii=False) for envelope in envelopes]
    together = decode_frame("[" + ",".join(texts) + "]", LIMITS)
    if not together.batch:
        alone = [only(decode_frame(text, LIMITS)) for text in texts]
        assert any(isinstance(member, Invalid) and member.error.code is PARSE for member in alone)
        return
    for text, member in zip(texts, together.members, strict=True):
        single = only(decode_frame(text, LIMITS))
        assert type(single) is type(member)
        assert single.id == member.id
        if isinstance(single, Request):
            assert single == member


@given(
    st.integers() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=60),
    JSON_VALUES,
)
def test_every_good_id_comes_back_as_it_was(good_id: int | str, extra: Any) -> None:
    raw_id = json.dumps(good_id, ensure_ascii=False)
    text = json.dumps({"method": "m", "jsonrpc": "2.0", "x": extra}, ensure_ascii=False)
    member = only(decode_frame(text[:-1] + f',"id":{raw_id}}}', LIMITS))
    if isinstance(member, Invalid) and member.error.code is PARSE:
        assert not is_strict_json(text)
    else:
        assert member.id == raw_id.encode()


# -- what leaves ---------------------------------------------------------------------------------------------------


def test_a_result_is_always_present_even_if_it_is_null() -> None:
    assert encode_result(b'"x"', None) == b'{"jsonrpc":"2.0","id":"x","result":null}'
    assert encode_result(b"7", True) == b'{"jsonrpc":"2.0","id":7,"result":true}'


def test_an_error_carries_the_stable_string_the_retry_rule_and_its_data() -> None:
    error = LedgerError(ErrorCode.INSUFFICIENT_FUNDS, available="1.00", requested="2.00", version=9)
    assert json.loads(encode_error(b"7", error)) == {
        "jsonrpc": "2.0",
        "id": 7,
        "error": {
            "code": 3001,
            "message": "The available balance is too small.",
            "data": {
                "code": "insufficient_funds",
                "retryable": True,
                "applied": False,
                "detail": "The available balance is too small.",
                "available": "1.00",
                "requested": "2.00",
                "version": 9,
            },
        },
    }
    assert json.loads(encode_error(None, error))["id"] is None


def test_replies_of_a_batch_are_one_array_in_their_order() -> None:
    replies = [encode_result(b"1", "a"), encode_error(b"2", LedgerError(ErrorCode.NOT_FOUND))]
    assert [reply["id"] for reply in json.loads(encode_batch(replies))] == [1, 2]
    with pytest.raises(AssertionError):
        encode_batch([])


def test_an_event_is_framed_around_the_bytes_that_were_encoded_once() -> None:
    event = encode_event(events.Heartbeat(versions={7: 42}))
    assert event == b'{"type":"heartbeat","versions":{"7":42}}'
    frame = json.loads(event_frame("sub_1", event))
    assert frame == {
        "jsonrpc": "2.0",
        "method": "ledger_subscription",
        "params": {"subscription": "sub_1", "result": {"type": "heartbeat", "versions": {"7": 42}}},
    }


def test_a_start_event_spells_its_members_as_the_protocol_does() -> None:
    account = events.AccountStart(7, "snapshot", 41, "90.00", "0.00", "90.00", "USD")
    assert json.loads(encode_event(events.Start("e7c1", [account]))) == {
        "type": "start",
        "epoch": "e7c1",
        "accounts": [
            {
                "account_id": 7,
                "from": "snapshot",
                "version": 41,
                "balance": "90.00",
                "held": "0.00",
                "available": "90.00",
                "currency": "USD",
            }
        ],
    }


def test_a_notification_has_no_id() -> None:
    assert json.loads(encode_notification("ledger_session", {"type": "going_away"})) == {
        "jsonrpc": "2.0",
        "method": "ledger_session",
        "params": {"type": "going_away"},
    }
