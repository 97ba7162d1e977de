"""Secrets, tokens, passwords, and counting the wrong ones."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import trio
import trio.testing

from ledgerd.gateway.authentication import (
    PASSWORD_THREADS,
    Credentials,
    Passwords,
    Tokens,
    network_of,
    new_secret,
    secret_hash,
)
from ledgerd_protocol.errors import ErrorCode, LedgerError
from tests.gateway.fake_books import FakeBooks

PASSWORD = "correct horse battery"

# -- tokens -----------------------------------------------------------------------------------------------------------


def test_a_secret_has_the_prefix_and_256_random_bits() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    for secret in secrets:
        assert secret.startswith("lgd_")
        assert len(base64.urlsafe_b64decode(secret.removeprefix("lgd_") + "=")) == 32


def test_what_is_stored_of_a_secret_is_its_sha_256() -> None:
    assert secret_hash("abc").hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


async def test_a_token_is_remembered_no_longer_than_the_refresh(autojump_clock: Any) -> None:
    books = FakeBooks()
    tokens = Tokens(books, refresh_s=2)  # type: ignore[arg-type]
    secret = books.token("read", user_id=1)
    first = await tokens.principal(secret)
    assert await tokens.principal(secret) == first
    assert books.reads == 1
    books.revoke(secret)
    assert await tokens.principal(secret) == first
    await trio.sleep(2)
    with pytest.raises(LedgerError) as caught:
        await tokens.principal(secret)
    assert caught.value.code is ErrorCode.SESSION_EXPIRED


async def test_text_that_cannot_be_a_secret_is_not_looked_up() -> None:
    books = FakeBooks()
    tokens = Tokens(books, refresh_s=2)  # type: ignore[arg-type]
    for text in ("", "lgd_", "lgd_" + "A" * 42, "xyz_" + "A" * 43, "lgd_" + "é" * 43, new_secret() + "\n"):
        with pytest.raises(LedgerError):
            await tokens.principal(text)
    assert books.reads == 0


# -- passwords --------------------------------------------------------------------------------------------------------


async def test_a_password_matches_itself_and_nothing_matches_nobody() -> None:
    passwords = Passwords()
    stored = await passwords.hash(PASSWORD)
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert await passwords.matches(stored, PASSWORD)
    assert not await passwords.matches(stored, PASSWORD + "x")
    assert not await passwords.matches(None, PASSWORD)


async def test_an_unknown_user_costs_the_same_hash_as_a_wrong_password(monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[str] = []
    passwords = Passwords()
    real = passwords._verify

    def verify(stored: str, given: str) -> bool:
        verified.append(stored)
        return real(stored, given)

    monkeypatch.setattr(passwords, "_verify", verify)
    await passwords.matches(await passwords.hash(PASSWORD), "wrong")
    await passwords.matches(None, "wrong")
    parameters = [stored.rsplit("$", 2)[0] for stored in verified]
    lengths = [[len(part) for part in stored.split("$")] for stored in verified]
    assert parameters[0] == parameters[1]
    assert lengths[0] == lengths[1]


# -- counting ---------------------------------------------------------------------------------------------------------


async def desk(failures_per_min: int) -> tuple[FakeBooks, Credentials]:
    """User 1 with a password, and who checks it."""
    books, passwords = FakeBooks(), Passwords()
    books.passwords["u1@example.org"] = await passwords.hash(PASSWORD)
    return books, Credentials(books, passwords, failures_per_min)  # type: ignore[arg-type]


async def code_of(credentials: Credentials, email: str | None, password: str, address: str = "10.0.0.1") -> ErrorCode:
    with pytest.raises(LedgerError) as caught:
        await credentials.check(email, password, address)
    return caught.value.code


async def test_the_right_password_says_who_it_is_and_costs_no_try() -> None:
    books, credentials = await desk(3)
    for _ in range(5):
        identified = await credentials.check("U1@example.org", PASSWORD, "10.0.0.1")
        assert identified.user.user_id == 1
    assert set(books.tries.values()) == {0}


@pytest.mark.parametrize("email", ["u1@example.org", "u2@example.org", "nobody@example.org", "", None])
async def test_a_wrong_password_asks_the_database_as_much_as_no_such_user_does(email: str | None) -> None:
    books, credentials = await desk(3)
    assert await code_of(credentials, email, "wrong password") is ErrorCode.INVALID_CREDENTIALS
    assert books.reads == (1 if email is None else 2)


async def test_failures_are_counted_for_the_address_and_for_the_email_whether_or_not_it_is_known() -> None:
    _, credentials = await desk(3)
    for address in ("10.0.0.1", "10.0.0.2", "10.0.0.3"):
        assert await code_of(credentials, "nobody@example.org", "x", address) is ErrorCode.INVALID_CREDENTIALS
    assert await code_of(credentials, "nobody@example.org", "x", "10.0.0.4") is ErrorCode.RATE_LIMITED
    for email in ("a@example.org", "b@example.org"):
        assert await code_of(credentials, email, "x", "10.0.0.1") is ErrorCode.INVALID_CREDENTIALS
    assert await code_of(credentials, "u1@example.org", PASSWORD, "10.0.0.1") is ErrorCode.RATE_LIMITED


async def test_with_a_limit_of_zero_nothing_is_counted() -> None:
    books, credentials = await desk(0)
    for _ in range(5):
        assert await code_of(credentials, "u1@example.org", "x") is ErrorCode.INVALID_CREDENTIALS
    assert not books.tries


async def test_who_waits_for_a_turn_holds_no_try() -> None:
    """Otherwise many who know their password, behind one address, would be in each other's way."""
    books, credentials = await desk(PASSWORD_THREADS)
    async with trio.open_nursery() as nursery:
        for _ in range(5 * PASSWORD_THREADS):
            nursery.start_soon(credentials.check, "u1@example.org", PASSWORD, "10.0.0.1")
    assert set(books.tries.values()) == {0}


async def test_attempts_at_once_are_not_more_than_the_limit() -> None:
    _, credentials = await desk(3)
    told: list[ErrorCode] = []

    async def attempt() -> None:
        told.append(await code_of(credentials, "u1@example.org", "wrong password"))

    async with trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(attempt)
    assert told.count(ErrorCode.INVALID_CREDENTIALS) == 3
    assert told.count(ErrorCode.RATE_LIMITED) == 9


async def test_an_attempt_that_is_given_up_is_counted_like_a_wrong_one() -> None:
    books, credentials = await desk(3)
    books.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(credentials.check, "u1@example.org", "wrong password", "10.0.0.1")
        await trio.testing.wait_all_tasks_blocked()
        books.gate.set()
        while not books.tries:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert books.tries["10.0.0.1"] == 1


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", None),
        ("a name", "a name"),
    ],
)
def test_failures_are_counted_for_what_one_subscriber_has(address: str, network: str | None) -> None:
    assert network_of(address) == network
