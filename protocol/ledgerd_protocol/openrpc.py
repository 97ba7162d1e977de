"""The protocol as an OpenRPC document, built from the table of methods. `rpc.discover` answers it.

``python -m ledgerd_protocol.openrpc`` writes it to ``protocol/openrpc.json`` of a checkout, for client generators.
What OpenRPC has no place for stands in extensions: ``x-scopes`` of a method, ``x-notifications`` of the document.
"""

from __future__ import annotations

import functools
import inspect
import sys
from pathlib import Path
from typing import Any

import msgspec

from ledgerd_protocol import events, results
from ledgerd_protocol.errors import ErrorCode
from ledgerd_protocol.methods import METHODS, Method
from ledgerd_protocol.results import Page

OPENRPC_VERSION = "1.3.2"
PROTOCOL_VERSION = "1.0.0"
"""Of the protocol, not of the daemon: the first number is that of ``ledgerd.v1``."""

_REF = "#/components/schemas/{name}"
_PAGE_ITEMS = {
    "account_list": results.Account,
    "token_list": results.TokenInfo,
    "user_list": results.User,
    "transaction_list": results.Transaction,
    "transaction_report": results.Transaction,
    "advance_list": results.Advance,
    "monitor_list": results.Monitor,
}
_OTHER_ITEMS = {"transaction_report": results.FailedTransaction}
"""What else the items of a page may be."""
_EVENTS = (
    events.Start,
    events.Live,
    events.Update,
    events.TransactionEvent,
    events.MonitorCrossed,
    events.AlertRaised,
    events.AdvanceHappened,
    events.AccountAdded,
    events.Heartbeat,
    events.Closed,
)


@functools.cache
def document() -> dict[str, Any]:
    """The OpenRPC document. The same object every time: do not change it."""
    types = [method.params for method in METHODS.values()]
    results = [method.result for method in METHODS.values()]
    schemas, components = msgspec.json.schema_components(
        [*types, *results, *_PAGE_ITEMS.values(), *_OTHER_ITEMS.values(), *_EVENTS], ref_template=_REF
    )
    result_schemas = dict(zip(METHODS, schemas[len(types) :], strict=False))
    for component in components.values():
        # Docstrings keep their indentation before Python 3.13; the document must not depend on who wrote it.
        component["description"] = inspect.cleandoc(component["description"])
    return {
        "openrpc": OPENRPC_VERSION,
        "info": {
            "title": "ledgerd",
            "version": PROTOCOL_VERSION,
            "description": "The ledger daemon for teams that already run Postgres: JSON-RPC 2.0 over WebSocket.",
            "license": {"name": "MIT"},
        },
        "methods": [_method(method, result_schemas[name], components) for name, method in METHODS.items()],
        "components": {"schemas": components, "errors": {code.text: _error(code) for code in ErrorCode}},
        "x-notifications": _notifications(),
    }


def _method(method: Method, result: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    summary, _, _ = (method.params.__doc__ or "").partition("\n")
    said = {
        "name": method.name,
        "summary": _SUMMARIES.get(method.name, summary),
        "paramStructure": "either" if method.positional else "by-name",
        "params": _parameters(method, components),
        "result": {"name": f"{method.name}_result", "schema": _result_schema(method, result)},
        "errors": [{"$ref": f"#/components/errors/{code.text}"} for code in ErrorCode if _may_answer(method, code)],
        "x-scopes": sorted(method.scopes),
    }
    if method.params.exclusive:
        groups = (", ".join(group) for group in method.params.exclusive)
        said["description"] = " ".join(f"Give at most one of {group}." for group in groups)
    return said


_SUMMARIES = {
    "rpc.discover": "This document.",
    "system_info": "What this daemon is and what it allows.",
    "session_status": "Whom the connection acts for.",
}
"""Of the methods without parameters, which share one Struct."""


def _parameters(method: Method, components: dict[str, Any]) -> list[dict[str, Any]]:
    """One content descriptor per parameter, in the order of positional parameters."""
    schema = components[method.params.__name__]
    required = schema.get("required", [])
    return [
        {"name": name, "required": name in required, "schema": property_schema}
        for name, property_schema in schema["properties"].items()
    ]


def _result_schema(method: Method, result: dict[str, Any]) -> dict[str, Any]:
    if method.name not in _PAGE_ITEMS:
        assert method.result is not Page, f"nobody says what the items of {method.name} are"
        return result
    item: dict[str, Any] = {"$ref": _REF.format(name=_PAGE_ITEMS[method.name].__name__)}
    other = _OTHER_ITEMS.get(method.name)
    if other is not None:
        item = {"anyOf": [item, {"$ref": _REF.format(name=other.__name__)}]}
    return {"allOf": [result, {"type": "object", "properties": {"items": {"type": "array", "items": item}}}]}


def _may_answer(method: Method, code: ErrorCode) -> bool:
    """Whether errors of this code's group have a meaning for the method. Groups are the thousands of the codes."""
    room = method.name.partition("_")[0]
    match code // 1000:
        case 2:
            return room not in ("rpc.discover", "system", "session")
        case 3:
            return method.money or method.name == "monitor_set"
        case 4:
            return method.money
        case 6:
            return room == "advance"
        case 7:
            return room == "ledger"
        case _:
            return True


def _error(code: ErrorCode) -> dict[str, Any]:
    return {"code": int(code), "message": code.sentence, "data": {"code": code.text, "retryable": code.retryable}}


def _notifications() -> list[dict[str, Any]]:
    """What the daemon sends of its own accord."""
    event = {"oneOf": [{"$ref": _REF.format(name=event.__name__)} for event in _EVENTS]}
    return [
        {
            "name": "ledger_subscription",
            "summary": "One event of a subscription.",
            "params": [
                {"name": "subscription", "required": True, "schema": {"type": "string"}},
                {"name": "result", "required": True, "schema": event},
            ],
        },
        {
            "name": "ledger_session",
            "summary": "A notice about the connection itself.",
            "params": [
                {"name": "type", "required": True, "schema": {"enum": ["expiring", "going_away"]}},
                {"name": "expires_at", "required": False, "schema": {"type": "string"}},
            ],
        },
    ]


def rendered() -> str:
    """The document as the text of ``protocol/openrpc.json``."""
    return msgspec.json.format(msgspec.json.encode(document()), indent=2).decode() + "\n"


def main() -> None:
    """Write ``protocol/openrpc.json`` of the checkout this module lies in."""
    folder = Path(__file__).resolve().parents[1]
    if folder.name != "protocol":
        sys.exit("This is an installed package, not a checkout; ask a daemon with rpc.discover instead.")
    (folder / "openrpc.json").write_text(rendered(), encoding="utf-8")


if __name__ == "__main__":
    main()
