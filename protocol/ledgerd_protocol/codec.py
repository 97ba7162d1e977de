"""Text of WebSocket frames to requests, and results, errors and events to text. Pure: no I/O, no clock, no state.

Rules of this file:

- Whatever text arrives, `decode_frame` returns; it never raises. A member of a batch that is wrong does not take its
  neighbours with it, unless the text as a whole is not JSON.
- Strict JSON. A byte order mark, NaN, Infinity, text after the value, a lone surrogate or ``\\u0000`` (raw or escaped,
  in values or keys) is a parse error: Postgres would refuse the text later, or a client could not read it back.
- No key twice in one object, at any depth: two readers could see two different commands.
- An id is echoed byte for byte as it was spelled. It is never decoded to a number on the way. It is given back with
  an error too, whenever it is there once and is a string or an integer.
- A request without an id is a notification: `Request.id` is None. Whoever executes requests must not execute it.
- Parameters stay raw until the method is known; `ledgerd_protocol.parameters` reads them.
- What leaves is compact UTF-8, ids and already encoded events are spliced in as they are.

Cost is part of the contract: a valid frame is decoded once for its envelopes and once more to count its keys. What is
exact but slow runs only when the quick look cannot decide, what explains a mistake only when there is one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Literal, NoReturn

import msgspec
from msgspec import Raw, Struct

from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.events import Event
from ledgerd_protocol.metadata import canonical_metadata as canonical_metadata
from ledgerd_protocol.parameters import decode_items as decode_items
from ledgerd_protocol.parameters import decode_params as decode_params
from ledgerd_protocol.replies import BadReply as BadReply
from ledgerd_protocol.replies import Notification as Notification
from ledgerd_protocol.replies import Reply as Reply
from ledgerd_protocol.replies import decode_reply as decode_reply
from ledgerd_protocol.replies import encode_request as encode_request

ID_BYTES_MAX = 256
"""Of an id that is a string, in UTF-8, without its quotes."""

ID_DIGITS_MAX = 64
"""Of an id that is an integer."""

TOO_LARGE_ANSWERS_MAX = 2_000
"""Members of a batch with too many that are answered one by one. With more, the answer itself would be too large for
the clients that close on messages over 1 MiB: a short message of tiny members would be answered with ten megabytes."""


class Limits(Struct, frozen=True):
    """What a frame may be. ``depth_max`` counts objects and arrays within one another, a batch's array included."""

    message_bytes_max: int
    depth_max: int
    batch_members_max: int


class Request(Struct):
    """One request. ``params`` is raw JSON, empty if absent; ``id`` is raw JSON, None for a notification."""

    method: str
    params: bytes
    id: bytes | None


class Invalid(Struct):
    """A member that is not a request. ``id`` is raw JSON, or None if it could not be read and ``null`` is answered."""

    id: bytes | None
    error: LedgerError


Members = list[Request | Invalid]


class Frame(Struct):
    """The members of one message in order. ``batch``: the replies go into one array, and no replies are no message."""

    members: Members
    batch: bool


# -- frames in -----------------------------------------------------------------------------------------------------


class _Envelope(Struct):
    """A request as it is in the text. Members that JSON-RPC does not know are ignored, as its clients expect."""

    jsonrpc: Literal["2.0"]
    method: str
    params: Raw = Raw(b"")
    id: Raw = Raw(b"")


_ONE = msgspec.json.Decoder(_Envelope)
_MANY = msgspec.json.Decoder(list[_Envelope])
_ANYTHING = msgspec.json.Decoder()
_RAW_MEMBERS = msgspec.json.Decoder(list[Raw])
_OBJECT = msgspec.json.Decoder(dict[str, Raw])
_TEXT = msgspec.json.Decoder(str)

_WHITE_SPACE = b" \t\n\r"
_INTEGER = re.compile(rb"-?(?:0|[1-9][0-9]{0,%d})" % (ID_DIGITS_MAX - 1))
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)
_ESCAPE_PAIR = re.compile(rb"\\.", re.DOTALL)
_STRING = re.compile(rb'"[^"]*"')
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NOT_STRUCTURE = bytes(byte for byte in range(256) if byte not in b'[]{}"')

_ID_RULE = f"The id must be a string of at most {ID_BYTES_MAX} bytes or an integer of at most {ID_DIGITS_MAX} digits."


def decode_frame(text: str, limits: Limits) -> Frame:
    """The requests in one message. Never raises, whatever the text is.

    Text that is not JSON is one `Invalid` with ``parse_error`` and ``batch`` False; so is an empty batch, with
    ``invalid_request``. A batch of more than ``limits.batch_members_max`` members yields ``batch_too_large`` for every
    member that has an id, and nothing to execute; if those are more than `TOO_LARGE_ANSWERS_MAX`, one for them all.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError:
        return _whole(ErrorCode.PARSE_ERROR, "The message has a lone surrogate.")
    if len(data) > limits.message_bytes_max:
        return _whole(ErrorCode.INVALID_REQUEST, f"The message has more than {limits.message_bytes_max} bytes.")
    start = len(data) - len(data.lstrip(_WHITE_SPACE))
    batch = data[start : start + 1] == b"["
    members = _decode_well_formed(text, data, limits.depth_max, start, batch=batch)
    if members is None:
        return _explain(text, data, limits, batch=batch)
    if batch and not members:
        return _whole(ErrorCode.INVALID_REQUEST, "A batch must have at least one member.")
    if len(members) > limits.batch_members_max:
        return _too_large([member.id for member in members], limits.batch_members_max)
    return Frame(members, batch)


def _whole(code: ErrorCode, detail: str) -> Frame:
    """The frame of a text that is refused as a whole."""
    return Frame([Invalid(None, LedgerError(code, detail))], batch=False)


def _too_large(ids: Sequence[bytes | None], members_max: int) -> Frame:
    """The frame of a batch with too many members, of which those with an id are answered and none is executed."""
    detail = f"A batch may have {members_max} members, this one has {len(ids)}."
    known_ids = [raw_id for raw_id in ids if raw_id is not None]
    if len(known_ids) > TOO_LARGE_ANSWERS_MAX:
        return _whole(ErrorCode.BATCH_TOO_LARGE, detail)
    error = LedgerError(ErrorCode.BATCH_TOO_LARGE, detail)
    return Frame([Invalid(raw_id, error) for raw_id in known_ids], batch=True)


def _decode_well_formed(text: str, data: bytes, depth_max: int, start: int, *, batch: bool) -> Members | None:
    """The members of a text whose every envelope is as it should be; None if something is not.

    The value begins at ``start``; where it ends has been checked when the keys are.
    """
    try:
        envelopes = _MANY.decode(data) if batch else [_ONE.decode(data)]
        if "\\u" in text and _forbidden_escape(text):
            return None
        # Brackets in strings make this count too high, which only costs the exact one.
        if text.count("[") + text.count("{") > depth_max and _depth(data) > depth_max:
            return None
        # Fewer keys than colons: a key is there twice, or a string has a colon. Only then is the slower reading needed.
        if _keys(_ANYTHING.decode(data)) != text.count(":"):
            _UNIQUE_KEYS.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return [_member(envelope.method, bytes(envelope.params), bytes(envelope.id)) for envelope in envelopes]


def _member(method: str, params: bytes, raw_id: bytes) -> Request | Invalid:
    if raw_id and not _is_id(raw_id):
        return Invalid(None, LedgerError(ErrorCode.INVALID_REQUEST, _ID_RULE))
    return Request(method, params, raw_id or None)


def _is_id(raw: bytes) -> bool:
    """Whether raw JSON is a string or an integer that may be an id."""
    if raw[:1] == b'"':
        # Escapes only make the spelling longer than the text.
        return len(raw) - 2 <= ID_BYTES_MAX or len(_TEXT.decode(raw).encode()) <= ID_BYTES_MAX
    return _INTEGER.fullmatch(raw) is not None


def _forbidden_escape(text: str) -> bool:
    """Whether JSON text escapes U+0000 or a surrogate that is not one of a pair, in any string or key."""
    high_ends_at = -1
    for escape in _ESCAPE.finditer(text):
        unit = int(escape[1], 16) if escape[1] else -1
        if high_ends_at >= 0 and not (escape.start() == high_ends_at and 0xDC00 <= unit <= 0xDFFF):
            return True
        if high_ends_at < 0 and (unit == 0 or 0xDC00 <= unit <= 0xDFFF):
            return True
        high_ends_at = escape.end() if 0xD800 <= unit <= 0xDBFF else -1
    return high_ends_at >= 0


def _depth(data: bytes) -> int:
    """How deep the objects and arrays of valid JSON lie within one another."""
    if b"\\" in data:
        data = _ESCAPE_PAIR.sub(b"", data)
    structure = data.translate(None, _NOT_STRUCTURE).replace(b'""', b"")
    if b'"' in structure:
        structure = _STRING.sub(b"", structure)
    return max(accumulate(map(_STEP.__getitem__, structure)), default=0)


def _keys(value: Any) -> int:
    """How many keys the objects in a decoded object or array have, together. Written for speed."""
    keys = 0
    if type(value) is dict:
        keys = len(value)
        value = value.values()
    for inner in value:
        if type(inner) is dict or type(inner) is list:
            keys += _keys(inner)
    return keys


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("duplicate key")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a value of JSON")


# Numbers go to `len`, the cheapest thing that takes their text: int() would refuse more than 4,300 digits.
_UNIQUE_KEYS = json.JSONDecoder(
    object_pairs_hook=_refuse_duplicates, parse_int=len, parse_float=len, parse_constant=_refuse_constant
)


# -- what is wrong with a frame ------------------------------------------------------------------------------------


class _Id(Struct):
    id: Raw = Raw(b"")


_ID = msgspec.json.Decoder(_Id)


def _nothing(_: list[tuple[str, Any]]) -> None:
    return None


_SYNTAX = json.JSONDecoder(object_pairs_hook=_nothing, parse_int=len, parse_float=len, parse_constant=_refuse_constant)


def _explain(text: str, data: bytes, limits: Limits, *, batch: bool) -> Frame:
    """The members of a text of which something is wrong, each judged alone if they can be told apart."""
    try:
        _SYNTAX.decode(text)
        if _forbidden_escape(text):
            return _whole(ErrorCode.PARSE_ERROR, "The message has a lone surrogate or U+0000.")
        raw_members = [bytes(raw) for raw in _RAW_MEMBERS.decode(data)] if batch else [data.strip(_WHITE_SPACE)]
    except RecursionError:
        return _whole(ErrorCode.INVALID_REQUEST, _too_deep(limits.depth_max))
    except ValueError as error:
        return _whole(ErrorCode.PARSE_ERROR, f"The message is not JSON: {error}")
    if len(raw_members) > limits.batch_members_max:
        return _too_large([_id_of(raw) for raw in raw_members], limits.batch_members_max)
    return Frame([_judge(raw, limits.depth_max, batch=batch) for raw in raw_members], batch)


def _too_deep(depth_max: int) -> str:
    return f"The message nests deeper than {depth_max} levels."


def _id_of(raw: bytes) -> bytes | None:
    """The id of a member that will not be looked at further. Cheap, because there may be very many of them."""
    if raw[:1] != b"{":
        return None
    raw_id = bytes(_ID.decode(raw).id)
    return raw_id if raw_id and _is_id(raw_id) else None


def _judge(raw: bytes, depth_max: int, *, batch: bool) -> Request | Invalid:
    """One member, with the first thing that is wrong with it."""
    try:
        members = _OBJECT.decode(raw)
        twice, own_keys = _duplicates(raw)
    except msgspec.ValidationError:
        return Invalid(None, LedgerError(ErrorCode.INVALID_REQUEST, "A request must be an object."))
    except RecursionError:
        return Invalid(None, LedgerError(ErrorCode.INVALID_REQUEST, _too_deep(depth_max)))
    raw_id = bytes(members.get("id", b""))
    known_id = raw_id if raw_id and _is_id(raw_id) and own_keys.count("id") == 1 else None

    def invalid(detail: str) -> Invalid:
        return Invalid(known_id, LedgerError(ErrorCode.INVALID_REQUEST, detail))

    if twice is not None:
        return invalid(f"The key {json.dumps(twice[:64], ensure_ascii=False)} occurs twice in one object.")
    if _depth(raw) + batch > depth_max:
        return invalid(_too_deep(depth_max))
    if raw_id and known_id is None:
        return invalid(_ID_RULE)
    if _text_of(members.get("jsonrpc")) != "2.0":
        return invalid('The member jsonrpc must be "2.0".')
    method = _text_of(members.get("method"))
    if method is None:
        return invalid("The member method must be a string.")
    return Request(method, bytes(members.get("params", b"")), raw_id or None)


def _duplicates(raw: bytes) -> tuple[str | None, list[str]]:
    """A key that occurs twice in one object of valid JSON, if there is one, and all keys of the outermost object."""
    found: list[str] = []

    def keys_of(pairs: list[tuple[str, Any]]) -> list[str]:
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                found.append(key)
            seen.add(key)
        return [key for key, _ in pairs]

    decoder = json.JSONDecoder(object_pairs_hook=keys_of, parse_int=len, parse_float=len)
    own_keys: list[str] = decoder.decode(raw.decode())
    return (found[0] if found else None), own_keys


def _text_of(raw: Raw | None) -> str | None:
    """A raw value as text, None if it is not there or not a string."""
    if raw is None or bytes(raw)[:1] != b'"':
        return None
    return _TEXT.decode(raw)


# -- frames out ----------------------------------------------------------------------------------------------------

_ENCODER = msgspec.json.Encoder()


def encode_result(id: bytes, result: Any) -> bytes:  # noqa: A002 - the protocol's word
    """The reply to the request with this raw id. None is sent as ``null``: a reply always has a result or an error."""
    return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (id, _ENCODER.encode(result))


def encode_error(id: bytes | None, error: LedgerError) -> bytes:  # noqa: A002
    """The error reply to the request with this raw id; ``null`` if the id could not be read."""
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (id or b"null", _ENCODER.encode(error.to_wire()))


def encode_batch(replies: Sequence[bytes]) -> bytes:
    """Encoded replies as one array. With no replies there is nothing to send, not an empty array."""
    assert replies
    return b"[" + b",".join(replies) + b"]"


def encode_notification(method: str, params: Any) -> bytes:
    """A message that expects no answer."""
    return b'{"jsonrpc":"2.0","method":%b,"params":%b}' % (_ENCODER.encode(method), _ENCODER.encode(params))


def encode_event(event: Event) -> bytes:
    """The JSON of one event, to be framed for each subscription by `event_frame`."""
    return _ENCODER.encode(event)


def event_frame(subscription: str, event: bytes) -> bytes:
    """The whole notification that delivers an encoded event to a subscription."""
    return b'{"jsonrpc":"2.0","method":"ledger_subscription","params":{"subscription":%b,"result":%b}}' % (
        _ENCODER.encode(subscription),
        event,
    )
