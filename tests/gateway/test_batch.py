"""Many requests in one message."""

from __future__ import annotations

import json
from uuid import UUID

import trio
import trio.testing

from ledgerd.engine.commands import Command, Outcome, Posted, Refused
from ledgerd_protocol.errors import ErrorCode
from tests.gateway.commands import MINE, OTHERS, answers, ask, debit
from tests.gateway.fake_books import record, side
from tests.gateway.fakes import eventually, open_door

# -- JSON-RPC batches -------------------------------------------------------------------------------------------------


async def test_money_members_next_to_one_another_travel_as_one_unit() -> None:
    async with open_door() as door:
        client = await door.service()
        replies = await answers(client, [debit(number, reference=str(number)) for number in range(5)])
        assert [reply["id"] for reply in replies] == list(range(5))
        (unit,) = door.router.units
        assert [command.reference for command in unit.commands] == list("01234")
        assert not unit.atomic


async def test_commands_without_an_id_get_fresh_time_ordered_ones() -> None:
    async with open_door() as door:
        client = await door.service()
        replies = await answers(client, [debit(1), debit(2)])
        ids = [UUID(reply["result"]["transaction_id"]) for reply in replies]
        assert len(set(ids)) == 2
        assert {number.version for number in ids} == {7}
        assert len({command.attempt_id for command in door.router.commands} | {str(number) for number in ids}) == 4


async def test_members_are_executed_strictly_in_order() -> None:
    async with open_door() as door:
        client = await door.service()
        door.router.holding = True
        await client.send([debit(1), ask(2, "account_get", account_id=MINE), debit(3)])
        await door.router.taken(1)
        await trio.testing.wait_all_tasks_blocked()
        reads = door.books.reads
        assert len(door.router.units) == 1
        door.router.answer(door.router.units[0])
        await door.router.taken(2)
        assert door.books.reads > reads
        door.router.answer(door.router.units[1])
        assert [reply["id"] for reply in await client.receive()] == [1, 2, 3]


async def test_money_that_came_after_a_mixed_batch_does_not_overtake_it() -> None:
    async with open_door() as door:
        client = await door.service()
        door.books.gate = trio.Event()
        batch = [ask(1, "account_get", account_id=MINE), debit(2, reference="batch")]
        await client.send(batch)
        await client.send(debit(3, reference="single"))
        await client.send(ask(4, "system_ping"))
        assert (await client.receive())["id"] == 4
        assert door.router.units == []
        door.books.gate.set()
        await door.router.taken(2)
        assert [command.reference for command in door.router.commands] == ["batch", "single"]


async def test_a_mixed_batch_does_not_overtake_money_that_came_before_it() -> None:
    async with open_door() as door:
        client = await door.user(1)
        door.directory.gate = trio.Event()
        await client.send(debit(1, reference="single"))
        await eventually(lambda: door.books.reads > 1)
        door.directory.learn()
        await client.send([debit(2, reference="batch"), ask(3, "account_get", account_id=MINE)])
        await trio.testing.wait_all_tasks_blocked()
        assert door.router.units == []
        door.directory.gate.set()
        await door.router.taken(2)
        assert [command.reference for command in door.router.commands] == ["single", "batch"]


async def test_money_goes_on_as_soon_as_the_last_of_a_batch_is_routed() -> None:
    async with open_door() as door:
        client = await door.service()
        door.router.holding = True
        await client.send([debit(1), ask(2, "account_get", account_id=MINE)])
        await client.send(debit(3))
        await door.router.taken(2)
        door.router.answer(door.router.units[1])
        assert (await client.receive())["id"] == 3


async def test_one_wrong_member_does_not_take_its_neighbours_with_it() -> None:
    async with open_door() as door:
        client = await door.user(1)
        members = [
            debit(1),
            {"foo": "bar"},
            debit(3, amount="nope"),
            ask(4, "nope"),
            debit(5, account_id=OTHERS),
            debit(6),
        ]
        replies = await answers(client, members)
        assert [reply["id"] for reply in replies] == [1, None, 3, 4, 5, 6]
        codes = [reply.get("error", {}).get("code") for reply in replies]
        assert codes == [None, -32600, -32602, -32601, 2001, None]


async def test_notifications_in_a_batch_are_neither_executed_nor_answered() -> None:
    async with open_door() as door:
        client = await door.service()
        silent = {"jsonrpc": "2.0", "method": "debit", "params": {"account_id": MINE, "amount": "1"}}
        assert [reply["id"] for reply in await answers(client, [silent, debit(1)])] == [1]
        assert len(door.router.commands) == 1
        await client.send([silent, silent])
        assert (await client.call("system_ping"))["time"]  # no reply came before this one


async def test_an_empty_batch_is_one_error_and_not_an_array() -> None:
    async with open_door() as door:
        client = await door.client()
        await client.send("[]")
        reply = await client.receive()
        assert (reply["id"], reply["error"]["code"]) == (None, -32600)


async def test_a_batch_over_the_limit_is_refused_whole() -> None:
    async with open_door(batch_members_max=3) as door:
        client = await door.service()
        replies = await answers(client, [debit(number) for number in range(4)])
        assert [(reply["id"], reply["error"]["code"]) for reply in replies] == [(n, 8002) for n in range(4)]
        assert door.router.units == []


async def test_a_subscription_in_a_batch_is_refused() -> None:
    async with open_door() as door:
        client = await door.user(1)
        (reply,) = await answers(client, [ask(1, "ledger_subscribe", channel="balances")])
        assert reply["error"]["code"] == -32600
        assert door.hub.subscriptions == {}


async def test_a_batch_whose_answer_could_be_too_large_is_refused_before_execution() -> None:
    async with open_door(frame_out_bytes_max=5_000) as door:
        client = await door.service()
        replies = await answers(client, [debit(number) for number in range(6)])
        assert {reply["error"]["code"] for reply in replies} == {8002}
        assert door.router.units == []
        assert all("result" in reply for reply in await answers(client, [debit(number) for number in range(5)]))


async def test_texts_that_come_back_count_towards_the_answer() -> None:
    async with open_door(frame_out_bytes_max=5_000) as door:
        client = await door.service()
        replies = await answers(client, [debit(number, metadata={"a": "x" * 1200}) for number in range(3)])
        assert {reply["error"]["code"] for reply in replies} == {8002}
        assert door.router.units == []


async def test_a_thousand_plain_transfers_fit_with_the_default_limits() -> None:
    async with open_door() as door:
        for client in (await door.service(), await door.client(door.books.token("operator"))):
            transfer = {"source_account_id": MINE, "destination_account_id": OTHERS, "amount": "1"}
            members = [ask(number, "transfer", **transfer) for number in range(1000)]
            replies = await answers(client, members)
            assert len(replies) == 1000
            assert all("result" in reply for reply in replies)


async def test_no_answer_exceeds_what_was_reckoned() -> None:
    """The largest transaction there can be, and the largest refusal, in a batch that just fits."""

    def largest(command: Command) -> Outcome:
        most = 10**18 - 1
        sides = [
            side(2**63 - 1, 1, direction).__class__(
                2**63 - 1, 1, direction, 2**63 - 1, -most, most, -most, -most, -most
            )
            for direction in ("debit", "credit")
        ]
        made = record(command.transaction_id, sides, kind="transfer", amount=most, scale=8, currency="ABCDEFGHIJKL")
        return Posted(made, replayed=True)

    def refused(command: Command) -> Outcome:
        names = ["kind", "debit_account", "credit_account", "amount", "currency", "reference", "reason", "metadata"]
        return Refused(
            ErrorCode.TRANSACTION_ID_REUSED,
            data={"mismatch": names, "available": -(10**18), "requested": 10**18, "version": 2**63 - 1},
            scale=8,
            attempt_id=command.attempt_id,
            created_at="2026-11-20T12:00:00.000000Z",
        )

    for outcome in (largest, refused):
        for frame_max in (10_000, 100_000):
            async with open_door(frame_out_bytes_max=frame_max) as door:
                door.router.outcome = outcome
                client = await door.client(door.books.token("operator"))
                transfer = {"source_account_id": MINE, "destination_account_id": OTHERS, "amount": "1"}
                for count in range(frame_max // 700, 0, -1):
                    await client.send([ask(number, "transfer", **transfer) for number in range(count)])
                    text = await client.connection.get_message()
                    assert len(text) <= frame_max
                    if door.router.units:
                        break
                assert len(door.router.commands) > frame_max // 1400


async def test_lists_in_a_batch_share_the_room_that_is_left() -> None:
    async with open_door(frame_out_bytes_max=40_000) as door:
        client = await door.service()
        door.books.listed = [
            record(f"01890000-0000-7000-8000-{number:012}", [side(MINE, 1, version=number)], reference="x" * 250)
            for number in range(1, 200)
        ]
        members = [ask(number, "transaction_list", account_id=MINE, limit=199) for number in range(2)]
        await client.send(members)
        text = await client.connection.get_message()
        assert len(text) <= 40_000
        for reply in json.loads(text):
            assert 10 < len(reply["result"]["items"]) < 199
            assert reply["result"]["next_cursor"]
        replies = await answers(client, [ask(number, "transaction_list", account_id=MINE) for number in range(3)])
        assert {reply["error"]["code"] for reply in replies} == {8002}


async def test_a_batch_counts_as_one_command_in_execution() -> None:
    async with open_door(in_flight_max=2) as door:
        client = await door.service()
        door.router.holding = True
        for start in range(3):
            await client.send([debit(f"{start}-{number}") for number in range(10)])
        await door.router.taken(2)
        await trio.testing.wait_all_tasks_blocked()
        assert [len(unit.commands) for unit in door.router.units] == [10, 10]


async def test_a_sign_in_inside_a_batch_counts_for_what_follows_it() -> None:
    async with open_door() as door:
        client = await door.client()
        members = [debit(1), ask(2, "session_authenticate", token=door.books.token("service")), debit(3)]
        await client.send(members)
        await client.send(debit(4))
        replies = await client.receive()
        assert [reply.get("error", {}).get("code") for reply in replies] == [1001, None, None]
        assert (await client.receive())["result"]["kind"] == "debit"


async def test_who_signs_out_while_a_batch_executes_still_gets_its_answer() -> None:
    async with open_door() as door:
        client = await door.user(1)
        door.router.holding = True
        await client.send([ask(1, "account_close", account_id=MINE)])
        await door.router.taken(1)
        assert (await client.call("session_logout"))["revoked"] == 1
        door.router.answer(door.router.units[0])
        (answer,) = await client.receive()
        assert answer["result"]["account_id"] == MINE
        assert (await client.call("session_status"))["authenticated"] is False
