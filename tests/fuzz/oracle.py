"""What `decode_frame` must answer, by other means than its own: one reading by `json`, then the rules one by one.

Slow and simple on purpose. Nothing here is shared with the codec but the nouns of its answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NoReturn

from msgspec import Struct

from ledgerd_protocol.codec import ID_BYTES_MAX, ID_DIGITS_MAX, TOO_LARGE_ANSWERS_MAX, Limits
from ledgerd_protocol.errors import ErrorCode


class Number(str):
    """A number as it is spelled."""

    __slots__ = ()


class Members(list[tuple[str, Any]]):
    """The members of an object in the order of the text, those that come twice included."""

    def get(self, name: str) -> Any:
        """The value of the last member of this name, None if there is none."""
        return next((value for key, value in reversed(self) if key == name), None)

    def named(self, name: str) -> int:
        """How many members have this name."""
        return sum(key == name for key, _ in self)


Id = tuple[str, str] | None
"""Type and value of an id: ``("string", "a")``, ``("number", "1")`` with its spelling; None where ``null`` is
answered."""


class Wanted(Struct, frozen=True):
    """What must come of one member. ``id_in_doubt``: the id occurs twice, and answering under it is neither right nor
    wrong. ``method`` is None for a member that is refused, ``code`` then says how.
    """

    id: Id
    method: str | None = None
    params: Any = None
    has_params: bool = False
    has_id: bool = False
    code: ErrorCode | None = None
    id_in_doubt: bool = False


class Verdict(Struct, frozen=True):
    """What must come of a text. ``bottomless``: it nests so deep that it may be refused in any way."""

    members: list[Wanted]
    batch: bool = False
    bottomless: bool = False


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)


_READER = json.JSONDecoder(object_pairs_hook=Members, parse_int=Number, parse_float=Number, parse_constant=_refuse)


def read(text: str) -> Any:
    """Strict JSON as lists, `Members`, text, `Number`, booleans and None. Raises ValueError or RecursionError."""
    return _READER.decode(text)


def walk(value: Any) -> Iterator[tuple[Any, int]]:
    """Every value in a value, keys included, with how many objects and arrays it lies in, itself counted."""
    left = [(value, 0)]
    while left:
        inner, depth = left.pop()
        if isinstance(inner, list):
            depth += 1
            for member in inner:
                left += [(part, depth) for part in member] if isinstance(inner, Members) else [(member, depth)]
        yield inner, depth


def depth_of(value: Any) -> int:
    """How deep the objects and arrays of a value lie within one another."""
    return max(depth for _, depth in walk(value))


def has_forbidden_text(value: Any) -> bool:
    """Whether a string or key has U+0000 or a lone surrogate."""
    return any(
        isinstance(inner, str) and any(sign == "\0" or "\ud800" <= sign <= "\udfff" for sign in inner)
        for inner, _ in walk(value)
    )


def has_key_twice(value: Any) -> bool:
    """Whether one of the objects in a value has a key twice."""
    return any(isinstance(inner, Members) and len({key for key, _ in inner}) < len(inner) for inner, _ in walk(value))


def id_of(value: Any) -> Id:
    """The id that a value is, None if it is none."""
    if isinstance(value, Number):
        whole = not set(value) & set(".eE")
        return ("number", str(value)) if whole and len(value.lstrip("-")) <= ID_DIGITS_MAX else None
    if isinstance(value, str) and len(value.encode()) <= ID_BYTES_MAX:
        return ("string", value)
    return None


def judge(text: str, limits: Limits) -> Verdict:
    """What must come of a text."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return _whole(ErrorCode.PARSE_ERROR)
    if size > limits.message_bytes_max:
        return _whole(ErrorCode.INVALID_REQUEST)
    try:
        value = read(text)
    except RecursionError:
        return Verdict([], bottomless=True)
    except ValueError:
        return _whole(ErrorCode.PARSE_ERROR)
    if has_forbidden_text(value):
        return _whole(ErrorCode.PARSE_ERROR)
    if isinstance(value, Members) or not isinstance(value, list):
        return Verdict([_member(value, limits.depth_max)])
    if not value:
        return _whole(ErrorCode.INVALID_REQUEST)
    if len(value) > limits.batch_members_max:
        return _too_large(value)
    return Verdict([_member(member, limits.depth_max - 1) for member in value], batch=True)


def _whole(code: ErrorCode) -> Verdict:
    return Verdict([Wanted(None, code=code)])


def _too_large(values: list[Any]) -> Verdict:
    code = ErrorCode.BATCH_TOO_LARGE
    members = [value for value in values if isinstance(value, Members)]
    wanted = [
        Wanted(known, code=code, id_in_doubt=member.named("id") > 1)
        for member in members
        if (known := id_of(member.get("id"))) is not None or member.named("id") > 1
    ]
    return _whole(code) if len(wanted) > TOO_LARGE_ANSWERS_MAX else Verdict(wanted, batch=True)


def _member(value: Any, depth_max: int) -> Wanted:
    code = ErrorCode.INVALID_REQUEST
    if not isinstance(value, Members):
        return Wanted(None, code=code)
    has_id = value.named("id") > 0
    known = id_of(value.get("id")) if value.named("id") == 1 else None
    if has_key_twice(value) or depth_of(value) > depth_max or (has_id and known is None):
        return Wanted(known, code=code)
    version, method = value.get("jsonrpc"), value.get("method")
    if isinstance(version, Number) or version != "2.0" or isinstance(method, Number) or not isinstance(method, str):
        return Wanted(known, code=code)
    return Wanted(known, method, value.get("params"), value.named("params") > 0, has_id)
