"""Requests that the tests of single, batched and money commands share."""

from __future__ import annotations

from typing import Any

from tests.gateway.fakes import Client

BATCH_ID = "01890000-0000-7000-8000-000000000000"
MINE, OTHERS = 11, 12


def debit(number: Any, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": "debit", "params": {"account_id": MINE, "amount": "1", **params}}


def ask(number: Any, method: str, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}


def item(**params: Any) -> dict[str, Any]:
    return {"method": "debit", "params": {"account_id": MINE, "amount": "1", **params}}


async def answers(client: Client, members: list[Any]) -> list[Any]:
    await client.send(members)
    reply = await client.receive()
    assert isinstance(reply, list)
    return reply
