"""Everything that is wrong with the parameters of a request, said at once.

msgspec stops at the first mistake. A person who mends a client wants all of them, each with a JSON Pointer (RFC 6901)
into the parameters as they were sent. So the fast path decodes a whole Struct; only when that fails is the same type
walked here, member by member. The walk never accepts what the fast path refuses, nor the other way round.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator
from types import GenericAlias, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Meta, Raw, Struct, UnsetType

from ledgerd_protocol.messages import Params
from ledgerd_protocol.metadata import canonical_metadata
from ledgerd_protocol.money import AmountSyntax, amount_text

PROBLEMS_MAX = 100
"""Named in one answer; with more, its detail says so."""

_NAME_LENGTH_MAX = 64
"""Of an unknown name that is repeated in the answer: a name could be nearly as long as a message may be."""

_PLAIN_WORDS = (("`int`", "an integer"), ("`float`", "a number"), ("`str`", "a string"), ("`bool`", "a boolean"))

_OBJECT = msgspec.json.Decoder(dict[str, Raw])
_ARRAY = msgspec.json.Decoder(list[Raw])


class Problem(Struct, frozen=True):
    """One mistake: where, as a JSON Pointer into the parameters, and what, as a sentence."""

    pointer: str
    detail: str


def problems_of(params: type[Params], raw: bytes, pointer: str = "") -> Iterator[Problem]:
    """Every mistake in raw parameters given by name. Nothing if the parameters are valid."""
    yield from _object_problems(params, raw, pointer)


def rule_of(annotation: Any) -> str | None:
    """The rule, beyond JSON types, by which a value of this type is judged: ``amount``, ``metadata`` or None."""
    meta = _meta(_without_unset(annotation))
    return meta.extra.get("rule") if meta is not None and meta.extra else None


def breaks_rule(rule: str | None, raw: bytes) -> str | None:
    """The sentence that says how a raw value breaks its rule, or None."""
    try:
        if rule == "amount":
            amount_text(raw)
        elif rule == "metadata":
            canonical_metadata(raw)
    except AmountSyntax:
        return (
            'Expected a plain decimal amount such as "10.00": no sign, exponent or leading zeros, at most 8 decimals.'
        )
    except ValueError as error:
        return str(error)
    return None


def _exclusive_problems(params: type[Params], given: set[str], pointer: str = "") -> Iterator[Problem]:
    """For each group of parameters of which at most one may be given: a mistake if more are."""
    for group in params.exclusive:
        several = [name for name in group if name in given]
        if len(several) > 1:
            yield Problem(f"{pointer}/{several[1]}", f"Give at most one of {', '.join(group)}.")


def _object_problems(cls: type[Struct], raw: bytes, pointer: str) -> Iterator[Problem]:
    members = _decoded(_OBJECT, raw)
    if members is None:
        yield Problem(pointer, f"Expected an object, got {_kind(raw)}.")
        return
    fields = {field.encode_name: field for field in msgspec.structs.fields(cls)}
    for name, value in members.items():
        if name in fields:
            yield from _value_problems(fields[name].type, bytes(value), f"{pointer}/{name}")
        else:
            yield _unknown(name, list(fields), pointer)
    for name, field in fields.items():
        if field.required and name not in members:
            yield Problem(f"{pointer}/{name}", "This parameter is required.")
    if issubclass(cls, Params):
        yield from _exclusive_problems(cls, set(members), pointer)


def _value_problems(annotation: Any, raw: bytes, pointer: str) -> Iterator[Problem]:
    """Mistakes in one value, looking into objects, arrays and maps."""
    annotation = _without_unset(annotation)
    bare = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    if isinstance(bare, type) and issubclass(bare, Struct):
        yield from _object_problems(bare, raw, pointer)
        return
    if (broken := breaks_rule(rule_of(annotation), raw)) is not None:
        yield Problem(pointer, broken)
        return
    inner = list(_inner_problems(bare, raw, pointer))
    if inner:
        yield from inner
        return
    try:
        _decoder(annotation).decode(raw)
    except (msgspec.MsgspecError, RecursionError) as error:
        yield Problem(pointer, _sentence(annotation, str(error)))


def _inner_problems(bare: Any, raw: bytes, pointer: str) -> Iterator[Problem]:
    """Mistakes in the items of an array or in the keys and values of a map."""
    if get_origin(bare) is list:
        (item_type,) = get_args(bare)
        for index, item in enumerate(_decoded(_ARRAY, raw) or []):
            yield from _value_problems(item_type, bytes(item), f"{pointer}/{index}")
    elif get_origin(bare) is dict:
        key_type, value_type = get_args(bare)
        map_of_anything: Any = GenericAlias(dict, (key_type, Any))
        for key, value in (_decoded(_OBJECT, raw) or {}).items():
            place = f"{pointer}/{_escaped(key)}" if len(key) <= _NAME_LENGTH_MAX else pointer
            if _decoded(_decoder(map_of_anything), msgspec.json.encode({key: None})) is None:
                yield Problem(place, "A name in this object is not of the kind that it has to be.")
            yield from _value_problems(value_type, bytes(value), place)


@functools.cache
def _decoder(annotation: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(annotation)


def _decoded(decoder: msgspec.json.Decoder[Any], raw: bytes) -> Any:
    """What the decoder makes of the text, None if it refuses it."""
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        return None


def _without_unset(annotation: Any) -> Any:
    """The type of a value that is there: optional parameters are a union with UnsetType."""
    if get_origin(annotation) in (Union, UnionType):
        there = [part for part in get_args(annotation) if part is not UnsetType]
        if len(there) == 1:
            return there[0]
    return annotation


def _meta(annotation: Any) -> Meta | None:
    if get_origin(annotation) is not Annotated:
        return None
    return next((part for part in get_args(annotation) if isinstance(part, Meta)), None)


def _sentence(annotation: Any, message: str) -> str:
    """msgspec's message in JSON's words and without its own path.

    Where it would quote a regular expression, the type's description; where it would quote the value, the choices.
    """
    if get_origin(annotation) is Literal:
        return f"Expected one of {', '.join(get_args(annotation))}."
    if "matching regex" in message and (meta := _meta(annotation)) is not None and meta.description:
        return f"Expected: {meta.description}"
    said = message.partition(" - at ")[0]
    for python, plain in _PLAIN_WORDS:
        said = said.replace(python, plain)
    return said.replace("`", "") + "."


def _unknown(name: str, known: list[str], pointer: str) -> Problem:
    if len(name) > _NAME_LENGTH_MAX:
        return Problem(pointer, f"There is no parameter with a name of {len(name)} characters.")
    close = difflib.get_close_matches(name, known, 1)
    detail = "There is no such parameter." + (f" Did you mean {close[0]}?" if close else "")
    return Problem(f"{pointer}/{_escaped(name)}", detail)


def _kind(raw: bytes) -> str:
    """The JSON type of a raw value, with its article."""
    kinds = {b"{": "an object", b"[": "an array", b'"': "a string", b"t": "a boolean", b"f": "a boolean", b"n": "null"}
    return kinds.get(raw[:1], "a number")


def _escaped(name: str) -> str:
    """A member name as a reference token of a JSON Pointer."""
    return name.replace("~", "~0").replace("/", "~1")
