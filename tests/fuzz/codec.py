"""Targets that are pure: frames, parameters, amounts, metadata, cursors.

`frames` compares the codec with `tests.fuzz.oracle`, `amounts` with `decimal`. The others check what must hold of any
input: it is refused in the documented way, or what comes of it means the same as what went in.
"""

from __future__ import annotations

import decimal
import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from msgspec import UNSET

from ledgerd.engine.states import LedgerFacts
from ledgerd.gateway.cursors import Cursors
from ledgerd_protocol.codec import Invalid, Limits, Request, decode_frame, encode_error, encode_result
from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.messages import TransactionBatch
from ledgerd_protocol.metadata import METADATA_BYTES_MAX, METADATA_DEPTH_MAX, canonical_metadata
from ledgerd_protocol.methods import METHODS
from ledgerd_protocol.money import (
    MINOR_MAX,
    SCALE_MAX,
    AmountOutOfRange,
    AmountPrecision,
    AmountSyntax,
    amount_text,
    to_minor,
    to_text,
)
from ledgerd_protocol.parameters import decode_items, decode_params
from ledgerd_protocol.problems import PROBLEMS_MAX
from tests.fuzz import oracle
from tests.fuzz.oracle import Id, Members, Number, Verdict, Wanted
from tests.fuzz.source import Source

LIMITS = Limits(message_bytes_max=262_144, depth_max=32, batch_members_max=1_000)
NARROW = Limits(message_bytes_max=400, depth_max=4, batch_members_max=3)

AMOUNTS = ("amount", "overdraft_limit", "below", "above")
"""Parameters that are amounts, in every method that is not lenient."""

METHOD_NAMES = sorted(METHODS)

# -- frames -----------------------------------------------------------------------------------------------------------


def frames(data: bytes) -> None:
    """The codec and the oracle agree on a text. The first byte chooses the limits: ``N`` the narrow ones."""
    limits = NARROW if data[:1] == b"N" else LIMITS
    text = data[1:].decode("utf-8", "surrogateescape")
    frame = decode_frame(text, limits)
    verdict = oracle.judge(text, limits)
    if verdict.bottomless:
        assert frame.members
        assert all(isinstance(member, Invalid) for member in frame.members)
        return
    assert frame.batch == verdict.batch
    _agree(frame.members, verdict, data)
    if limits is LIMITS and len(data) < limits.message_bytes_max:
        padded = decode_frame(f" {text}\r\n", limits)
        assert [_told(member) for member in padded.members] == [_told(member) for member in frame.members]


def _told(member: Request | Invalid) -> Any:
    return member if isinstance(member, Request) else (member.id, member.error.code)


def _agree(members: list[Request | Invalid], verdict: Verdict, data: bytes) -> None:
    left = list(members)
    for wanted in verdict.members:
        if wanted.id_in_doubt and (not left or spelled_id(left[0].id) != wanted.id):
            continue
        _agree_on_member(left.pop(0), wanted, data)
    assert not left, left


def _agree_on_member(member: Request | Invalid, wanted: Wanted, data: bytes) -> None:
    assert member.id is None or member.id in data, "an id is echoed as it was spelled"
    assert spelled_id(member.id) == wanted.id or wanted.id_in_doubt, (member, wanted)
    if isinstance(member, Invalid):
        assert member.error.code is wanted.code, (member, wanted)
        _is_reply(encode_error(member.id, member.error), wanted.id)
        return
    assert member.method == wanted.method, (member, wanted)
    assert (member.id is not None) == wanted.has_id
    assert bool(member.params) == wanted.has_params
    assert member.params in data, "parameters stay as they were spelled"
    if member.params:
        assert same(oracle.read(member.params.decode()), wanted.params)
    if member.id is not None:
        _is_reply(encode_result(member.id, None), wanted.id)


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, with numbers by their spelling and booleans no numbers."""
    return bool(type(one) is type(other) and repr(one) == repr(other))


def spelled_id(raw: bytes | None) -> Id:
    """The id that raw JSON is."""
    if raw is None:
        return None
    known = oracle.id_of(oracle.read(raw.decode()))
    assert known is not None, raw
    return known


def _is_reply(reply: bytes, wanted: Id) -> None:
    answered = oracle.read(reply.decode())
    assert answered.get("jsonrpc") == "2.0"
    assert oracle.id_of(answered.get("id")) == wanted
    assert answered.named("result") + answered.named("error") == 1


# -- parameters -------------------------------------------------------------------------------------------------------


def parameters(data: bytes) -> None:
    """Parameters are read or refused with every mistake in its place, however they are spelled.

    The first byte chooses the method, the rest is what stands behind ``"params":``.
    """
    method = METHODS[METHOD_NAMES[int.from_bytes(data[:1], "big") % len(METHOD_NAMES)]]
    try:
        text = data[1:].decode()
        value = oracle.read(text)
    except (ValueError, RecursionError):
        return
    text = text.strip(" \t\r\n")
    if oracle.has_forbidden_text(value) or oracle.has_key_twice(value) or oracle.depth_of(value) > 30:
        return  # the codec lets none of these through
    params, pointers = _decoded(method.name, text)
    for pointer in pointers:
        assert _leads_somewhere(value or Members(), pointer), (pointer, text)
    if params is not None and not method.params.lenient:
        for name in AMOUNTS:
            raw = getattr(params, name, UNSET)
            assert raw is UNSET or amount_text(raw)
    spaced, spaced_pointers = _decoded(method.name, spelled(value, " \n"))
    assert (spaced is None, spaced_pointers) == (params is None, pointers), text
    if isinstance(value, Members):
        _, wrapped = _decoded(method.name, f"[{text}]")
        assert wrapped == [f"/0{pointer}" for pointer in pointers]


def _decoded(name: str, text: str) -> tuple[Any, list[str]]:
    """The parameters, or None and where the mistakes are."""
    try:
        params = decode_params(METHODS[name], text.encode())
    except LedgerError as error:
        return None, _pointers(error)
    if isinstance(params, TransactionBatch):
        try:
            decode_items(params)
        except LedgerError as error:
            _is_refusal(error, ErrorCode.INVALID_PARAMS, ErrorCode.BATCH_TOO_LARGE)
    return params, []


def _is_refusal(error: LedgerError, *codes: ErrorCode) -> None:
    assert error.code in codes, error


def _pointers(error: LedgerError) -> list[str]:
    _is_refusal(error, ErrorCode.INVALID_PARAMS)
    errors = error.data["errors"]
    assert 1 <= len(errors) <= PROBLEMS_MAX
    assert all(one["detail"] and isinstance(one["detail"], str) for one in errors)
    json.dumps(error.to_wire())
    return [one["pointer"] for one in errors]


def _leads_somewhere(value: Any, pointer: str) -> bool:
    """Whether a JSON Pointer (RFC 6901) leads to a value, or to where a member is missing in an object or array."""
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(value, Members):
            if not value.named(name):
                return True
            value = value.get(name)
        elif isinstance(value, list):
            if int(name) >= len(value):
                return True
            value = value[int(name)]
        else:
            return False
    return True


def spelled(value: Any, space: str = "") -> str:
    """JSON text of what `oracle.read` answers."""
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, Members):
        inner = [f"{json.dumps(key)}{space}:{space}{spelled(member, space)}" for key, member in value]
        return "{" + space + f"{space},".join(inner) + "}"
    if isinstance(value, list):
        return "[" + f",{space}".join(spelled(member, space) for member in value) + space + "]"
    return json.dumps(value)


# -- amounts ----------------------------------------------------------------------------------------------------------


def amounts(data: bytes) -> None:
    """An amount is what the grammar and `decimal` say. The first byte chooses the scale, and if zero is allowed."""
    first = int.from_bytes(data[:1], "big")
    scale, zero_allowed = first % (SCALE_MAX + 1), first >= 128
    raw = data[1:]
    try:
        text = amount_text(raw)
    except AmountSyntax:
        assert not _is_amount(_said(raw))
        return
    assert _is_amount(text)
    assert text == _said(raw)
    with decimal.localcontext(prec=100):
        _same_as_decimal(text, scale, zero_allowed=zero_allowed)


def _said(raw: bytes) -> str | None:
    """The text of a JSON string or number, None if it is neither."""
    try:
        value = oracle.read(raw.decode())
    except (ValueError, RecursionError):
        return None
    if isinstance(value, Number):
        return value if raw == value.encode() else None
    return value if isinstance(value, str) and raw[:1] == b'"' else None


def _is_amount(text: str | None) -> bool:
    if text is None:
        return False
    whole, point, decimals = text.removeprefix("-").partition(".")
    digits = set("0123456789")
    plain = bool(whole) and set(whole) <= digits and len(whole) <= 18 and (whole == "0" or whole[0] != "0")
    return plain and (not point or (bool(decimals) and set(decimals) <= digits and len(decimals) <= SCALE_MAX))


def _same_as_decimal(text: str, scale: int, *, zero_allowed: bool) -> None:
    exact = Decimal(text)
    exponent = exact.as_tuple().exponent
    assert isinstance(exponent, int)
    in_minor = exact.scaleb(scale)
    negative = text.startswith("-")
    try:
        minor = to_minor(text, scale, zero_allowed=zero_allowed)
    except AmountPrecision:
        assert -exponent > scale
        return
    except AmountOutOfRange:
        assert -exponent <= scale
        assert negative or in_minor > MINOR_MAX or (in_minor == 0 and not zero_allowed)
        return
    assert minor == in_minor
    assert not negative
    assert 0 <= minor <= MINOR_MAX
    written = to_text(minor, scale)
    assert Decimal(written) == exact
    assert len(written.partition(".")[2]) == scale
    assert Decimal(to_text(-minor, scale)) == -exact
    if scale == 0 or len(written.partition(".")[0]) <= 18:
        assert to_minor(written, scale, zero_allowed=True) == minor


# -- metadata ---------------------------------------------------------------------------------------------------------


def metadata(data: bytes) -> None:
    """Metadata has one canonical text, whatever its spelling; anything else is refused with a sentence."""
    canonical: str | None = None
    sentence = ""
    try:
        canonical = canonical_metadata(data)
    except ValueError as refusal:
        sentence = str(refusal)
    assert (canonical is None) == bool(sentence)
    try:
        value = oracle.read(data.decode().strip(" \t\r\n"))
    except (ValueError, RecursionError):
        return
    if oracle.has_forbidden_text(value) or oracle.has_key_twice(value):
        return  # the codec lets none of these through
    expected = _sorted(value)
    size = len(json_text(expected).encode())
    fits = isinstance(value, Members) and oracle.depth_of(value) <= METADATA_DEPTH_MAX and size <= METADATA_BYTES_MAX
    assert (canonical is not None) == fits, (canonical, value)
    if canonical is not None:
        assert canonical == json_text(expected)
        assert canonical_metadata(canonical.encode()) == canonical
        assert canonical_metadata(spelled(value, "\n ").encode()) == canonical


def _sorted(value: Any) -> Any:
    if isinstance(value, Members):
        return Members(sorted((key, _sorted(member)) for key, member in dict(value).items()))
    return [_sorted(member) for member in value] if isinstance(value, list) else value


def json_text(value: Any) -> str:
    """Compact JSON with the shortest escapes."""
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, Members):
        return "{" + ",".join(f"{json_text(key)}:{json_text(member)}" for key, member in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(json_text(member) for member in value) + "]"
    return json.dumps(value, ensure_ascii=False)


# -- cursors ----------------------------------------------------------------------------------------------------------

_FACTS = LedgerFacts(epoch="e1", deployment=1, currencies={"USD": 2}, cursor_key=b"k" * 32)
_AFTER_RESTORE = LedgerFacts(epoch="e2", deployment=1, currencies={"USD": 2}, cursor_key=b"k" * 32)
_LISTS = ("user_list", "account_list", "transaction_list", "transaction_report")


def cursors(data: bytes) -> None:
    """A cursor is read where it was written, for the same list; everything else is ``invalid_cursor``."""
    source = Source(data)
    cursors = Cursors(lambda: _FACTS)
    method, filters = source.pick(_LISTS), [source.below(3), source.pick([None, "posted"])]
    now = datetime.now(UTC).isoformat()
    position = [source.below(65_536), source.take(source.below(9)).hex(), now]
    written = cursors.write(method, filters, position)
    assert cursors.read(method, filters, written) == position
    assert not _readable(Cursors(lambda: _AFTER_RESTORE), method, filters, written)
    assert not _readable(cursors, source.pick(["token_list", "advance_list"]), filters, written)
    assert not _readable(cursors, method, [*filters, source.below(9)], written)
    at = source.below(len(written) + 1)
    strange = written[:at] + source.take(source.below(4)).decode("latin-1") + written[at + source.below(4) :]
    assert _position(cursors, method, filters, strange) in (None, position)
    assert not _readable(cursors, method, filters, source.rest().decode("utf-8", "surrogateescape"))


def _readable(cursors: Cursors, method: str, filters: list[Any], cursor: str) -> bool:
    return _position(cursors, method, filters, cursor) is not None


def _position(cursors: Cursors, method: str, filters: list[Any], cursor: str) -> list[Any] | None:
    try:
        return cursors.read(method, filters, cursor)
    except LedgerError as error:
        _is_refusal(error, ErrorCode.INVALID_CURSOR)
        return None
