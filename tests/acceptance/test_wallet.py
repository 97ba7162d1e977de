"""A crowd of suppliers at two daemons plays for one user at once."""

from __future__ import annotations

import uuid
from collections import Counter
from contextlib import AsyncExitStack
from random import Random
from typing import Any

import pytest
import trio
from msgspec import Struct

from ledgerd_protocol.client import Client, open_client
from ledgerd_protocol.results import WalletAnswer

CONNECTIONS = 10
BETS = 1_000
STAKE = 150
WIN = 40
BEGIN = 100_000
PAID = BEGIN // STAKE
"""Bets that there is money for."""


class Casino(Struct):
    """Connections of suppliers, every other one to the other daemon, and a user that nobody else plays for."""

    suppliers: list[Client]
    operator: Client
    user: str

    async def play(self, method: str, at: int, **members: Any) -> WalletAnswer:
        body = {"user": self.user, "currency": "USD", "request_uuid": str(uuid.uuid4()), **members}
        answer = await self.suppliers[at % CONNECTIONS].call(f"wallet_{method}", **body)
        assert isinstance(answer, WalletAnswer)
        return answer

    async def balance(self) -> Any:
        return (await self.suppliers[0].call("wallet_balance", user=self.user)).balance


@pytest.fixture
async def casino(serve) -> Any:
    daemons = [serve(), serve()]
    async with AsyncExitStack() as stack:

        async def connect(number: int, token: str) -> Client:
            return await stack.enter_async_context(open_client(daemons[number % 2].url, token=token))

        operator = await connect(0, daemons[0].token)
        service = (await operator.call("token_create", scopes=["service"])).token
        suppliers = [await connect(number, service) for number in range(CONNECTIONS)]
        user = f"player {uuid.uuid4()}"
        assert (await suppliers[0].call("wallet_create_users", users=[user])).created == 1
        yield Casino(suppliers, operator, user)


async def all_at_once(casino: Casino, plays: list[tuple[str, int, dict[str, Any]]]) -> list[WalletAnswer]:
    """The answers, in the order of the plays."""
    answers: dict[int, WalletAnswer] = {}

    async def one(number: int, method: str, at: int, members: dict[str, Any]) -> None:
        answers[number] = await casino.play(method, at, **members)

    async with trio.open_nursery() as nursery:
        for number, play in enumerate(plays):
            nursery.start_soon(one, number, *play)
    return [answers[number] for number in range(len(plays))]


async def account_of(casino: Casino) -> int:
    """The player's account, found by a bet of its own that is taken back."""
    bet = str(uuid.uuid4())
    assert (await casino.play("bet", 0, transaction_uuid=bet, amount=1)).status == "RS_OK"
    given_back = await casino.play("rollback", 0, transaction_uuid=str(uuid.uuid4()), reference_transaction_uuid=bet)
    assert given_back.balance == BEGIN
    return int((await casino.operator.call("transaction_get", transaction_id=bet)).debit_account_id)


async def test_a_thousand_bets_at_once_each_sent_twice_never_overdraw_and_lose_nothing(casino, new_auditor):
    account_id = await account_of(casino)
    bets = [str(uuid.uuid4()) for _ in range(BETS)]
    plays = [
        ("bet", at, {"transaction_uuid": bet, "amount": STAKE, "round": f"r{number}"})
        for number, bet in enumerate(bets)
        for at in (number, number * 7 + 1)
    ]
    Random(3).shuffle(plays)
    auditor = new_auditor()
    async with (
        casino.operator.subscribe("balances", account_ids=[account_id]) as feed,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(auditor.run, feed)
        answers = await all_at_once(casino, plays)
        account = await casino.operator.call("account_get", account_id=account_id)
        await auditor.until(account_id, account.version)
        nursery.cancel_scope.cancel()

    by_bet: dict[str, set[WalletAnswer]] = {}
    for (_, _, members), answer in zip(plays, answers, strict=True):
        by_bet.setdefault(members["transaction_uuid"], set()).add(answer)
    posted = {bet: said for bet, said in by_bet.items() if {answer.status for answer in said} == {"RS_OK"}}
    refused = {
        bet for bet, said in by_bet.items() if {answer.status for answer in said} == {"RS_ERROR_NOT_ENOUGH_MONEY"}
    }
    assert (len(posted), len(refused)) == (PAID, BETS - PAID)
    assert all(len(said) == 1 for said in posted.values()), "the second answer is the first, word for word"
    balances = sorted((answer.balance for said in posted.values() for answer in said), reverse=True)
    assert balances == [BEGIN - STAKE * number for number in range(1, PAID + 1)]
    assert await casino.balance() == BEGIN - STAKE * PAID
    updates = auditor.of(account_id)
    assert [update.version for update in updates] == list(range(4, 4 + PAID))
    assert {update.transaction_id for update in updates} == set(posted)


async def test_wins_and_rollbacks_of_one_bet_at_once_make_and_destroy_nothing(casino):
    bets = [str(uuid.uuid4()) for _ in range(200)]
    placed = await all_at_once(
        casino, [("bet", at, {"transaction_uuid": bet, "amount": STAKE}) for at, bet in enumerate(bets)]
    )
    assert {answer.status for answer in placed} == {"RS_OK"}
    plays = []
    for number, bet in enumerate(bets):
        about: dict[str, Any] = {"reference_transaction_uuid": bet}
        for at, method in enumerate(("win", "rollback", "win", "rollback")):
            members = {**about, "amount": WIN} if method == "win" else about
            plays.append((method, number + at, {**members, "transaction_uuid": str(uuid.uuid4())}))
    Random(5).shuffle(plays)
    answers = await all_at_once(casino, plays)
    said: dict[str, Counter[str]] = {bet: Counter() for bet in bets}
    for (method, _, members), answer in zip(plays, answers, strict=True):
        said[members["reference_transaction_uuid"]][f"{method} {answer.status}"] += 1
    won = Counter({"win RS_OK": 1, "win RS_ERROR_UNKNOWN": 1, "rollback RS_ERROR_UNKNOWN": 2})
    back = Counter({"rollback RS_OK": 2, "win RS_ERROR_TRANSACTION_DOES_NOT_EXIST": 2})
    assert all(one in (won, back) for one in said.values()), said
    wins = sum(one == won for one in said.values())
    assert await casino.balance() == BEGIN - wins * STAKE + wins * WIN


async def test_rollbacks_and_the_bets_they_are_about_at_once_leave_either_both_or_neither(casino):
    bets = [str(uuid.uuid4()) for _ in range(200)]
    plays: list[tuple[str, int, dict[str, Any]]] = []
    for number, bet in enumerate(bets):
        plays.append(("bet", number, {"transaction_uuid": bet, "amount": STAKE}))
        undo = {"transaction_uuid": str(uuid.uuid4()), "reference_transaction_uuid": bet}
        plays.append(("rollback", number + 1, undo))
    Random(7).shuffle(plays)
    answers = await all_at_once(casino, plays)
    statuses = Counter(f"{play[0]} {answer.status}" for play, answer in zip(plays, answers, strict=True))
    assert statuses["rollback RS_OK"] == len(bets)
    assert statuses["bet RS_OK"] + statuses["bet RS_ERROR_DUPLICATE_TRANSACTION"] == len(bets)
    assert await casino.balance() == BEGIN
