"""Money commands, one and many in a request."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid5

import pytest

from ledgerd.engine.commands import Command, Outcome, Posted, Refused
from ledgerd_protocol.errors import ErrorCode
from tests.gateway.commands import BATCH_ID, MINE, OTHERS, answers, ask, debit, item
from tests.gateway.fake_books import record, side
from tests.gateway.fakes import open_door, posted

# -- transaction_batch ------------------------------------------------------------------------------------------------


async def test_all_mistakes_of_all_items_are_named_before_anything_is_executed() -> None:
    async with open_door() as door:
        client = await door.service()
        items = [
            item(),
            {"method": "debit", "params": {"account_id": MINE, "amount": "1e5"}},
            {"method": "system_ping", "params": {}},
            {"method": "transfer", "params": {"source_account_id": MINE, "amount": "1", "amuont": "1"}},
        ]
        error = await client.refused("transaction_batch", {"items": items, "batch_id": BATCH_ID})
        assert error["code"] == -32602
        pointers = {problem["pointer"] for problem in error["data"]["errors"]}
        assert pointers == {"/items/1/params/amount", "/items/2/method", "/items/3/params/amuont"}
        assert door.router.units == []


async def test_an_item_that_names_no_account_is_pointed_at() -> None:
    async with open_door() as door:
        client = await door.service()
        items = [item(), {"method": "transfer", "params": {"source_account_id": MINE, "amount": "1"}}]
        error = await client.refused("transaction_batch", {"items": items, "batch_id": BATCH_ID})
        assert [problem["pointer"] for problem in error["data"]["errors"]] == ["/items/1/params/destination_account_id"]


@pytest.mark.parametrize("params", [{"items": [item()]}, {"items": [item(transaction_id=BATCH_ID)], "atomic": True}])
async def test_a_batch_that_is_atomic_or_has_an_item_without_id_needs_a_batch_id(params: dict[str, Any]) -> None:
    async with open_door() as door:
        error = await (await door.service()).refused("transaction_batch", params)
        assert [problem["pointer"] for problem in error["data"]["errors"]] == ["/batch_id"]


async def test_items_without_an_id_get_one_that_is_the_same_again() -> None:
    async with open_door() as door:
        client = await door.service()
        own = "01890000-0000-7000-8000-00000000000a"
        params = {"items": [item(), item(transaction_id=own), item()], "batch_id": BATCH_ID}
        await client.call("transaction_batch", params)
        await client.call("transaction_batch", params)
        expected = [str(uuid5(UUID(BATCH_ID), "0")), own, str(uuid5(UUID(BATCH_ID), "2"))]
        assert [command.transaction_id for command in door.router.commands] == expected * 2
        assert len({command.attempt_id for command in door.router.commands}) == 6


async def test_items_are_answered_one_by_one() -> None:
    def outcome(command: Command) -> Outcome:
        if command.reference == "poor":
            return Refused(
                ErrorCode.INSUFFICIENT_FUNDS,
                data={"available": 5, "requested": 100, "version": 3},
                scale=2,
                attempt_id="a1",
                created_at="2026-11-20T12:00:00.000000Z",
            )
        return posted(command)

    async with open_door() as door:
        client = await door.user(1)
        door.router.outcome = outcome
        items = [
            item(),
            item(reference="poor"),
            item(account_id=OTHERS),
            {"method": "credit", "params": {"amount": "1"}},
        ]
        result = await client.call("transaction_batch", {"items": [*items, item()], "batch_id": BATCH_ID})
        codes = [outcome.get("error", {}).get("code") for outcome in result["outcomes"]]
        assert codes == [None, 3001, 2001, 1004, None]
        poor = result["outcomes"][1]["error"]["data"]
        assert (poor["available"], poor["requested"], poor["attempt_id"]) == ("0.05", "1.00", "a1")
        (unit,) = door.router.units
        assert [command.reference for command in unit.commands] == [None, "poor", None]


async def test_an_atomic_batch_travels_as_one_atomic_unit() -> None:
    async with open_door() as door:
        client = await door.service()
        params = {"items": [item(), item()], "batch_id": BATCH_ID, "atomic": True}
        result = await client.call("transaction_batch", params)
        assert [set(outcome) for outcome in result["outcomes"]] == [{"result"}, {"result"}]
        (unit,) = door.router.units
        assert (unit.atomic, unit.batch_id) == (True, BATCH_ID)


async def test_an_atomic_refusal_is_one_error_with_the_index() -> None:
    async with open_door() as door:
        client = await door.service()
        door.router.holding = True
        params = {"items": [item(), item(), item()], "batch_id": BATCH_ID, "atomic": True}
        await client.ask("transaction_batch", params)
        await door.router.taken(1)
        door.router.units[0].answer([Refused(ErrorCode.INSUFFICIENT_FUNDS, index=1)] * 3)
        error = (await client.receive())["error"]
        assert (error["code"], error["data"]["index"]) == (3001, 1)
        assert error["data"]["transaction_id"] == str(uuid5(UUID(BATCH_ID), "1"))


async def test_an_atomic_batch_with_an_account_of_others_is_not_routed() -> None:
    async with open_door() as door:
        client = await door.user(1)
        params = {"items": [item(), item(account_id=OTHERS)], "batch_id": BATCH_ID, "atomic": True}
        error = await client.refused("transaction_batch", params)
        assert (error["code"], error["data"]["index"]) == (2001, 1)
        assert door.router.units == []


async def test_a_whole_refusal_of_an_atomic_batch_has_no_index() -> None:
    async with open_door() as door:
        client = await door.service()
        door.router.holding = True
        await client.ask("transaction_batch", {"items": [item()], "batch_id": BATCH_ID, "atomic": True})
        await door.router.taken(1)
        door.router.units[0].refuse(ErrorCode.UNAVAILABLE, applied=None)
        error = (await client.receive())["error"]
        assert (error["code"], error["data"]["applied"]) == (8008, None)
        assert "index" not in error["data"]


async def test_too_many_items_are_refused() -> None:
    async with open_door() as door:
        client = await door.service()
        error = await client.refused("transaction_batch", {"items": [item()] * 1001, "batch_id": BATCH_ID})
        assert error["code"] == 8002
        assert (await client.refused("transaction_batch", {"items": []}))["code"] == -32602
        assert door.router.units == []


async def test_a_batch_inside_a_batch_is_its_own_unit() -> None:
    async with open_door() as door:
        client = await door.service()
        inner = ask(2, "transaction_batch", items=[item(), item()], batch_id=BATCH_ID, atomic=True)
        replies = await answers(client, [debit(1), inner, debit(3)])
        assert [(len(unit.commands), unit.atomic) for unit in door.router.units] == [(1, False), (2, True), (1, False)]
        assert len(replies[1]["result"]["outcomes"]) == 2


# -- single commands --------------------------------------------------------------------------------------------------


async def test_what_a_command_says_reaches_the_router_as_its_normal_form() -> None:
    async with open_door() as door:
        client = await door.service()
        await client.send(
            '{"jsonrpc":"2.0","id":1,"method":"transfer","params":{"source_account_id":11,"destination_user_id":2,'
            '"amount":1.50,"currency":"USD","reference":"r","reason":"why","metadata":{"b":1.0,"a":[true]},'
            f'"transaction_id":"{BATCH_ID}"}}}}'
        )
        await client.receive()
        (command,) = door.router.commands
        assert (command.kind, command.amount, command.currency) == ("transfer", "1.50", "USD")
        assert (command.reference, command.reason, command.metadata) == ("r", "why", '{"a":[true],"b":1.0}')
        assert command.transaction_id == BATCH_ID
        assert command.principal.scopes == {"service"}


async def test_a_limit_is_a_command_and_is_answered_with_the_account() -> None:
    async with open_door() as door:
        client = await door.client(door.books.token("operator"))
        account = await client.call("account_set_limit", {"account_id": MINE, "overdraft_limit": "0"})
        assert (account["account_id"], account["overdraft_limit"]) == (MINE, "0.00")
        (command,) = door.router.commands
        assert (command.kind, command.amount) == ("limit", "0")
        assert command.debit is not None
        assert command.credit is None


async def test_a_cancel_that_came_too_late_shows_the_transaction() -> None:
    async with open_door() as door:
        client = await door.service()
        late = record(BATCH_ID, [side(MINE, 1)])
        door.router.outcome = lambda _: Refused(ErrorCode.ALREADY_POSTED, record=late)
        error = await client.refused("transaction_cancel", {"account_id": MINE, "transaction_id": BATCH_ID})
        assert (error["code"], error["data"]["transaction"]["transaction_id"]) == (4002, BATCH_ID)
        assert [command.kind for command in door.router.commands] == ["cancel"]


async def test_money_is_refused_as_unavailable_while_its_accounts_cannot_be_asked_for() -> None:
    async with open_door() as door:
        client = await door.user(1)
        door.books.away = True
        error = await client.refused("debit", {"account_id": MINE, "amount": "1"})
        assert (error["data"]["code"], error["data"]["applied"]) == ("unavailable", False)


async def test_a_replay_says_so() -> None:
    async with open_door() as door:
        client = await door.service()
        door.router.outcome = lambda _: Posted(record(BATCH_ID, [side(MINE, 1)]), replayed=True)
        result = await client.call("debit", {"account_id": MINE, "amount": "1", "transaction_id": BATCH_ID})
        assert result["replayed"] is True
