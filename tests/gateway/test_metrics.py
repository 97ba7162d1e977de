"""Metrics have the labels that the daemon decides, whatever clients make up."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import REGISTRY

from ledgerd.gateway.server import COUNTED_CODES
from tests.gateway.fakes import eventually, open_door


def series() -> set[tuple[str, Any]]:
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name.startswith("ledgerd_")
    }


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_methods_that_clients_make_up_are_counted_as_one() -> None:
    async with open_door() as door:
        client = await door.service()
        await client.refused("made_up")
        before = series()
        counted = value("ledgerd_requests_total", method="unknown", code="method_not_found")
        for number in range(20):
            await client.refused(f"made_up_{number}")
        assert series() == before
        assert value("ledgerd_requests_total", method="unknown", code="method_not_found") == counted + 20


@pytest.mark.parametrize(("code", "label"), [(1000, "1000"), (4999, "other"), (3000, "other")])
async def test_close_codes_that_clients_make_up_are_counted_as_one(code, label) -> None:
    async with open_door() as door:
        client = await door.service()
        before = value("ledgerd_connections_closed_total", code=label)
        await client.connection.aclose(code)
        await eventually(lambda: value("ledgerd_connections_closed_total", code=label) == before + 1)
    codes = {dict(labels)["code"] for name, labels in series() if name == "ledgerd_connections_closed_total"}
    assert codes <= {str(known) for known in COUNTED_CODES} | {"other"}


async def test_tokens_that_are_shown_are_counted() -> None:
    async with open_door() as door:
        accepted, refused = (value("ledgerd_sign_ins_total", means="token", outcome=o) for o in ("accepted", "refused"))
        client = await door.service()
        assert value("ledgerd_sign_ins_total", means="token", outcome="accepted") == accepted + 1
        await client.refused("session_authenticate", {"token": "lgd_unknown"})
        assert value("ledgerd_sign_ins_total", means="token", outcome="refused") == refused + 1
