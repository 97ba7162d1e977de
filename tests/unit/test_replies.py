"""The client's half: requests as the daemon reads them, and what the daemon sends as the client reads it."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from ledgerd_protocol.codec import (
    BadReply,
    Limits,
    Notification,
    Reply,
    Request,
    decode_frame,
    decode_params,
    decode_reply,
    encode_batch,
    encode_error,
    encode_notification,
    encode_request,
    encode_result,
)
from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.messages import Transfer
from ledgerd_protocol.methods import METHODS

LIMITS = Limits(message_bytes_max=262_144, depth_max=32, batch_members_max=1_000)


def test_a_request_made_from_a_struct_leaves_out_what_was_not_said() -> None:
    params = Transfer(amount=Raw(b'"1.00"'), source_account_id=1, destination_account_id=2)
    assert json.loads(encode_request(7, "transfer", params)) == {
        "jsonrpc": "2.0",
        "id": 7,
        "method": "transfer",
        "params": {"amount": "1.00", "source_account_id": 1, "destination_account_id": 2, "direction": "debit"},
    }


def test_the_daemon_reads_what_the_client_writes() -> None:
    params = Transfer(amount=Raw(b"1.50"), source_user_id=1, destination_account_id=2, reference="é\n")
    (member,) = decode_frame(encode_request("a", "transfer", params), LIMITS).members
    assert isinstance(member, Request)
    assert member.id == b'"a"'
    decoded = decode_params(METHODS["transfer"], member.params)
    assert isinstance(decoded, Transfer)
    assert (bytes(decoded.amount), decoded.source_user_id, decoded.reference) == (b"1.50", 1, "é\n")


def test_params_may_be_a_mapping_with_decimals_a_list_or_absent() -> None:
    assert json.loads(encode_request(1, "credit", {"amount": Decimal("1.10")}))["params"] == {"amount": "1.10"}
    assert json.loads(encode_request(1, "balance_get", [7]))["params"] == [7]
    assert "params" not in json.loads(encode_request(1, "system_info"))


def test_a_result_stays_raw_and_null_is_a_result() -> None:
    reply = decode_reply(encode_result(b"7", {"a": 1.10}))
    assert isinstance(reply, Reply)
    assert (reply.id, reply.error) == (7, None)
    assert reply.result is not None
    assert bytes(reply.result) == b'{"a":1.1}'
    nothing = decode_reply('{"jsonrpc":"2.0","id":"x","result":null}')
    assert isinstance(nothing, Reply)
    assert nothing.result is not None
    assert bytes(nothing.result) == b"null"


def test_an_error_arrives_as_the_daemon_sent_it() -> None:
    error = LedgerError(ErrorCode.UNAVAILABLE, applied=None)
    assert decode_reply(encode_error(b'"x"', error)) == Reply("x", None, error.to_wire())
    assert decode_reply(encode_error(None, error)) == Reply(None, None, error.to_wire())


def test_a_batch_arrives_as_a_list_in_its_order() -> None:
    replies = decode_reply(
        encode_batch([encode_result(b"1", True), encode_error(b"2", LedgerError(ErrorCode.NOT_FOUND))])
    )
    assert isinstance(replies, list)
    assert [reply.id for reply in replies] == [1, 2]


def test_a_notification_is_not_a_reply() -> None:
    notification = decode_reply(encode_notification("ledger_session", {"type": "going_away"}))
    assert isinstance(notification, Notification)
    assert notification.method == "ledger_session"
    assert bytes(notification.params) == b'{"type":"going_away"}'


def test_members_a_client_does_not_know_are_ignored() -> None:
    reply = decode_reply('{"jsonrpc":"2.0","id":1,"result":true,"new":[1]}')
    assert isinstance(reply, Reply)
    assert reply.id == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "7",
        '"x"',
        "null",
        "{}",
        '{"id":1}',
        '{"id":1,"result":1,"error":{}}',
        '{"id":[],"result":1}',
        "[7]",
        "[{}]",
        '{"id":1,"error":"x"}',
        '{"method":7}',
        "\ud800",
        b"\xff",
        "[" * 100_000,
    ],
)
def test_what_is_not_a_message_of_the_protocol_is_a_bad_reply(text: str | bytes) -> None:
    with pytest.raises(BadReply):
        decode_reply(text)


@given(st.text(max_size=40) | st.binary(max_size=40))
def test_any_text_is_a_message_or_a_bad_reply(text: str | bytes) -> None:
    refusal = None
    try:
        message = decode_reply(text)
    except BadReply as error:
        refusal = error
    assert str(refusal) if refusal else isinstance(message, Reply | Notification | list)
