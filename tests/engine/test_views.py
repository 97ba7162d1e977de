"""What a caller sees of stored things."""

from __future__ import annotations

import msgspec
import pytest

from ledgerd.engine.commands import ActorInfo, Principal, Record, Refused, Side
from ledgerd.engine.states import AccountState, AttemptState, TokenState
from ledgerd.engine.views import (
    account_view,
    refusal_error,
    token_view,
    transaction_view,
    update_event,
    visible,
    visible_record,
)
from ledgerd_protocol.errors import ErrorCode
from tests.engine.fake_ledger import OPERATOR, SERVICE, command, principal

PAYING = Side(1, 10, "debit", 5, 123, 20, 103, -1, 0)
RECEIVING = Side(2, 20, "credit", 9, 7, 0, 7, 1, 0)
RECORD = Record(
    "t",
    "transfer",
    "posted",
    1,
    "USD",
    2,
    1,
    2,
    (PAYING, RECEIVING),
    None,
    None,
    '{"a":1.0}',
    "now",
    ActorInfo(3, 10, ()),
)


@pytest.mark.parametrize(
    ("caller", "seen"),
    [
        (principal(10), [1]),
        (principal(20), [2]),
        (principal(30), []),
        (principal(10, account_id=1), [1]),
        (principal(10, account_id=4), []),
        (SERVICE, [1, 2]),
        (OPERATOR, [1, 2]),
        (principal(None, "service", account_id=2), [2]),
        (principal(None, "read"), []),
    ],
)
def test_only_the_callers_sides_are_visible(caller: Principal, seen: list[int]) -> None:
    assert [side.account_id for side in RECORD.sides if visible(caller, side)] == seen
    assert [entry.account_id for entry in transaction_view(RECORD, caller).entries] == seen


def test_a_transaction_without_sides_is_visible_to_who_sent_it() -> None:
    tombstone = msgspec.structs.replace(RECORD, sides=())
    assert visible_record(principal(10), tombstone)
    assert not visible_record(principal(20), tombstone)
    assert visible_record(SERVICE, tombstone)
    assert visible_record(principal(None, "read", token_id=3), tombstone)
    assert not visible_record(principal(None, "read", token_id=4), tombstone)


def test_a_transaction_is_written_with_the_currencys_digits_and_its_metadata_as_it_was() -> None:
    view = msgspec.json.decode(msgspec.json.encode(transaction_view(RECORD, principal(10), replayed=True)))
    assert view["amount"] == "0.01"
    assert view["entries"] == [
        {
            "account_id": 1, "direction": "debit", "balance_change": "-0.01", "held_change": "0.00", "balance": "1.23",
            "held": "0.20", "available": "1.03", "version": 5,
        }
    ]  # fmt: skip
    assert view["replayed"] is True
    assert b'"metadata":{"a":1.0}' in msgspec.json.encode(transaction_view(RECORD, principal(10)))


def test_who_acted_is_shown_to_operators_only() -> None:
    assert transaction_view(RECORD, OPERATOR).actor == msgspec.convert(
        {"token_id": 3, "user_id": 10, "scopes": []}, type(transaction_view(RECORD, OPERATOR).actor)
    )
    assert transaction_view(RECORD, SERVICE).actor is msgspec.UNSET
    assert transaction_view(RECORD, principal(10)).actor is msgspec.UNSET


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("hold", {"hold_id": "t", "expires_at": "later"}),
        ("capture", {"hold_id": "r"}),
        ("release", {"hold_id": "r"}),
        ("expiry", {"hold_id": "r"}),
        ("reversal", {"reverses": "r"}),
        ("win", {"reference_transaction_id": "r"}),
        ("rollback", {"reference_transaction_id": "r"}),
        ("transfer", {"reversed_amount": "0.01"}),
        ("freeze", {}),
    ],
)
def test_what_a_transaction_refers_to_is_shown_under_the_name_it_has_for_its_kind(
    kind: str, shown: dict[str, str]
) -> None:
    record = msgspec.structs.replace(
        RECORD,
        kind=kind,
        refers_to=None if kind in ("hold", "transfer", "freeze") else "r",
        expires_at="later" if kind == "hold" else None,
        reversed_amount=1 if kind == "transfer" else None,
    )
    plain = msgspec.json.decode(msgspec.json.encode(transaction_view(RECORD, SERVICE)))
    view = msgspec.json.decode(msgspec.json.encode(transaction_view(record, SERVICE)))
    assert view == {**plain, "kind": kind, **shown}


async def test_a_mismatch_is_named_as_the_transaction_shows_it() -> None:
    refused = Refused(ErrorCode.TRANSACTION_ID_REUSED, data={"mismatch": ["kind", "refers_to"]})
    for kind, name in (("capture", "hold_id"), ("reversal", "reverses"), ("win", "reference_transaction_id")):
        assert refusal_error(refused, command(kind, 1, None)).data["mismatch"] == ["kind", name]
    assert refused.data == {"mismatch": ["kind", "refers_to"]}


def test_attempts_carry_the_errors_stable_string() -> None:
    view = transaction_view(RECORD, OPERATOR, attempts=[AttemptState("a", ErrorCode.INSUFFICIENT_FUNDS, "then")])
    assert msgspec.json.decode(msgspec.json.encode(view))["attempts"] == [
        {"attempt_id": "a", "reason": "insufficient_funds", "created_at": "then"}
    ]


def test_an_update_says_what_it_skipped_only_when_it_did() -> None:
    assert b"skipped" not in msgspec.json.encode(update_event(RECORD, PAYING))
    assert update_event(RECORD, PAYING, skipped=3).skipped == 3


async def test_a_refusals_amounts_become_text_and_the_rest_stays() -> None:
    refused = Refused(
        ErrorCode.INSUFFICIENT_FUNDS, data={"available": 5, "requested": 1000, "version": 7}, scale=2, attempt_id="a",
        created_at="then", index=4,
    )  # fmt: skip
    wire = refusal_error(refused, command("transfer", 1, 2, transaction_id="tx")).to_wire()
    assert wire["code"] == 3001
    assert wire["data"] == {
        "code": "insufficient_funds", "retryable": True, "applied": False,
        "detail": ErrorCode.INSUFFICIENT_FUNDS.sentence, "available": "0.05", "requested": "10.00", "version": 7,
        "index": 4, "transaction_id": "tx", "attempt_id": "a", "created_at": "then",
    }  # fmt: skip


def test_an_unknown_outcome_stays_unknown() -> None:
    assert refusal_error(Refused(ErrorCode.UNAVAILABLE, applied=None)).applied is None


async def test_a_late_cancel_shows_the_transaction_to_who_may_see_it() -> None:
    refused = Refused(ErrorCode.ALREADY_POSTED, record=RECORD)
    mine = refusal_error(refused, command("cancel", 1, None, by=principal(10)))
    assert mine.data["transaction"] == transaction_view(RECORD, principal(10))
    others = refusal_error(refused, command("cancel", 1, None, by=principal(30)))
    assert "transaction" not in others.data


def test_accounts_and_tokens() -> None:
    state = AccountState(1, 2, "JPY", 0, 5, 1, 14, 10, 3, "open", "then", "now")
    view = account_view(state)
    assert (view.balance, view.held, view.available, view.overdraft_limit) == ("5", "1", "14", "10")
    token = TokenState(1, 2, None, ("user",), None, "then", None, None, None)
    assert b'"token"' not in msgspec.json.encode(token_view(token))
    assert token_view(token, "lgd_secret").token == "lgd_secret"
