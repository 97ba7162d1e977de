"""Who may do what, over the wire: each row of the protocol's table of scopes, and the ways around it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import pytest
from msgspec import Struct

from ledgerd_protocol.client import Client, open_client
from ledgerd_protocol.connection import ConnectionEnded
from ledgerd_protocol.errors import ErrorCode, LedgerError


class Cast(Struct):
    """One connection for each scope. Ann and Bob have an account with 100.00 each; all user tokens are Ann's."""

    nobody: Client
    reader: Client
    ann: Client
    topup: Client
    service: Client
    operator: Client
    ann_user: int
    ann_account: int
    bob_user: int
    bob_account: int


@pytest.fixture
async def cast(dev) -> Any:
    async with AsyncExitStack() as stack:

        async def connect(token: str | None) -> Client:
            return await stack.enter_async_context(open_client(dev.url, token=token))

        operator = await connect(dev.token)
        ann = await operator.call("user_register", name="Ann")
        bob = await operator.call("user_register", name="Bob")
        for account in (ann.account, bob.account):
            await operator.credit(account_id=account.account_id, amount="100.00", currency="USD")

        async def token(*scopes: str, user_id: int | None = None) -> str:
            whose = {} if user_id is None else {"user_id": user_id}
            return (await operator.call("token_create", scopes=list(scopes), **whose)).token

        ann_user = ann.user.user_id
        yield Cast(
            nobody=await connect(None),
            reader=await connect(await token("read", user_id=ann_user)),
            ann=await connect(await token("user", user_id=ann_user)),
            topup=await connect(await token("user", "topup", user_id=ann_user)),
            service=await connect(await token("service")),
            operator=operator,
            ann_user=ann_user,
            ann_account=ann.account.account_id,
            bob_user=bob.user.user_id,
            bob_account=bob.account.account_id,
        )


async def refused(client: Client, method: str, **params: Any) -> LedgerError:
    with pytest.raises(LedgerError) as raised:
        await client.call(method, **params)
    assert raised.value.applied is False
    return raised.value


async def balances(cast: Cast) -> tuple[str, str]:
    ann = await cast.operator.balance(account_id=cast.ann_account)
    bob = await cast.operator.balance(account_id=cast.bob_account)
    return ann.balance, bob.balance


async def test_nobody_may_ask_about_the_system_and_nothing_else(cast: Cast):
    assert (await cast.nobody.call("system_ping", echo="x")).echo == "x"
    assert (await cast.nobody.call("session_status")).authenticated is False
    for method, params in (
        ("balance_get", {"account_id": cast.ann_account}),
        ("transaction_list", {"account_id": cast.ann_account}),
        ("credit", {"account_id": cast.ann_account, "amount": "1.00"}),
        ("token_list", {}),
        ("account_list", {}),
    ):
        assert (await refused(cast.nobody, method, **params)).code is ErrorCode.UNAUTHENTICATED
    with pytest.raises(LedgerError) as raised:
        async with cast.nobody.subscribe("balances", account_ids=[cast.ann_account]):
            pass
    assert raised.value.code is ErrorCode.UNAUTHENTICATED


async def test_a_reader_sees_its_own_user_and_moves_nothing(cast: Cast):
    assert (await cast.reader.balance(account_id=cast.ann_account)).balance == "100.00"
    async with cast.reader.subscribe("balances", account_ids=[cast.ann_account]) as events:
        assert (await anext(events)).accounts[0].balance == "100.00"
    own = {"account_id": cast.ann_account, "amount": "1.00"}
    move = {"source_account_id": cast.ann_account, "destination_account_id": cast.bob_account, "amount": "1.00"}
    for method, params in (
        ("credit", own),
        ("debit", own),
        ("transfer", move),
        ("token_create", {"scopes": ["read"]}),
        ("account_open", {"currency": "EUR"}),
        ("account_set_limit", {"account_id": cast.ann_account, "overdraft_limit": "5.00"}),
    ):
        assert (await refused(cast.reader, method, **params)).code is ErrorCode.PERMISSION_DENIED
    assert await balances(cast) == ("100.00", "100.00")


async def test_a_user_spends_what_is_his_and_cannot_credit_himself(cast: Cast):
    await cast.ann.debit(account_id=cast.ann_account, amount="1.00")
    await cast.ann.transfer(
        source_account_id=cast.ann_account, destination_account_id=cast.bob_account, amount="2.00", currency="USD"
    )
    assert await balances(cast) == ("97.00", "102.00")
    error = await refused(cast.ann, "credit", account_id=cast.ann_account, amount="1.00")
    assert error.code is ErrorCode.PERMISSION_DENIED
    assert await balances(cast) == ("97.00", "102.00")


async def test_a_user_with_topup_credits_his_own_account_and_no_other(cast: Cast):
    await cast.topup.credit(account_id=cast.ann_account, amount="1.00")
    error = await refused(cast.topup, "credit", account_id=cast.bob_account, amount="1.00")
    assert error.code is ErrorCode.NOT_FOUND
    assert await balances(cast) == ("101.00", "100.00")


@pytest.mark.parametrize("by", ["account_id", "user_id"])
async def test_a_user_cannot_take_money_that_is_not_his_in_either_direction(cast: Cast, by: str):
    ann, bob = (cast.ann_account, cast.bob_account) if by == "account_id" else (cast.ann_user, cast.bob_user)
    for client in (cast.ann, cast.topup):
        plain = {f"source_{by}": bob, f"destination_{by}": ann, "amount": "1.00", "currency": "USD"}
        assert (await refused(client, "transfer", **plain)).code is ErrorCode.NOT_FOUND
        pulled = {f"source_{by}": ann, f"destination_{by}": bob, "amount": "1.00", "currency": "USD"}
        error = await refused(client, "transfer", direction="credit", **pulled)
        assert error.code is ErrorCode.NOT_FOUND
        assert (await refused(client, "debit", **{by: bob}, amount="1.00")).code is ErrorCode.NOT_FOUND
    assert await balances(cast) == ("100.00", "100.00")


async def test_a_batch_does_not_widen_what_its_items_may(cast: Cast):
    items = [
        {"method": "credit", "params": {"account_id": cast.ann_account, "amount": "1.00"}},
        {
            "method": "transfer",
            "params": {
                "source_account_id": cast.ann_account,
                "destination_account_id": cast.bob_account,
                "amount": "1.00",
                "direction": "credit",
            },
        },
    ]
    result = await cast.ann.call("transaction_batch", items=items)
    assert [outcome.error["data"]["code"] for outcome in result.outcomes] == ["permission_denied", "not_found"]
    error = await refused(cast.ann, "transaction_batch", items=items, atomic=True)
    assert error.code is ErrorCode.PERMISSION_DENIED
    error = await refused(cast.ann, "transaction_batch", items=items[1:], atomic=True)
    assert error.code is ErrorCode.NOT_FOUND
    assert await balances(cast) == ("100.00", "100.00")


async def test_a_user_sees_nothing_of_another(cast: Cast):
    for method, params in (
        ("balance_get", {"account_id": cast.bob_account}),
        ("balance_get", {"user_id": cast.bob_user}),
        ("account_get", {"account_id": cast.bob_account}),
        ("transaction_list", {"account_id": cast.bob_account}),
        ("user_get", {"user_id": cast.bob_user}),
        ("token_list", {"user_id": cast.bob_user}),
        ("account_list", {"user_id": cast.bob_user}),
    ):
        error = await refused(cast.ann, method, **params)
        assert error.code is ErrorCode.NOT_FOUND, method
    for options in ({"account_ids": [cast.ann_account, cast.bob_account]}, {"user_id": cast.bob_user}):
        with pytest.raises(LedgerError) as raised:
            async with cast.ann.subscribe("balances", **options):
                pass
        assert raised.value.code is ErrorCode.NOT_FOUND


async def test_what_does_not_exist_and_what_is_not_mine_are_answered_alike(cast: Cast):
    foreign = await refused(cast.ann, "balance_get", account_id=cast.bob_account)
    absent = await refused(cast.ann, "balance_get", account_id=2**62)
    assert foreign.to_wire() == absent.to_wire()


async def test_a_stored_transaction_is_not_replayed_to_somebody_else(cast: Cast):
    posted = await cast.operator.credit(account_id=cast.bob_account, amount="5.00", currency="USD", reason="secret")
    error = await refused(cast.ann, "transaction_get", transaction_id=posted.transaction_id)
    assert error.code is ErrorCode.NOT_FOUND
    reused = await refused(
        cast.ann, "debit", account_id=cast.ann_account, amount="5.00", transaction_id=posted.transaction_id
    )
    assert reused.code is ErrorCode.TRANSACTION_ID_REUSED
    assert "mismatch" not in reused.data
    assert "secret" not in str(reused.to_wire())


async def test_each_side_of_a_transfer_sees_its_own_entry_only(cast: Cast):
    sent = await cast.ann.transfer(
        source_account_id=cast.ann_account, destination_account_id=cast.bob_account, amount="3.00", currency="USD"
    )
    assert [entry.account_id for entry in sent.entries] == [cast.ann_account]
    seen = await cast.operator.call("transaction_get", transaction_id=sent.transaction_id)
    assert {entry.account_id for entry in seen.entries} == {cast.ann_account, cast.bob_account}


async def test_a_user_makes_no_token_wider_than_his_own(cast: Cast):
    made = await cast.ann.call("token_create", scopes=["read"])
    assert made.scopes == ["read"]
    for scopes in (["service"], ["operator"], ["user", "topup"], ["read", "operator"]):
        error = await refused(cast.ann, "token_create", scopes=scopes)
        assert error.code is ErrorCode.PERMISSION_DENIED, scopes
    assert (await refused(cast.ann, "token_create", scopes=["user"], user_id=cast.bob_user)).code in (
        ErrorCode.NOT_FOUND,
        ErrorCode.PERMISSION_DENIED,
    )
    error = await refused(cast.ann, "token_create", scopes=["user"], account_id=cast.bob_account)
    assert error.code is ErrorCode.NOT_FOUND


async def test_a_token_for_one_account_reaches_no_other(dev, cast: Cast):
    euros = await cast.ann.call("account_open", currency="EUR")
    narrow = await cast.ann.call("token_create", scopes=["user"], account_id=cast.ann_account)
    async with open_client(dev.url, token=narrow.token) as client:
        assert (await client.balance(account_id=cast.ann_account)).balance == "100.00"
        assert (await refused(client, "balance_get", account_id=euros.account_id)).code is ErrorCode.NOT_FOUND
        error = await refused(client, "token_create", scopes=["user"], account_id=euros.account_id)
        assert error.code is ErrorCode.NOT_FOUND
        assert (await client.call("token_create", scopes=["read"])).account_id == cast.ann_account


async def test_a_service_moves_any_money_and_touches_no_tokens_or_limits(cast: Cast):
    await cast.service.credit(account_id=cast.ann_account, amount="1.00")
    await cast.service.transfer(
        source_account_id=cast.bob_account, destination_account_id=cast.ann_account, amount="2.00", currency="USD"
    )
    assert await balances(cast) == ("103.00", "98.00")
    assert (await cast.service.call("user_register", name="House")).account.balance == "0.00"
    for method, params in (
        ("account_set_limit", {"account_id": cast.ann_account, "overdraft_limit": "5.00"}),
        ("token_create", {"scopes": ["user"], "user_id": cast.ann_user}),
        ("token_list", {"user_id": cast.ann_user}),
        ("token_revoke", {"token_id": 1}),
    ):
        assert (await refused(cast.service, method, **params)).code is ErrorCode.PERMISSION_DENIED, method


async def test_an_operator_sets_limits_and_follows_everything(cast: Cast):
    await cast.operator.call("account_set_limit", account_id=cast.ann_account, overdraft_limit="50.00")
    await cast.ann.debit(account_id=cast.ann_account, amount="140.00")
    assert (await cast.operator.balance(account_id=cast.ann_account)).balance == "-40.00"
    for client in (cast.ann, cast.service):
        with pytest.raises(LedgerError) as raised:
            async with client.subscribe("balances", all=True):
                pass
        assert raised.value.code is ErrorCode.PERMISSION_DENIED


async def test_who_sent_a_transaction_is_shown_to_operators_only(cast: Cast):
    posted = await cast.ann.debit(account_id=cast.ann_account, amount="1.00")
    seen = await cast.operator.call("transaction_get", transaction_id=posted.transaction_id)
    assert seen.actor.user_id == cast.ann_user
    own = await cast.ann.call("transaction_get", transaction_id=posted.transaction_id)
    assert not own.actor


async def test_a_revoked_token_is_refused_on_an_open_connection_too(dev, cast: Cast):
    made = await cast.operator.call("token_create", scopes=["user"], user_id=cast.ann_user)
    async with open_client(dev.url, token=made.token) as client:
        await client.balance(account_id=cast.ann_account)
        await cast.operator.call("token_revoke", token_id=made.token_id)
        with pytest.raises((LedgerError, ConnectionEnded), match=r"session_expired|4401"):
            await _until_refused(client, cast.ann_account)


async def _until_refused(client: Client, account_id: int) -> None:
    while True:
        await client.balance(account_id=account_id)
