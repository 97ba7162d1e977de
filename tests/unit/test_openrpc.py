"""The OpenRPC document: well formed, complete, and the one that is checked in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ledgerd_protocol import openrpc
from ledgerd_protocol.errors import ErrorCode
from ledgerd_protocol.methods import METHODS

DOCUMENT = openrpc.document()
SCHEMA_TYPES = {"string", "number", "integer", "object", "array", "boolean", "null"}


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def resolve(reference: str) -> Any:
    target: Any = DOCUMENT
    for step in reference.removeprefix("#/").split("/"):
        target = target[step]
    return target


def only_members(value: dict[str, Any], required: set[str], optional: set[str]) -> None:
    """Check an object of the specification: what must be there, what may be, and extensions that say what they are."""
    names = {name for name in value if not name.startswith("x-")}
    assert required <= names
    assert names <= required | optional


def check_schema(schema: dict[str, Any]) -> None:
    types = schema.get("type", [])
    assert set([types] if isinstance(types, str) else types) <= SCHEMA_TYPES
    for inner in schema.get("properties", {}).values():
        check_schema(inner)
    assert set(schema.get("required", [])) <= set(schema.get("properties", {}))
    for pattern in [schema["pattern"]] if "pattern" in schema else []:
        re.compile(pattern)


def check_descriptor(descriptor: dict[str, Any]) -> None:
    only_members(descriptor, {"name", "schema"}, {"summary", "description", "required", "deprecated"})
    check_schema(descriptor["schema"])


def test_the_document_has_the_structure_of_openrpc_1() -> None:
    only_members(DOCUMENT, {"openrpc", "info", "methods"}, {"servers", "components", "externalDocs"})
    assert re.fullmatch(r"1\.\d+\.\d+", DOCUMENT["openrpc"])
    only_members(DOCUMENT["info"], {"title", "version"}, {"description", "termsOfService", "contact", "license"})
    for method in DOCUMENT["methods"]:
        only_members(
            method,
            {"name", "params", "result"},
            {
                "summary",
                "description",
                "tags",
                "externalDocs",
                "deprecated",
                "servers",
                "errors",
                "links",
                "paramStructure",
                "examples",
            },
        )
        assert method["paramStructure"] in ("by-name", "by-position", "either")
        names = [descriptor["name"] for descriptor in method["params"]]
        assert len(names) == len(set(names))
        for descriptor in [*method["params"], method["result"]]:
            check_descriptor(descriptor)
    for error in DOCUMENT["components"]["errors"].values():
        only_members(error, {"code", "message"}, {"data"})
        assert type(error["code"]) is int
    for name, schema in DOCUMENT["components"]["schemas"].items():
        assert re.fullmatch(r"[A-Za-z0-9._-]+", name)
        check_schema(schema)


def test_every_reference_leads_to_something() -> None:
    found = list(references(DOCUMENT))
    assert found
    for reference in found:
        assert reference.startswith("#/components/")
        assert resolve(reference)


def test_required_positional_parameters_come_before_optional_ones() -> None:
    for method in DOCUMENT["methods"]:
        if method["paramStructure"] == "either":
            required = [descriptor["required"] for descriptor in method["params"]]
            known_exception = method["name"] == "token_create"
            assert known_exception or required == sorted(required, reverse=True), method["name"]


def test_every_method_is_described_with_its_params_in_order_and_its_scopes() -> None:
    described = {method["name"]: method for method in DOCUMENT["methods"]}
    assert list(described) == list(METHODS)
    for name, method in METHODS.items():
        assert [descriptor["name"] for descriptor in described[name]["params"]] == list(method.params.__struct_fields__)
        assert described[name]["x-scopes"] == sorted(method.scopes)
        assert described[name]["paramStructure"] == ("by-name" if method.money else "either")
        assert described[name]["summary"]


def test_every_error_is_listed_and_money_methods_name_those_of_money() -> None:
    assert {error["code"] for error in DOCUMENT["components"]["errors"].values()} == {int(code) for code in ErrorCode}
    named = {method["name"]: {reference.rpartition("/")[2] for reference in references(method["errors"])}
             for method in DOCUMENT["methods"]}  # fmt: skip
    assert "insufficient_funds" in named["transfer"]
    assert "insufficient_funds" not in named["balance_get"]
    assert "subscription_not_found" in named["ledger_unsubscribe"]
    assert all("invalid_params" in errors for errors in named.values())


def test_amounts_are_described_as_text_or_number_and_pages_by_their_items() -> None:
    described = {method["name"]: method for method in DOCUMENT["methods"]}
    amount = next(one for one in described["credit"]["params"] if one["name"] == "amount")
    assert set(amount["schema"]["type"]) == {"string", "number"}
    assert "#/components/schemas/Transaction" in references(described["transaction_list"]["result"])


def test_every_event_can_be_told_by_its_type() -> None:
    (subscription, _) = DOCUMENT["x-notifications"]
    events = subscription["params"][1]["schema"]["oneOf"]
    kinds = [resolve(event["$ref"])["properties"]["type"]["enum"] for event in events]
    told = [
        "start",
        "live",
        "update",
        "transaction",
        "monitor",
        "advance",
        "alert",
        "account_added",
        "heartbeat",
        "closed",
    ]
    assert sorted(kind for (kind,) in kinds) == sorted(told)


def test_the_checked_in_document_is_current() -> None:
    path = Path(__file__).parents[2] / "protocol" / "openrpc.json"
    assert path.read_text(encoding="utf-8") == openrpc.rendered(), "run: python -m ledgerd_protocol.openrpc"


def test_writing_the_document_outside_a_checkout_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(openrpc, "__file__", str(tmp_path / "site-packages" / "ledgerd_protocol" / "openrpc.py"))
    with pytest.raises(SystemExit, match=r"rpc\.discover"):
        openrpc.main()
    assert not list(tmp_path.iterdir())


def test_the_document_is_written_beside_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "protocol"
    folder.mkdir()
    monkeypatch.setattr(openrpc, "__file__", str(folder / "ledgerd_protocol" / "openrpc.py"))
    openrpc.main()
    assert (folder / "openrpc.json").read_text(encoding="utf-8") == openrpc.rendered()
