"""What bodies of the betting wallet say, without a daemon."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from ledgerd.gateway import wallet_bodies as bodies
from ledgerd.gateway.wallet_bodies import Body
from ledgerd_protocol.errors import ErrorCode
from ledgerd_protocol.messages import WalletBalance, WalletBet, WalletCreateUsers, WalletRollback, WalletWin
from ledgerd_protocol.metadata import METADATA_BYTES_MAX
from ledgerd_protocol.money import MINOR_MAX, to_minor
from ledgerd_protocol.results import WalletStatus

ID = "16d2dcfe-b89e-11e7-854a-58404eea6d16"
GOOD = {"user": "ann", "transaction_uuid": ID, "request_uuid": ID, "amount": 5, "currency": "USD"}
STATUSES = set(WalletStatus.__args__)


def bet(**members: Any) -> WalletBet:
    return msgspec.json.decode(msgspec.json.encode(GOOD | members), type=WalletBet)


def body(params: Any) -> Body:
    read = bodies.read(params)
    assert isinstance(read, Body)
    return read


def test_a_good_body_is_read_with_its_uuid_in_small_letters() -> None:
    read = body(bet(transaction_uuid=ID.upper(), round="r", game_code="g"))
    assert (read.user, read.transaction_id, read.units, read.currency) == ("ann", ID, 5, "USD")
    assert (read.round, read.game_code, read.late, read.odd) == ("r", "g", None, False)


def test_an_id_that_cannot_be_is_a_fresh_one() -> None:
    ids = {body(bet(transaction_uuid=wrong)).transaction_id for wrong in ("x", None, 7, ID + "\n", "0" * 36)}
    assert len(ids) == 5
    assert all(uuid.UUID(fresh).version == 4 for fresh in ids)
    assert ID not in ids


@pytest.mark.parametrize(
    ("members", "late"),
    [
        ({}, None),
        ({"transaction_uuid": "x"}, "RS_ERROR_WRONG_TYPES"),
        ({"transaction_uuid": "x", "request_uuid": None}, "RS_ERROR_WRONG_SYNTAX"),
        ({"transaction_uuid": None, "request_uuid": "x"}, "RS_ERROR_WRONG_SYNTAX"),
        ({"round": []}, "RS_ERROR_WRONG_TYPES"),
        ({"round": [], "request_uuid": None}, "RS_ERROR_WRONG_SYNTAX"),
    ],
)
def test_what_is_missing_is_said_before_what_is_malformed(members: dict[str, Any], late: str | None) -> None:
    assert body(bet(**members)).late == late


@pytest.mark.parametrize("units", [0, 1, 9, 10, 100, 123, 100_000, 2_500_000, MINOR_MAX])
@pytest.mark.parametrize(("scale", "decimals"), [(0, 0), (2, 2), (2, 5), (0, 5), (3, 5), (8, 8), (0, 8)])
def test_units_become_minor_units_or_do_not_fit_them(units: int, scale: int, decimals: int) -> None:
    if units == 0:
        return
    text = bodies.amount_of(units, decimals)
    whole, rest = divmod(units, 10 ** (decimals - scale))
    fraction = text.partition(".")[2]
    assert (len(fraction) > scale) is (rest != 0)
    if not rest:
        assert to_minor(text, scale) == whole
        assert bodies.units_of(whole, scale, decimals) == units


@given(st.integers(min_value=1, max_value=10**26), st.integers(0, 8))
def test_an_amount_is_written_exactly_and_without_zeros_at_its_end(units: int, decimals: int) -> None:
    whole, _, fraction = bodies.amount_of(units, decimals).partition(".")
    assert int(whole + fraction.ljust(decimals, "0")) == units
    assert not fraction.endswith("0")


def test_what_is_kept_is_small_and_always_has_the_first_request() -> None:
    assert bodies.kept(bet(), ID) == f'{{"request_uuid":"{ID}"}}'
    for members in ({"meta": "x" * 5_000}, {"bet": "x" * 5_000}, {"meta": {"a": {"b": {"c": {"d": {}}}}}}):
        kept = bodies.kept(bet(supplier_user="s", **members), ID)
        assert kept is not None
        assert len(kept.encode()) <= METADATA_BYTES_MAX
        assert bodies.first_request_uuid(kept) == ID
        assert ("supplier_user" in kept) is ("meta" in members)


@pytest.mark.parametrize("metadata", [None, "{}", '{"other":1}'])
def test_a_transaction_without_a_first_request_has_none(metadata: str | None) -> None:
    assert bodies.first_request_uuid(metadata) is UNSET


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([ID, "ann", "USD", "", "x" * 300])
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.sampled_from([WalletBet, WalletWin, WalletRollback]),
    st.dictionaries(st.sampled_from(sorted(WalletWin.__struct_fields__)), ANYTHING),
)
def test_every_body_is_read_or_has_a_status(kind: Any, members: dict[str, Any]) -> None:
    params = msgspec.json.decode(msgspec.json.encode(members), type=kind)
    read = bodies.read(params)
    if isinstance(read, str):
        assert read in STATUSES
        return
    kept = bodies.kept(params, read.request_uuid)
    assert kept is None or len(kept.encode()) <= METADATA_BYTES_MAX
    assert read.late is None or read.late in STATUSES
    assert uuid.UUID(read.transaction_id).int not in (0, 2**128 - 1)
    assert (read.refers_to is None) is (kind is WalletBet)
    said = len(msgspec.json.encode([read.said_user or "", read.request_uuid or ""]))
    assert said <= bodies.answer_bytes_max(params) <= bodies.ANSWER_BYTES_MAX


@given(ANYTHING)
def test_a_list_of_names_is_read_or_has_a_status(value: Any) -> None:
    params = msgspec.json.decode(msgspec.json.encode({"users": value}), type=WalletCreateUsers)
    names = bodies.read_names(params.users)
    assert isinstance(names, str) or all(0 < len(name) <= bodies.TEXT_LENGTH_MAX for name in names)


@given(ANYTHING)
def test_a_question_for_a_balance_is_read_or_has_a_status(value: Any) -> None:
    raw = msgspec.json.encode({"request_uuid": value, "currency": value})
    params = msgspec.json.decode(raw, type=WalletBalance)
    assert bodies.late_of_balance(params) in (None, "RS_ERROR_WRONG_TYPES")
    assert bodies.stated_currency(params) is None or isinstance(value, object)


def test_every_refusal_of_a_command_has_a_name_here_and_none_of_the_daemon() -> None:
    assert set(bodies.STATUSES.values()) <= STATUSES
    about_the_daemon = {
        code for code in ErrorCode if code < 1_005 or code >= 8_000 or code in (ErrorCode.INVALID_PARAMS,)
    }
    assert not about_the_daemon & set(bodies.STATUSES)


def test_raw_members_that_are_not_there_are_no_text() -> None:
    assert bodies.text_of(UNSET) is None
    assert bodies.text_of(Raw(b"7")) is None
    assert bodies.text_of(Raw(b'"\\u00e4"')) == "\u00e4"
    assert bodies.said(Raw(b'"%b"' % (b"x" * 256))) is UNSET
