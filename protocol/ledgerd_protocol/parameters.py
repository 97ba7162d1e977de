"""The parameters of a request: raw JSON to the Struct of its method.

Rules of this file:

- Absent parameters, ``null``, ``{}`` and ``[]`` are the same. ``[{...}]`` is by name. Other arrays are positional, in
  the order of the Struct's fields, and refused for money: a swapped source and destination must not pass.
- Unknown parameters are refused.
- Parameters that are lenient are read without any refusal: their method says in its own way what is wrong.
- An amount is never a number here: it stays the raw text that `ledgerd_protocol.money` judges.
- All mistakes are reported at once, each with a pointer into the parameters as they were sent.
- Keys that occur twice, and text that is not JSON, have been refused by `ledgerd_protocol.codec` before.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from typing import Any, NoReturn

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.messages import BATCH_ITEMS_MAX, Params, TransactionBatch
from ledgerd_protocol.methods import BATCHABLE, METHODS, Method
from ledgerd_protocol.problems import PROBLEMS_MAX, Problem, breaks_rule, problems_of, rule_of

_ARRAY = msgspec.json.Decoder(list[Raw])


class _Plan(Struct, frozen=True):
    """How to decode one Struct of parameters, and what to look at afterwards because msgspec does not know it.

    ``rules`` are fields with a rule of their own, ``exclusive`` gives for a group of fields their values and number.
    """

    decoder: msgspec.json.Decoder[Params]
    fields: tuple[str, ...]
    rules: tuple[tuple[str, str], ...]
    exclusive: tuple[tuple[Callable[[Params], tuple[Any, ...]], int], ...]


@functools.cache
def _plan(params: type[Params]) -> _Plan:
    fields = msgspec.structs.fields(params)
    rules = ((field.name, rule_of(field.type)) for field in fields)
    return _Plan(
        decoder=msgspec.json.Decoder(params),
        fields=tuple(field.encode_name for field in fields),
        rules=tuple((name, rule) for name, rule in rules if rule is not None),
        exclusive=tuple((attrgetter(*group), len(group)) for group in params.exclusive),
    )


def decode_params(method: Method, raw: bytes) -> Params:
    """The parameters of a request as the method's Struct.

    Amounts match the grammar of amounts and metadata its limits, but both are still raw. The commands inside a
    `TransactionBatch` are read by `decode_items`. Raises LedgerError ``invalid_params``, with every mistake in
    ``data["errors"]`` as ``{"pointer", "detail"}``; never of parameters that are lenient.
    """
    if method.params.lenient:
        return _leniently(method, raw)
    named, place, names = _by_name(method, raw)
    params = _decoded(method.params, named)
    if params is None:
        found = problems_of(method.params, named)
        if method.params is TransactionBatch:
            found = itertools.chain(found, _problems_in_items(named))
        _refuse(_as_sent(problem, place, names) for problem in found)
    return params


def decode_items(batch: TransactionBatch) -> list[tuple[Method, Params]]:
    """The commands of a `transaction_batch`, in order.

    Raises LedgerError ``batch_too_large``, or ``invalid_params`` with the mistakes of all items at once.
    """
    if len(batch.items) > BATCH_ITEMS_MAX:
        raise LedgerError(
            ErrorCode.BATCH_TOO_LARGE, f"A batch may have {BATCH_ITEMS_MAX} items, this one has {len(batch.items)}."
        )
    decoded: list[tuple[Method, Params]] = []
    problems: list[Problem] = []
    for index, item in enumerate(batch.items):
        try:
            decoded.append(_item(item.method, bytes(item.params), f"/items/{index}"))
        except _ItemRefused as refused:
            problems += refused.problems
    if batch.batch_id is UNSET and (batch.atomic or any(_without_id(params) for _, params in decoded)):
        detail = "A batch that is atomic, or has an item without transaction_id, needs a batch_id."
        problems.append(Problem("/batch_id", detail))
    if problems:
        _refuse(problems)
    return decoded


class _ItemRefused(Exception):
    """One command of a batch cannot be read."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__()
        self.problems = problems


def _item(name: str, raw: bytes, place: str) -> tuple[Method, Params]:
    """One command of a batch. Raises _ItemRefused, with pointers into the parameters of the batch."""
    if name not in BATCHABLE:
        raise _ItemRefused([Problem(f"{place}/method", f"Expected one of {', '.join(sorted(BATCHABLE))}.")])
    method = METHODS[name]
    try:
        return method, decode_params(method, raw)
    except LedgerError as error:
        found = [Problem(f"{place}/params{one['pointer']}", one["detail"]) for one in error.data["errors"]]
        raise _ItemRefused(found) from error


class _LooseItem(Struct):
    """A command of a batch in which only that is looked at which decides about its parameters."""

    method: str
    params: Raw = Raw(b"{}")


class _LooseBatch(Struct):
    items: list[Raw]


_LOOSE_BATCH = msgspec.json.Decoder(_LooseBatch)
_LOOSE_ITEM = msgspec.json.Decoder(_LooseItem)


def _problems_in_items(named: bytes) -> Iterator[Problem]:
    """The mistakes in the commands of a batch that cannot be read as a whole. Those of its own members are known."""
    try:
        items = _LOOSE_BATCH.decode(named).items
    except msgspec.MsgspecError:
        return
    for index, raw in enumerate(items):
        try:
            item = _LOOSE_ITEM.decode(raw)
            _item(item.method, bytes(item.params), f"/items/{index}")
        except msgspec.MsgspecError:
            continue
        except _ItemRefused as refused:
            yield from refused.problems


def _leniently(method: Method, raw: bytes) -> Params:
    """The parameters of a method that judges them itself, whatever they are."""
    try:
        return _plan(method.params).decoder.decode(raw if raw[:1] == b"{" else _by_name(method, raw)[0])
    except (LedgerError, msgspec.MsgspecError, RecursionError):
        return method.params()


def _without_id(params: Params) -> bool:
    return getattr(params, "transaction_id", UNSET) is UNSET


def _decoded(cls: type[Params], named: bytes) -> Params | None:
    """The parameters if nothing is wrong with them."""
    plan = _plan(cls)
    try:
        params = plan.decoder.decode(named)
    except (msgspec.MsgspecError, RecursionError):
        return None
    for name, rule in plan.rules:
        value: Raw | UnsetType = getattr(params, name)
        if value is not UNSET and breaks_rule(rule, bytes(value)) is not None:
            return None
    for values, size in plan.exclusive:
        if values(params).count(UNSET) < size - 1:
            return None
    return params


def _by_name(method: Method, raw: bytes) -> tuple[bytes, str, dict[str, int] | None]:
    """Parameters as an object, the pointer to that object as sent, and for positional ones the place of each name."""
    first = raw[:1]
    if first == b"{":
        return raw, "", None
    if raw in (b"", b"null"):
        return b"{}", "", None
    if first != b"[":
        _refuse([Problem("", "Expected an object or an array.")])
    values = [bytes(value) for value in _array(raw)]
    if not values:
        return b"{}", "", None
    if len(values) == 1 and values[0][:1] == b"{":
        return values[0], "/0", None
    if not method.positional:
        _refuse([Problem("", f"{method.name} takes its parameters by name: an object, or an array of one object.")])
    names = _plan(method.params).fields
    if len(values) > len(names):
        surplus = range(len(names), len(values))
        _refuse(Problem(f"/{place}", f"{method.name} takes at most {len(names)} parameters.") for place in surplus)
    members = (b'"%b":%b' % (name.encode(), value) for name, value in zip(names, values, strict=False))
    return b"{" + b",".join(members) + b"}", "", {name: place for place, name in enumerate(names)}


def _array(raw: bytes) -> list[Raw]:
    try:
        return _ARRAY.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        _refuse([Problem("", "Expected an object or an array.")])


def _as_sent(problem: Problem, place: str, names: dict[str, int] | None) -> Problem:
    """The problem with its pointer into the parameters as they were sent, not as they were named here."""
    if names is None:
        return Problem(place + problem.pointer, problem.detail)
    _, name, *deeper = problem.pointer.split("/")
    return Problem("/".join(["", str(names[name]), *deeper]), problem.detail)


def _refuse(problems: Iterable[Problem]) -> NoReturn:
    """Raise ``invalid_params`` with the first `PROBLEMS_MAX` problems."""
    found = list(itertools.islice(problems, PROBLEMS_MAX + 1))  # looking for all of very many would take long
    errors = [{"pointer": problem.pointer, "detail": problem.detail} for problem in found[:PROBLEMS_MAX]]
    if len(found) == 1:
        detail = f"{errors[0]['pointer']}: {errors[0]['detail']}".removeprefix(": ")
    elif len(found) == len(errors):
        detail = f"{len(found)} parameters are not valid; see data.errors."
    else:
        detail = f"More than {PROBLEMS_MAX} parameters are not valid; see data.errors for the first of them."
    raise LedgerError(ErrorCode.INVALID_PARAMS, detail, errors=errors)
