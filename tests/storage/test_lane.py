"""A lane turns units into one kernel call and the answer into outcomes."""

from __future__ import annotations

import uuid

import msgspec
import pytest
import trio

from ledgerd.engine.commands import ABSENT, Command, Posted, Refused
from ledgerd.engine.ports import CallRefused
from ledgerd_protocol.errors import ErrorCode
from tests.conftest import Database
from tests.storage.desk import open_desk, posted, refused, register, unit


def again(command: Command) -> Command:
    return msgspec.structs.replace(command, attempt_id=str(uuid.uuid4()))


async def test_the_record_of_a_fresh_outcome_is_the_record_that_is_stored(database: Database) -> None:
    async with open_desk(database) as desk:
        one, two = await desk.account(balance=100), await desk.account()
        operator = await desk.principal("operator", "service")
        by_user = await desk.principal("user", "topup", user_id=one.user_id)
        for command in (
            desk.credit(one, 10, reference="r", reason="because", metadata='{"a":1}'),
            desk.debit(one, 7, principal=by_user),
            desk.command("transfer", debit=one, credit=two, amount=3, principal=by_user),
            desk.command("limit", debit=two, amount=5, principal=operator),
            desk.command("limit", debit=two, amount=0, principal=operator),
            desk.command("cancel", debit=one),
        ):
            outcome = posted(await desk.post(command))
            assert not outcome.replayed
            assert await desk.as_posted(command.transaction_id) == outcome.record
            assert posted(await desk.post(again(command))) == Posted(outcome.record, replayed=True)


async def test_a_transfer_shows_both_sides(database: Database) -> None:
    async with open_desk(database) as desk:
        one, two = await desk.account(balance=100), await desk.account(balance=1)
        record = posted(await desk.post(desk.command("transfer", debit=one, credit=two, amount=30))).record

        assert (record.amount, record.currency, record.scale, record.status) == (30, "USD", 2, "posted")
        paying, receiving = record.sides
        assert (paying.account_id, paying.user_id, paying.direction) == (one.account_id, one.user_id, "debit")
        assert (paying.version, paying.balance, paying.available, paying.balance_change) == (2, 70, 70, -30)
        assert (receiving.account_id, receiving.direction) == (two.account_id, "credit")
        assert (receiving.version, receiving.balance, receiving.balance_change) == (2, 31, 30)


async def test_the_world_is_no_side(database: Database) -> None:
    async with open_desk(database) as desk:
        account = await desk.account(balance=100)
        record = posted(await desk.post(desk.debit(account, 30))).record

        assert (record.debit_account, record.credit_account) == (account.account_id, None)
        assert [side.account_id for side in record.sides] == [account.account_id]


async def test_a_refusal_carries_its_data_its_scale_and_its_attempt(database: Database) -> None:
    async with open_desk(database) as desk:
        account = await desk.account(balance=100)
        command = desk.debit(account, 300)
        outcome = refused(await desk.post(command))

        assert (outcome.code, outcome.applied, outcome.scale) == (ErrorCode.INSUFFICIENT_FUNDS, False, 2)
        assert outcome.data == {"available": 100, "requested": 300, "version": 1}
        assert outcome.attempt_id == command.attempt_id
        (attempt,) = await desk.books.attempts(command.transaction_id, command.principal)
        assert (attempt.attempt_id, attempt.code) == (outcome.attempt_id, outcome.code)
        assert attempt.created_at == outcome.created_at


async def test_an_account_that_does_not_exist_is_refused_by_the_kernel(database: Database) -> None:
    async with open_desk(database) as desk:
        account = await desk.account()
        command = desk.debit(account, 1)
        command.debit_account, command.debit_facts = ABSENT, None
        outcome = refused(await desk.post(command))

        assert (outcome.code, outcome.data) == (ErrorCode.NOT_FOUND, {"resource": "account"})


async def test_an_amount_the_router_could_not_read_is_refused_with_the_routers_reason(database: Database) -> None:
    async with open_desk(database) as desk:
        command = desk.credit(await desk.account(), 1)
        command.amount_minor, command.amount_problem = None, ErrorCode.AMOUNT_PRECISION

        assert refused(await desk.post(command)).code == ErrorCode.AMOUNT_PRECISION


async def test_cancelling_what_was_posted_shows_what_was_posted(database: Database) -> None:
    async with open_desk(database) as desk:
        account = await desk.account()
        command = desk.credit(account, 5)
        record = posted(await desk.post(command)).record
        outcome = refused(await desk.post(desk.command("cancel", debit=account, transaction_id=command.transaction_id)))

        assert outcome.code == ErrorCode.ALREADY_POSTED
        assert outcome.record == record


async def test_outcomes_come_back_per_unit_in_order(database: Database) -> None:
    async with open_desk(database) as desk:
        account = await desk.account(balance=10)
        units = [
            unit(desk.debit(account, 1), desk.debit(account, 100)),
            unit(desk.debit(account, 2), desk.debit(account, 3), batch_id=str(uuid.uuid4())),
            unit(desk.debit(account, 4)),
        ]
        outcomes = await desk.generation.lanes[0].post(units, resent=False)

        assert [[type(outcome) for outcome in of_unit] for of_unit in outcomes] == [
            [Posted, Refused],
            [Posted, Posted],
            [Posted],
        ]
        balances = [
            outcome.record.sides[0].balance
            for of_unit in outcomes
            for outcome in of_unit
            if isinstance(outcome, Posted)
        ]
        assert balances == [9, 7, 4, 0]


async def test_every_member_of_a_fallen_batch_gets_the_refusal_of_the_one_that_failed(database: Database) -> None:
    async with open_desk(database) as desk:
        account = await desk.account(balance=10)
        failing = desk.debit(account, 100)
        batch = unit(desk.debit(account, 1), failing, desk.debit(account, 2), batch_id=str(uuid.uuid4()))
        (outcomes,) = await desk.generation.lanes[0].post([batch], resent=False)

        assert len(outcomes) == 3
        for outcome in outcomes:
            refusal = refused(outcome)
            assert (refusal.code, refusal.index) == (ErrorCode.INSUFFICIENT_FUNDS, 1)
            assert refusal.attempt_id == failing.attempt_id


async def test_a_batch_of_one_that_failed_says_which_member(database: Database) -> None:
    async with open_desk(database) as desk:
        batch = unit(desk.debit(await desk.account(), 1), batch_id=str(uuid.uuid4()))
        ((outcome,),) = await desk.generation.lanes[0].post([batch], resent=False)

        assert refused(outcome).index == 0


async def test_a_call_that_lost_the_race_for_an_id_is_run_again_and_sees_the_winner(database: Database) -> None:
    async with open_desk(database, lanes=2) as desk:
        one, two = await desk.account(), await desk.account()
        transaction_id = str(uuid.uuid4())
        outcomes = []

        async def post(lane: int, command: Command) -> None:
            ((outcome,),) = await desk.generation.lanes[lane].post([unit(command)], resent=False)
            outcomes.append(outcome)

        for _ in range(20):
            outcomes.clear()
            transaction_id = str(uuid.uuid4())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(post, 0, desk.credit(one, 5, transaction_id=transaction_id))
                nursery.start_soon(post, 1, desk.credit(two, 5, transaction_id=transaction_id))
            (lost,) = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
            assert lost.code == ErrorCode.TRANSACTION_ID_REUSED
            assert lost.data == {"mismatch": ["credit_account_id"]}


@pytest.mark.parametrize(
    ("member", "value"),
    [("transaction_id", "no uuid"), ("amount_minor", 2**70), ("kind", "bonus"), ("reference", "r" * 256)],
)
async def test_a_call_that_the_database_will_always_refuse_is_said_so_and_the_lane_goes_on(
    database: Database, member: str, value: object
) -> None:
    async with open_desk(database) as desk:
        account = await desk.account()
        command = desk.credit(account, 1)
        setattr(command, member, value)
        with pytest.raises(CallRefused):
            await desk.post(command)

        assert posted(await desk.post(desk.credit(account, 1))).record.sides[0].version == 1


async def test_a_currency_without_decimals_keeps_its_scale(database: Database) -> None:
    async with open_desk(database) as desk:
        desk.service = await desk.principal("service")
        _, account, _ = await register(desk.books, currency="JPY", scale=0)
        record = posted(await desk.post(desk.credit(account, 5))).record

        assert (record.currency, record.scale) == ("JPY", 0)


async def test_a_lane_belongs_to_the_least_privileged_role(database: Database) -> None:
    """All tests here run so; this one says it."""
    async with open_desk(database) as desk:
        rows = await desk.owner(
            "SELECT DISTINCT usename FROM pg_stat_activity WHERE datname = $1 AND application_name = 'ledgerd'",
            database.name,
        )
        assert [row["usename"] for row in rows] == ["ledgerd"]
