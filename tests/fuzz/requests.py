"""What a client may say: requests that are nearly right, batches of them, and what becomes of them by accident."""

from __future__ import annotations

import functools
import json
from typing import Any

from msgspec.structs import fields

from ledgerd_protocol.messages import Params
from ledgerd_protocol.methods import BATCHABLE, METHODS
from tests.fuzz.source import Source

IDS = [f"01890000-0000-7000-8000-00000000000{number}" for number in range(8)]
PASSWORD = "correct horse"

VALUES: dict[str, list[Any]] = {
    "account_id": [11, 12, 13, 99],
    "source_account_id": [11, 12],
    "destination_account_id": [12, 11, 13, 99],
    "user_id": [1, 2, 99],
    "source_user_id": [1, 2],
    "destination_user_id": [2, 1],
    "amount": ["1.00", "0.01", 1.5, "999999999999999999", "0", "-1", "1.001", "1e2", 7, True],
    "overdraft_limit": ["0", "10.00", 5],
    "below": ["1.00", "0"],
    "above": ["1.00", "5"],
    "currency": ["USD", "EUR", "XAU", "usd"],
    "direction": ["debit", "credit", "sideways"],
    "transaction_id": [*IDS, "00000000-0000-0000-0000-000000000000", "nil"],
    "batch_id": IDS,
    "hold_id": IDS,
    "advance_id": IDS,
    "original_transaction_id": IDS,
    "metadata": [{}, {"order": 17}, {"a": {"b": [1, {"c": None}]}}, []],
    "expires_in_s": [60, 1, 2_678_400],
    "installments": [12, 1, 0],
    "interval_days": [7, 1],
    "created_from": ["2026-11-18T00:00:00Z", "2026-11-18", "2026-11-20T12:00:00.000000+02:00"],
    "created_before": ["2026-11-21T00:00:00Z", "2020-01-01T00:00:00Z"],
    "at": ["2026-11-20T12:00:00Z"],
    "expires_at": ["2036-11-20T12:00:00Z", "2020-01-01T00:00:00Z"],
    "version": [0, 1, 7],
    "min_version": [0, 1],
    "limit": [1, 100, 1000, 0],
    "cursor": ["", "AAAA", "x" * 600],
    "kind": ["credit", "bet", "nothing"],
    "status": ["posted", "failed", "running"],
    "order": ["newest_first", "oldest_first"],
    "scopes": [["user"], ["read"], ["operator"], [], ["user", "topup"]],
    "token_id": [100, 101, 102],
    "monitor_id": [100, 101, 105],
    "email": ["u1@example.org", "ada@example.org", "nobody", "U2@EXAMPLE.ORG"],
    "password": [PASSWORD, "wrong password"],
    "new_password": ["battery staple", "x"],
    "token": ["lgd_nope", ""],
    "name": ["Ada", "", "x" * 300],
    "channel": ["balances", "transactions", "advances", "monitors", "alerts", "smoke"],
    "options": [
        {},
        {"account_ids": [11]},
        {"account_ids": [11, 12, 99]},
        {"user_id": 1, "mode": "latest"},
        {"all": True},
        {"account_ids": [11], "since": {"epoch": "e1", "versions": {"11": 3}}},
        {"since": {"epoch": "e1", "position": "x"}, "all": True},
    ],
    "subscription": ["sub_1", "sub_2", "sub_9"],
    "users": [["ann", "bob"], [], ["", "ann"]],
    "user": ["ann", "u1", 5],
    "transaction_uuid": [*IDS[:4], "x"],
    "request_uuid": IDS[:2],
    "reference_transaction_uuid": IDS[:4],
    "atomic": [False, True],
    "attempts": [True, False],
    "all": [False, True],
    "with_total": [True],
    "reason": ["", "because", "x" * 256],
    "reference": ["order 17", ""],
}
"""Of parameters by name, what is usual first, then what is not."""

ODD: list[Any] = [None, True, 0, -1, 1.5, "", "\u2028", [], {}, [[]], {"": 0}, 10**30, "x" * 300]

REQUEST_IDS: list[Any] = [1, 2, 3, "a", "é", 10**30, -7, "", None, True, 1.5, [], "x" * 257]

ACCIDENTS = [
    b'"',
    b"\\",
    b"{",
    b"]",
    b",",
    b":",
    b"\\u0000",
    b"\\ud800",
    b"NaN",
    b"1e9",
    b'"id":1,',
    b"\xc2\x85",
    b" ",
    b"0",
]

METHOD_NAMES = [*METHODS, *("credit", "debit", "transfer", "account_close", "transaction_batch") * 4, "no_such_method"]


def message_of(source: Source) -> bytes:
    """The text of one message: a request, a batch, one of these with an accident, or just bytes."""
    form = source.below(8)
    if form == 7:
        return source.take(source.below(64)).decode("latin-1").encode()
    value: Any = request_of(source)
    if form in (5, 6):
        value = [value, *(request_of(source) for _ in range(source.below(6)))]
        if source.one_in(60):
            value *= 200
    text = json.dumps(value, ensure_ascii=source.one_in(2)).encode()
    return _hurt(text, source) if form == 4 else text


def request_of(source: Source) -> Any:
    """One request as JSON values; a notification once in a while, or nothing like a request."""
    if source.one_in(40):
        return source.pick(ODD)
    name = source.pick(METHOD_NAMES)
    request: dict[str, Any] = {"jsonrpc": "2.0", "id": source.below(200), "method": name}
    if source.one_in(6):
        request["id"] = source.pick(REQUEST_IDS)
    elif source.one_in(6):
        del request["id"]
    if name in METHODS:
        params = params_of(METHODS[name].params, source)
        wrapped = source.below(8)
        request["params"] = [params] if wrapped == 6 else list(params.values()) if wrapped == 7 else params
    return request


def params_of(cls: type[Params], source: Source) -> dict[str, Any]:
    """Parameters of a method: those it needs, some of the others, now and then something else."""
    params: dict[str, Any] = {}
    for name, required in _fields(cls):
        if required or source.one_in(3):
            params[name] = _value_of(name, source)
    if source.one_in(20):
        params["surprise"] = source.pick(ODD)
    return params


@functools.cache
def _fields(cls: type[Params]) -> list[tuple[str, bool]]:
    return [(field.name, field.required) for field in fields(cls)]


def _value_of(name: str, source: Source) -> Any:
    if source.one_in(30):
        return source.pick(ODD)
    if name == "items":
        names = [*sorted(BATCHABLE), "system_ping"]
        return [_item_of(source.pick(names), source) for _ in range(1 + source.below(4))]
    return source.mostly(VALUES.get(name, ["x"]))


def _item_of(name: str, source: Source) -> dict[str, Any]:
    return {"method": name, "params": params_of(METHODS[name].params, source)}


def _hurt(text: bytes, source: Source) -> bytes:
    at = source.below(len(text) + 1)
    return text[:at] + source.pick(ACCIDENTS) + text[at + source.below(4) :]
