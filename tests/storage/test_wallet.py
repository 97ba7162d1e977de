"""Users of the betting wallet, and the unit their database counts in."""

from __future__ import annotations

import re
from typing import Any

import pytest
import trio

from ledgerd.engine.commands import AccountRef
from ledgerd.engine.ports import StorageUnavailable
from ledgerd.storage.generation import DatabaseUnfit
from ledgerd_protocol.errors import ErrorCode, LedgerError
from tests.conftest import Database
from tests.storage.desk import Desk, open_desk

ANN = (AccountRef(wallet="ann"), "USD")


async def create(desk: Desk, *names: str, **changes: Any) -> int:
    if desk.service is None:
        desk.service = await desk.principal("service")
    given = {"token_id": desk.service.token_id, "currency": "USD", "scale": 2, "amount": 100_000, **changes}
    return await desk.books.create_wallet_users(names, **given)


async def value(desk: Desk, sql: str) -> Any:
    (row,) = await desk.owner(sql)
    return row[0]


async def test_each_new_name_is_a_user_with_money_that_came_from_the_world(database: Database) -> None:
    async with open_desk(database) as desk:
        assert await create(desk, "ann", "bob", "", "ann") == 2
        rows = await desk.owner(
            "SELECT u.name, u.wallet_name, u.email, a.balance, a.version, t.kind::text, t.amount, t.credit_version, "
            "t.credit_balance, t.debit_account < 0 AS world FROM ledgerd.users AS u "
            "INNER JOIN ledgerd.accounts AS a USING (user_id) "
            "INNER JOIN ledgerd.transactions AS t ON t.credit_account = a.account_id ORDER BY u.name"
        )
        assert [tuple(row) for row in rows] == [
            (name, name, None, 100_000, 1, "credit", 100_000, 1, 100_000, True) for name in ("ann", "bob")
        ]
        assert await value(desk, "SELECT wallet_unit FROM ledgerd.settings") == "minor"


async def test_a_name_that_exists_keeps_what_it_has(database: Database) -> None:
    async with open_desk(database) as desk:
        assert await create(desk, "ann") == 1
        assert await create(desk, "ann", "bob") == 1
        assert await create(desk, "ann", "bob") == 0
        assert await value(desk, "SELECT count(*) FROM ledgerd.transactions") == 2


async def test_calls_with_the_same_names_at_once_create_each_once(database: Database) -> None:
    names = [f"user {number}" for number in range(200)]
    async with open_desk(database, readers=4) as desk:
        await create(desk)
        created = []

        async def some(part: list[str]) -> None:
            created.append(await create(desk, *part))

        async with trio.open_nursery() as nursery:
            for part in (names, names[::-1], names[50:150], names[100:]):
                nursery.start_soon(some, part)
        assert sum(created) == 200
        assert await value(desk, "SELECT sum(balance) FROM ledgerd.accounts") == 200 * 100_000


async def test_nobody_is_created_when_the_kernel_refuses_the_token(database: Database) -> None:
    async with open_desk(database) as desk:
        ended, user = await desk.principal("service"), await desk.principal("user")
        await desk.books.revoke_tokens(token_id=ended.token_id)
        for token_id, code in (
            (ended.token_id, ErrorCode.SESSION_EXPIRED),
            (user.token_id, ErrorCode.PERMISSION_DENIED),
            (10**9, ErrorCode.UNAUTHENTICATED),
        ):
            with pytest.raises(LedgerError) as raised:
                await create(desk, "ann", token_id=token_id)
            assert raised.value.code is code
        assert await value(desk, "SELECT count(*) FROM ledgerd.users") == 0
        assert await value(desk, "SELECT wallet_unit FROM ledgerd.settings") is None
        assert await create(desk, "ann") == 1


async def test_no_new_user_does_not_fix_the_unit(database: Database) -> None:
    async with open_desk(database, wallet_unit_decimals=5) as desk:
        assert await create(desk, "") == 0
    async with open_desk(database) as desk:
        assert await create(desk, "ann") == 1
        assert await value(desk, "SELECT wallet_unit FROM ledgerd.settings") == "minor"


@pytest.mark.parametrize(("first", "second"), [(None, 5), (5, None), (5, 4)])
async def test_a_daemon_with_another_unit_does_not_start(
    database: Database, first: int | None, second: int | None
) -> None:
    async with open_desk(database, wallet_unit_decimals=first) as desk:
        await create(desk, "ann")
    with pytest.RaisesGroup(pytest.RaisesExc(DatabaseUnfit, match="wallet_unit_decimals"), flatten_subgroups=True):
        async with open_desk(database, wallet_unit_decimals=second):
            raise AssertionError("it serves")
    async with open_desk(database, wallet_unit_decimals=first) as desk:
        assert await desk.books.find_accounts([ANN]) != [None]


async def test_a_daemon_that_started_before_the_unit_was_fixed_finds_no_wallet_in_another(database: Database) -> None:
    async with open_desk(database, wallet_unit_decimals=5) as late, open_desk(database) as desk:
        account = await late.account()
        await create(desk, "ann")
        named = (AccountRef(account_id=account.account_id), "")
        (facts, wallet) = await late.books.find_accounts([named, ANN])
        assert facts is not None
        assert wallet is None
        with pytest.raises(StorageUnavailable):
            await create(late, "bob")
        assert await value(desk, "SELECT count(*) FROM ledgerd.users WHERE wallet_name IS NOT NULL") == 1
        assert await desk.books.find_accounts([ANN]) != [None]


async def test_another_scale_of_the_currency_creates_nobody(database: Database) -> None:
    async with open_desk(database) as desk:
        await desk.account()
        with pytest.raises(StorageUnavailable):
            await create(desk, "ann", scale=3)
        assert await desk.books.find_accounts([ANN]) == [None]


async def test_a_wallet_without_the_currency_is_its_first_account(database: Database) -> None:
    async with open_desk(database) as desk:
        await create(desk, "ann")
        (usd,) = await desk.books.find_accounts([ANN])
        assert usd is not None
        assert await desk.books.find_accounts([(AccountRef(wallet="ann"), "EUR")]) == [usd]
        await desk.books.open_account(user_id=usd.user_id, currency="EUR", scale=2)
        (eur,) = await desk.books.find_accounts([(AccountRef(wallet="ann"), "EUR")])
        assert eur is not None
        assert (eur.currency, eur.user_id) == ("EUR", usd.user_id)
        assert await desk.books.find_accounts([(AccountRef(wallet="Ann"), "USD")]) == [None]


async def test_the_unit_in_the_database_is_one_of_the_known_spellings(database: Database) -> None:
    async with open_desk(database) as desk:
        for spelling in ("9", "", "cents", "5 "):
            with pytest.raises(Exception, match=re.escape("settings_wallet_unit_check")):
                await desk.owner("UPDATE ledgerd.settings SET wallet_unit = $1", spelling)
