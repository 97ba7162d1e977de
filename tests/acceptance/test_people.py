"""Users over the wire: signing up and in, and what every daemon on the database knows at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio

from ledgerd.storage.embedded import Cluster
from ledgerd_protocol.client import Client, Notice, open_client
from ledgerd_protocol.connection import ConnectionEnded, Retry
from ledgerd_protocol.errors import ErrorCode, LedgerError
from tests.acceptance.owner import fetch

PASSWORD = "correct horse"
AT_ONCE = Retry(call_s=0)
"""Raise what may pass too."""


@pytest.fixture(autouse=True)
def nobody_is_throttled(cluster: Cluster) -> None:
    """What another test tried on this database is forgotten."""
    fetch(cluster.dsn, "TRUNCATE ledgerd.password_tries")


@asynccontextmanager
async def connections() -> AsyncIterator[Any]:
    """Makes clients that end with the block."""
    async with AsyncExitStack() as stack:

        async def connect(daemon: Any, token: str | None = None, **options: Any) -> Client:
            return await stack.enter_async_context(open_client(daemon.url, token=token, retry=AT_ONCE, **options))

        yield connect


async def refused(client: Client, method: str, **params: Any) -> LedgerError:
    with pytest.raises(LedgerError) as raised:
        await client.call(method, **params)
    assert raised.value.applied is False
    return raised.value


async def person(client: Client, name: str) -> Any:
    """Somebody who can sign in, with 100.00."""
    made = await client.call("user_register", name=name, email=f"{name}@example.org", password=PASSWORD)
    await client.credit(account_id=made.account.account_id, amount="100.00")
    return made


async def ended(client: Client, account_id: int) -> int:
    """Read until the daemon closes the connection; the code."""
    try:
        while True:
            await client.balance(account_id=account_id)
            await trio.lowlevel.checkpoint()
    except ConnectionEnded as error:
        return error.code
    except LedgerError as error:
        assert error.code is ErrorCode.SESSION_EXPIRED  # noqa: PT017
        return 4401


async def test_signing_up_gives_an_account_at_zero_a_token_and_the_e_mail_to_nobody_else(dev):
    async with connections() as connect:
        nobody = await connect(dev)
        made = await nobody.call(
            "user_register", name="Ada", email="ada@signup.example", password=PASSWORD, currency="EUR"
        )
        assert (made.account.balance, made.account.currency, made.account.version) == ("0.00", "EUR", 0)
        ada = await connect(dev, made.token)
        assert (await ada.call("session_status")).user == made.user
        for email in ("ada@signup.example", "ADA@Signup.Example"):
            error = await refused(nobody, "user_register", name="Eve", email=email, password=PASSWORD)
            assert error.code is ErrorCode.ALREADY_EXISTS
        error = await refused(nobody, "user_register", name=" ", email="ada", password="short")
        assert sorted(problem["pointer"] for problem in error.data["errors"]) == ["/email", "/name", "/password"]

        opened = await ada.call("account_open", currency="JPY")
        assert (opened.user_id, opened.balance) == (made.user.user_id, "0")
        changed = await ada.call("user_update", name="Ada L.", email="Ada.L@signup.example")
        session = await nobody.call("session_login", email="ada.l@SIGNUP.example", password=PASSWORD)
        assert session.user == changed
        assert (await refused(nobody, "session_login", email="ada@signup.example", password=PASSWORD)).code is (
            ErrorCode.INVALID_CREDENTIALS
        )


async def test_wrong_passwords_are_counted_by_all_daemons_together(serve):
    async with connections() as connect:
        daemons = [serve(LEDGERD_LOGIN_FAILURES_PER_MIN="4") for _ in range(2)]
        operator = await connect(daemons[0], daemons[0].token)
        await person(operator, "guessed")
        clients = [await connect(daemon) for daemon in daemons]
        told: list[ErrorCode] = []

        async def guess(client: Client) -> None:
            for _ in range(4):
                error = await refused(client, "session_login", email="Guessed@example.org", password="wrong password")
                told.append(error.code)

        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(guess, client)
        assert sorted(told) == [ErrorCode.INVALID_CREDENTIALS] * 4 + [ErrorCode.RATE_LIMITED] * 4

        # The right password and another e-mail from this address have to wait as well, at either daemon.
        for client in clients:
            for email in ("guessed@example.org", "nobody@example.org"):
                error = await refused(client, "session_login", email=email, password=PASSWORD)
                assert error.code is ErrorCode.RATE_LIMITED
                assert 0 < error.data["retry_after_ms"] <= 15_000


async def test_after_the_answer_to_a_disabling_no_daemon_posts_a_debit_of_the_user(serve):
    async with connections() as connect:
        daemons = [serve() for _ in range(2)]
        operator = await connect(daemons[0], daemons[0].token)
        made = await person(operator, "spender")
        account = made.account.account_id
        spenders = [await connect(daemon, made.token) for daemon in daemons]
        spent = 0

        async def spend(client: Client) -> None:
            nonlocal spent
            while True:
                try:
                    await client.debit(account_id=account, amount="0.01")
                except LedgerError as error:
                    assert error.code is ErrorCode.USER_DISABLED  # noqa: PT017
                    return
                spent += 1

        async with trio.open_nursery() as nursery:
            for client in spenders:
                for _ in range(4):
                    nursery.start_soon(spend, client)
            while spent < 20:
                await operator.call("system_ping")
            assert (await operator.call("user_disable", user_id=made.user.user_id)).status == "disabled"
            at_the_answer = await operator.balance(account_id=account)
        assert await operator.balance(account_id=account) == at_the_answer

        other = await connect(daemons[1])
        session = await other.call("session_login", email="spender@example.org", password=PASSWORD)
        assert session.user.status == "disabled"
        assert (await other.balance()).version == at_the_answer.version
        assert (await refused(other, "debit", amount="0.01")).code is ErrorCode.USER_DISABLED
        await operator.credit(account_id=account, amount="1.00")
        await operator.call("user_enable", user_id=made.user.user_id)
        assert (await other.debit(amount="0.01")).status == "posted"


async def test_a_revoked_token_and_a_changed_password_end_the_connections_at_the_other_daemon(serve):
    async with connections() as connect:
        one, other = serve(), serve()
        operator = await connect(one, one.token)
        made = await person(operator, "careful")
        account = made.account.account_id
        token = await operator.call("token_create", scopes=["read"], user_id=made.user.user_id)
        there = await connect(other, token.token)
        await there.balance(account_id=account)
        await operator.call("token_revoke", token_id=token.token_id)
        with trio.fail_after(10):
            assert await ended(there, account) == 4401

        here, there = await connect(one), await connect(other)
        for client in (here, there):
            await client.call("session_login", email="careful@example.org", password=PASSWORD)
        # The token of the registration, and that of the session at the other daemon.
        changed = await here.call("session_change_password", password=PASSWORD, new_password="battery staple")
        assert changed.revoked == 2
        with trio.fail_after(10):
            assert await ended(there, account) == 4401
        assert (await here.balance(account_id=account)).balance == "100.00"
        fresh = await connect(other)
        wrong = await refused(fresh, "session_login", email="careful@example.org", password=PASSWORD)
        assert wrong.code is ErrorCode.INVALID_CREDENTIALS
        assert (await fresh.call("session_login", email="careful@example.org", password="battery staple")).authenticated


async def test_who_signs_in_shortly_before_the_end_is_told_when_it_comes(dev):
    async with connections() as connect:
        operator = await connect(dev, dev.token)
        expires_at = (datetime.now(UTC) + timedelta(seconds=50)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        token = await operator.call("token_create", scopes=["service"], expires_at=expires_at)
        told, notices = trio.open_memory_channel[Notice](1)
        await connect(dev, token.token, on_notice=told.send_nowait)
        with trio.fail_after(10):
            assert await notices.receive() == Notice(type="expiring", expires_at=expires_at)
