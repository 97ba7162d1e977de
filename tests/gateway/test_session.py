"""What a connection may do, in which order and how much."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.testing

from ledgerd.gateway.call import Now, Read
from ledgerd.gateway.methods import HANDLERS
from ledgerd.metrics import NOTIFICATIONS_IGNORED
from tests.gateway.fakes import (
    eventually,
    handshake,
    open_door,
    text_frame,
)

DEBIT = {"account_id": 11, "amount": "1.00"}


def request(number: Any, method: str, params: Any = None) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params or {}}


# -- envelope ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ['"a"', "7", "-3", "123456789012345678901234567890", '"é\\n"'])
async def test_the_id_is_echoed_as_it_was_spelled(number: str) -> None:
    async with open_door() as door:
        client = await door.client()
        await client.send(f'{{"jsonrpc":"2.0","id":{number},"method":"system_ping"}}')
        assert f'"id":{number},' in await client.connection.get_message()


async def test_text_that_is_not_json_is_answered_and_the_connection_lives() -> None:
    async with open_door() as door:
        client = await door.client()
        await client.send("{nonsense")
        reply = await client.receive()
        assert (reply["id"], reply["error"]["code"]) == (None, -32700)
        assert (await client.call("system_ping"))["time"]


async def test_an_unknown_method_is_answered() -> None:
    async with open_door() as door:
        assert (await (await door.client()).refused("no_such"))["code"] == -32601


async def test_a_notification_is_not_answered_not_executed_and_counted() -> None:
    before = NOTIFICATIONS_IGNORED._value.get()
    async with open_door() as door:
        client = await door.service()
        await client.send({"jsonrpc": "2.0", "method": "debit", "params": DEBIT})
        await client.call("system_ping")
        assert door.router.units == []
    assert NOTIFICATIONS_IGNORED._value.get() == before + 1


async def test_a_money_command_takes_no_positional_parameters() -> None:
    async with open_door() as door:
        client = await door.service()
        assert (await client.refused("debit", [11, "1.00"]))["code"] == -32602
        assert (await client.call("debit", [DEBIT]))["kind"] == "debit"
        assert len(door.router.units) == 1


async def test_every_method_of_the_protocol_bounds_its_result() -> None:
    for name, handler in HANDLERS.items():
        if isinstance(handler, Now | Read) and handler.result_bytes_max is None:
            assert name.endswith(("_list", "_report"))


# -- order, limits ----------------------------------------------------------------------------------------------------


async def test_money_commands_reach_the_router_in_the_order_of_arrival() -> None:
    async with open_door() as door:
        client = await door.service()
        for number in range(20):
            await client.send(request(number, "debit", {**DEBIT, "reference": str(number)}))
        await door.router.taken(20)
        assert [command.reference for command in door.router.commands] == [str(number) for number in range(20)]


async def test_a_command_whose_facts_are_missing_is_not_overtaken() -> None:
    async with open_door() as door:
        client = await door.user()
        door.directory.gate = trio.Event()
        await client.send(request(1, "debit", {**DEBIT, "reference": "first"}))
        await eventually(lambda: door.books.reads > 1)
        door.directory.learn()
        await client.send(request(2, "debit", {**DEBIT, "reference": "second"}))
        await client.send(request(3, "system_ping"))
        assert (await client.receive())["id"] == 3
        assert door.router.units == []
        door.directory.gate.set()
        await door.router.taken(2)
        assert [command.reference for command in door.router.commands] == ["first", "second"]


async def test_a_router_that_must_ask_first_keeps_the_order() -> None:
    async with open_door() as door:
        client = await door.service()
        door.router.knows_facts, door.router.gate = False, trio.Event()
        for number in range(5):
            await client.send(request(number, "debit", {**DEBIT, "reference": str(number)}))
        await client.call("system_ping")
        door.router.knows_facts = True
        await client.send(request(5, "debit", {**DEBIT, "reference": "5"}))
        door.router.gate.set()
        await door.router.taken(6)
        assert [command.reference for command in door.router.commands] == list("012345")


async def test_reads_do_not_wait_for_money() -> None:
    async with open_door() as door:
        client = await door.service()
        door.router.holding = True
        await client.send(request(1, "debit", DEBIT))
        await client.send(request(2, "account_get", {"account_id": 11}))
        assert (await client.receive())["id"] == 2
        door.router.answer(door.router.units[0])
        assert (await client.receive())["id"] == 1


async def test_no_more_than_the_allowed_number_execute_and_the_rest_follows() -> None:
    async with open_door(in_flight_max=4) as door:
        client = await door.service()
        door.router.holding = True
        for number in range(10):
            await client.send(request(number, "debit", DEBIT))
        await door.router.taken(4)
        await trio.testing.wait_all_tasks_blocked()
        assert len(door.router.units) == 4
        door.router.answer(door.router.units[0])
        await door.router.taken(5)
        await trio.testing.wait_all_tasks_blocked()
        assert len(door.router.units) == 5
        door.router.holding = False
        for unit in list(door.router.units):
            door.router.answer(unit)
        assert {(await client.receive())["id"] for _ in range(10)} == set(range(10))


@pytest.mark.parametrize(
    "settings", [{"waiting_commands_max": 3}, {"waiting_commands_max": 1000, "waiting_bytes_max": 600}]
)
async def test_the_daemon_stops_reading_only_when_too_much_waits(settings: dict[str, int], autojump_clock: Any) -> None:
    async with open_door(in_flight_max=2, command_ttl_s=10_000, **settings) as door:
        stream = await door.raw(door.books.token("service"))
        door.router.holding = True
        frame = text_frame(json.dumps(request(1, "debit", DEBIT)).encode())
        await stream.send_all(frame * 50)
        await door.router.taken(2)
        await trio.sleep(600)  # silence does not count while the daemon itself does not read
        assert len(door.router.units) == 2
        assert door.gateway.connections == 1
        door.router.holding = False
        for unit in list(door.router.units):
            door.router.answer(unit)
        await door.router.taken(50)


async def test_silence_while_the_daemon_did_not_read_is_forgiven_afterwards(autojump_clock: Any) -> None:
    async with open_door(in_flight_max=1, waiting_commands_max=1, command_ttl_s=10_000) as door:
        stream = await door.raw(door.books.token("service"))
        door.router.holding = True
        await stream.send_all(text_frame(json.dumps(request(1, "debit", DEBIT)).encode()) * 2)
        await door.router.taken(1)
        await trio.sleep(600)
        door.router.holding = False
        door.router.answer(door.router.units[0])
        await trio.sleep(15)
        assert door.gateway.connections == 1


async def test_a_command_that_waited_too_long_is_not_executed(autojump_clock: Any) -> None:
    async with open_door(in_flight_max=1, command_ttl_s=10) as door:
        client = await door.service()
        door.router.holding = True
        await client.send(request(1, "debit", DEBIT))
        await client.send(request(2, "debit", DEBIT))
        await door.router.taken(1)
        await trio.sleep(11)
        door.router.answer(door.router.units[0])
        assert (await client.receive())["id"] == 1
        reply = await client.receive()
        assert (reply["id"], reply["error"]["data"]["code"], reply["error"]["data"]["applied"]) == (2, "timeout", False)
        assert len(door.router.units) == 1


async def test_the_unit_carries_the_deadline_of_its_arrival(autojump_clock: Any) -> None:
    async with open_door(command_ttl_s=10) as door:
        client = await door.service()
        await client.call("debit", DEBIT)
        (unit,) = door.router.units
        assert unit.deadline == unit.commands[0].arrived_at + 10


async def test_a_client_that_does_not_take_its_answers_is_given_no_more_work(autojump_clock: Any) -> None:
    async with open_door(outbox_bytes_max=4000, in_flight_max=4, waiting_commands_max=5) as door:
        client, server = trio.testing.lockstep_stream_pair()
        door.listener.connect_through(server)
        secret = door.books.token("service")
        assert (await handshake(client, {"Authorization": f"Bearer {secret}"}))[0] == 101
        frame = text_frame(json.dumps(request(1, "debit", DEBIT)).encode())
        with trio.move_on_after(5):
            for _ in range(100):
                await client.send_all(frame)
        answer_bytes = 450
        assert len(door.router.units) <= 4000 // answer_bytes + 4


async def test_requests_over_the_rate_are_refused_with_the_time_to_wait(autojump_clock: Any) -> None:
    async with open_door(rate_per_s=10, rate_burst=3) as door:
        client = await door.service()
        for _ in range(3):
            await client.call("debit", DEBIT)
        error = await client.refused("debit", DEBIT)
        assert error["data"]["code"] == "rate_limited"
        await trio.sleep(error["data"]["retry_after_ms"] / 1000)
        await client.call("debit", DEBIT)
        units = len(door.router.units)
        await trio.sleep(0.2)
        items = [{"method": "debit", "params": DEBIT}] * 3
        batch = {"items": items, "batch_id": "01890000-0000-7000-8000-000000000000"}
        assert (await client.refused("transaction_batch", batch))["data"]["code"] == "rate_limited"
        assert len(door.router.units) == units
