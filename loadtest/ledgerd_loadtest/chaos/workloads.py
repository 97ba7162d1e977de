"""The hostile users: each workload is a task that makes recorded calls until it is cancelled.

They follow those of Jepsen's suites for banks and ledgers: a bank whose total is counted while money moves, one hot
account that everybody wants at once, ids that are sent again and altered, more debits than there is money for. Besides:
holds that expire, advances that are collected, reports read page by page, batches that lock many accounts.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import trio
from msgspec import Struct
from uuid_utils import uuid7

from ledgerd_loadtest.audit import minor
from ledgerd_loadtest.chaos.desk import Desk
from ledgerd_loadtest.chaos.feed_checks import PAGING
from ledgerd_loadtest.chaos.pipeline import send_in_order
from ledgerd_loadtest.chaos.time_checks import BANK
from ledgerd_loadtest.commands import CURRENCY, SCALE
from ledgerd_protocol.money import to_text

FUNDS = 1_000_000
"""Minor units that every account of a group begins with, where the workload does not say otherwise."""

PAGE_ITEMS = 40
PAGES_MAX = 12
WIDE_PAIRS = 190
"""Transfers in one atomic batch: with two accounts each it is near what a batch may lock."""

WIDE_AT_ONCE = 6

HOLD_S = (60, 180)
"""Seconds of the ledger's own clock, which runs faster during a run."""


class Stage(Struct, frozen=True):
    """What a workload works with: the desk, its own dice, and the accounts of its group."""

    desk: Desk
    dice: random.Random
    accounts: Sequence[int]
    urls: Sequence[str]
    token: str
    pace_s: float

    async def rest(self) -> None:
        """Until the next step."""
        await trio.sleep(self.dice.expovariate(1 / self.pace_s))

    def money(self, most: int = 999) -> str:
        """A small amount."""
        return to_text(self.dice.randint(1, most), SCALE)


def transfer(source: int, destination: int, amount: str) -> dict[str, Any]:
    """The parameters of a transfer with an id of its own."""
    return {
        "transaction_id": str(uuid7()),
        "source_account_id": source,
        "destination_account_id": destination,
        "amount": amount,
        "currency": CURRENCY,
    }


def single(account: int, amount: str, **more: Any) -> dict[str, Any]:
    """The parameters of a command on one account, with an id of its own."""
    return {
        "transaction_id": str(uuid7()),
        "account_id": account,
        "amount": amount,
        "currency": CURRENCY,
        **more,
    }


async def bank(stage: Stage) -> None:
    """Transfers between a few accounts, whose total is counted meanwhile."""
    desk, dice = stage.desk, stage.dice
    async with trio.open_nursery() as nursery:
        while True:
            await stage.rest()
            lot = dice.random()
            if lot < 0.15:
                params = {"limit": len(stage.accounts)}
                nursery.start_soon(_read, desk, BANK, "account_list", params)
            elif lot < 0.3:
                params = {"account_id": dice.choice(stage.accounts)}
                nursery.start_soon(_read, desk, BANK, "balance_get", params)
            else:
                source, destination = dice.sample(stage.accounts, 2)
                nursery.start_soon(desk.post, BANK, "transfer", transfer(source, destination, stage.money()))


async def hot(stage: Stage) -> None:
    """One account that everybody pays and is paid from at once, over many connections and all daemons."""
    desk, dice, (account, *others) = stage.desk, stage.dice, stage.accounts
    while True:
        await trio.sleep(dice.expovariate(1 / (6 * stage.pace_s)))
        async with trio.open_nursery() as nursery:
            for _ in range(dice.randint(4, 10)):
                match dice.randrange(4):
                    case 0:
                        nursery.start_soon(desk.post, "hot", "credit", single(account, stage.money()))
                    case 1:
                        nursery.start_soon(desk.post, "hot", "debit", single(account, stage.money()))
                    case 2:
                        paid = transfer(account, dice.choice(others), stage.money())
                        nursery.start_soon(desk.post, "hot", "transfer", paid)
                    case 3:
                        paid = transfer(dice.choice(others), account, stage.money())
                        nursery.start_soon(desk.post, "hot", "transfer", paid)


async def ids(stage: Stage) -> None:
    """One id over several connections at once, the same command or another, and again later."""
    desk, dice = stage.desk, stage.dice
    used: list[dict[str, Any]] = []
    while True:
        await trio.sleep(dice.expovariate(1 / (4 * stage.pace_s)))
        source, destination = dice.sample(stage.accounts, 2)
        params = dice.choice(used[-50:]) if used and dice.random() < 0.3 else transfer(source, destination, "1.00")
        used.append(params)
        async with trio.open_nursery() as nursery:
            for _ in range(dice.randint(2, 4)):
                altered = {**params, "amount": "2.00"} if dice.random() < 0.25 else params
                nursery.start_soon(desk.call, "ids", "transfer", altered)


async def double_spend(stage: Stage) -> None:
    """Money for one debit, and several debits of it at once over different connections."""
    desk, dice = stage.desk, stage.dice
    while True:
        await trio.sleep(dice.expovariate(1 / (6 * stage.pace_s)))
        account, amount = dice.choice(stage.accounts), stage.money()
        await desk.post("double spend", "credit", single(account, amount))
        async with trio.open_nursery() as nursery:
            for _ in range(dice.randint(3, 6)):
                nursery.start_soon(desk.post, "double spend", "debit", single(account, amount))


async def holds(stage: Stage) -> None:
    """Holds that are taken, freed, or left until their time is over; sometimes two of these at once."""
    desk, dice = stage.desk, stage.dice
    async with trio.open_nursery() as nursery:
        while True:
            await trio.sleep(dice.expovariate(1 / (4 * stage.pace_s)))
            account, other = dice.sample(stage.accounts, 2)
            placed = single(account, stage.money(), expires_in_s=dice.randint(*HOLD_S))
            if dice.random() < 0.5:
                placed["destination_account_id"] = other
            nursery.start_soon(_one_hold, desk, dice, placed)


async def _one_hold(desk: Desk, dice: random.Random, placed: dict[str, Any]) -> None:
    await desk.post("holds", "hold_place", placed)
    await trio.sleep(dice.uniform(0, 2))
    async with trio.open_nursery() as nursery:
        for method in dice.choice(((), ("hold_capture",), ("hold_release",), ("hold_capture", "hold_release"))):
            params = {"transaction_id": str(uuid7()), "hold_id": placed["transaction_id"]}
            nursery.start_soon(desk.post, "holds", method, params)


async def advances(stage: Stage) -> None:
    """Advances that daemons collect, from accounts that are sometimes too poor to pay."""
    desk, dice = stage.desk, stage.dice
    while True:
        await trio.sleep(dice.expovariate(1 / (10 * stage.pace_s)))
        account = dice.choice(stage.accounts)
        asked = single(account, stage.money(5_000), installments=dice.randint(2, 4), interval_days=1)
        asked["amount"] = to_text(minor(asked["amount"]) + 10, SCALE)
        await desk.post("advances", "advance_request", asked)
        if dice.random() < 0.5:
            await desk.post("advances", "debit", single(account, asked["amount"]))
        if dice.random() < 0.3:
            repaid = {"transaction_id": str(uuid7()), "advance_id": asked["transaction_id"], "amount": "0.05"}
            await desk.post("advances", "advance_repay", repaid)


async def paging(stage: Stage) -> None:
    """Reports of one account, page by page over any connection, while more is written to it."""
    desk, dice, (account, other) = stage.desk, stage.dice, stage.accounts
    number = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_write_on, stage, account, other)
        while True:
            await trio.sleep(dice.expovariate(1 / (20 * stage.pace_s)))
            number += 1
            params: dict[str, Any] = {"account_id": account, "limit": PAGE_ITEMS}
            for _ in range(PAGES_MAX):
                page = await desk.call(PAGING, "transaction_report", params, keep=_ids_shown)
                page.line = f"report {number}"
                if page.outcome != "ok" or page.result["next_cursor"] is None:
                    break
                params = {**params, "cursor": page.result["next_cursor"]}


async def _write_on(stage: Stage, account: int, other: int) -> None:
    while True:
        await stage.rest()
        await stage.desk.post(PAGING, "transfer", transfer(account, other, "0.01"))


async def orderly(stage: Stage) -> None:
    """Commands of one account over one connection, sent without waiting for the answers."""
    account, other = stage.accounts
    daemon = stage.dice.randrange(len(stage.urls))
    for number in range(1_000_000):
        line = f"pipeline {number}"
        await send_in_order(stage.desk, line, daemon, stage.urls[daemon], stage.token, lambda: _small(account, other))
        daemon = stage.dice.randrange(len(stage.urls))
        await trio.sleep(stage.pace_s)


def _small(account: int, other: int) -> dict[str, Any]:
    return transfer(account, other, "0.01")


async def wide(stage: Stage) -> None:
    """Atomic batches that lock as many accounts as one may, a few at once."""
    async with trio.open_nursery() as nursery:
        for _ in range(WIDE_AT_ONCE):
            nursery.start_soon(_wide_batches, stage)


async def _wide_batches(stage: Stage) -> None:
    desk, dice = stage.desk, stage.dice
    while True:
        await trio.sleep(dice.expovariate(1 / (200 * stage.pace_s)))
        chosen = dice.sample(stage.accounts, min(len(stage.accounts), 2 * WIDE_PAIRS) // 2 * 2)
        pairs = zip(chosen[::2], chosen[1::2], strict=True)
        items = [{"method": "transfer", "params": transfer(a, b, "0.01")} for a, b in pairs]
        params = {"items": items, "atomic": True, "batch_id": str(uuid7())}
        await desk.post("wide", "transaction_batch", params)


async def _read(desk: Desk, workload: str, method: str, params: dict[str, Any]) -> None:
    await desk.call(workload, method, params, keep=states_shown)


def states_shown(result: Any) -> list[list[int]]:
    """Of accounts or of a balance: number, version, balance and what is available."""
    return [
        [item["account_id"], item["version"], minor(item["balance"]), minor(item["available"])]
        for item in result.get("items", [result])
    ]


def _ids_shown(page: Any) -> dict[str, Any]:
    shown = [item["transaction_id"] for item in page["items"] if item["status"] not in ("failed", "cancelled")]
    return {"ids": shown, "next_cursor": page["next_cursor"]}


class Workload(Struct, frozen=True):
    """A workload, how many accounts it needs, and what each of them begins with."""

    run: Callable[[Stage], Awaitable[None]]
    accounts: int
    funds: int = FUNDS


WORKLOADS: Mapping[str, Workload] = {
    BANK: Workload(bank, 8),  # the first: its accounts are the first page of all
    "hot": Workload(hot, 4),
    "ids": Workload(ids, 4),
    "double spend": Workload(double_spend, 3, funds=0),
    "holds": Workload(holds, 3),
    "advances": Workload(advances, 4, funds=0),
    PAGING: Workload(paging, 2),
    "orderly": Workload(orderly, 2),
    "wide": Workload(wide, 2 * WIDE_PAIRS, funds=100),
}
"""By name, in the order in which their accounts are opened."""
