"""Who is there: tokens, passwords, and noticing when a token stops being good.

Secrets never leave this file but in the answer that made them; nothing here logs one.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import os
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable

import argon2
import structlog
import trio
from msgspec import Struct

from ledgerd.engine.commands import Principal
from ledgerd.engine.ports import Books, StorageUnavailable
from ledgerd.engine.states import TokenState, UserState
from ledgerd.gateway.clock import now_s
from ledgerd.metrics import SIGN_INS
from ledgerd_protocol.errors import ErrorCode, LedgerError

log = structlog.get_logger("ledgerd.gateway.authentication")

TOKEN_PREFIX = "lgd_"  # noqa: S105 - the prefix of every secret, not one
TOKEN_BYTES = 32
_SECRET = re.compile(r"lgd_[A-Za-z0-9_-]{43}")

CACHE_ENTRIES_MAX = 20_000
REVOCATION_BATCH_MAX = 1_000

ARGON2_MEMORY_KIB = 19_456
ARGON2_TIME_COST = 2
ARGON2_PARALLELISM = 1
PASSWORD_THREADS = 2
"""Hashing at once: 19 MiB and a processor for some tens of milliseconds each."""

IPV6_NETWORK_BITS = 64
"""What one subscriber of IPv6 is given: counted one by one, each would have as many addresses as it likes."""


def new_secret() -> str:
    """A fresh token secret."""
    return TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)


def secret_hash(secret: str) -> bytes:
    """What is stored of a secret."""
    return hashlib.sha256(secret.encode()).digest()


def principal_of(state: TokenState) -> Principal:
    """Whom a token acts for."""
    return Principal(
        token_id=state.token_id,
        user_id=state.user_id,
        account_id=state.account_id,
        scopes=frozenset(state.scopes),
        expires_at_s=state.expires_at_s,
    )


def expired(principal: Principal) -> bool:
    """Whether the principal's token is past its expiry."""
    return principal.expires_at_s is not None and principal.expires_at_s <= now_s()


class Tokens:
    """Finds the principal of a secret, and remembers it for ``refresh_s`` seconds."""

    def __init__(self, books: Books, refresh_s: float) -> None:
        self._books = books
        self._refresh_s = refresh_s
        self._known: OrderedDict[bytes, tuple[Principal, float]] = OrderedDict()  # until trio time

    async def principal(self, secret: str) -> Principal:
        """Whom the secret stands for.

        Raises LedgerError ``invalid_credentials`` (no such token) or ``session_expired``, and StorageUnavailable.
        """
        if _SECRET.fullmatch(secret) is None:
            raise _refused_token(ErrorCode.INVALID_CREDENTIALS)
        token_hash = secret_hash(secret)
        known = self._known.get(token_hash)
        if known is not None and known[1] > trio.current_time():
            principal = known[0]
        else:
            principal = await self._read(token_hash)
        if expired(principal):
            raise _refused_token(ErrorCode.SESSION_EXPIRED, principal)
        SIGN_INS.labels("token", "accepted").inc()
        return principal

    async def _read(self, token_hash: bytes) -> Principal:
        asked_at = trio.current_time()
        state = await self._books.token_by_hash(token_hash)
        if state is None:
            raise _refused_token(ErrorCode.INVALID_CREDENTIALS)
        if state.revoked_at is not None:
            self._known.pop(token_hash, None)
            raise _refused_token(ErrorCode.SESSION_EXPIRED, principal_of(state))
        principal = principal_of(state)
        self._known[token_hash] = (principal, asked_at + self._refresh_s)
        self._known.move_to_end(token_hash)
        if len(self._known) > CACHE_ENTRIES_MAX:
            self._known.popitem(last=False)
        return principal

    def forget(self) -> None:
        """Read every token again at its next use; called when this daemon revokes some."""
        self._known.clear()

    async def watch(self, in_use: Callable[[], Iterable[int]], revoked: Callable[[int], None]) -> None:
        """Ask after the tokens in use every ``refresh_s`` seconds; ``revoked`` is told of each that is not good.

        Runs until cancelled. While the database is away nothing is known and nothing is told.
        """
        while True:
            await trio.sleep(self._refresh_s)
            token_ids = sorted(set(in_use()))
            try:
                for start in range(0, len(token_ids), REVOCATION_BATCH_MAX):
                    for token_id in await self._books.revoked_tokens(token_ids[start : start + REVOCATION_BATCH_MAX]):
                        self.forget()
                        log.info("token_revoked_elsewhere", token_id=token_id)
                        revoked(token_id)
            except StorageUnavailable:
                log.debug("token_refresh_skipped")


def _refused_token(code: ErrorCode, principal: Principal | None = None) -> LedgerError:
    """The error for a token that is not good. Nothing of the token is logged: half of a good one would help a thief."""
    SIGN_INS.labels("token", "refused").inc()
    log.info("token_refused", code=code.text, **({} if principal is None else principal.ids()))
    return LedgerError(code)


class Passwords:
    """argon2id in threads, a few at a time. An unknown user costs what a wrong password costs."""

    def __init__(self) -> None:
        self._hasher = argon2.PasswordHasher(
            time_cost=ARGON2_TIME_COST, memory_cost=ARGON2_MEMORY_KIB, parallelism=ARGON2_PARALLELISM
        )
        self._limiter = trio.CapacityLimiter(PASSWORD_THREADS)
        # Random bytes in the place of a hash: nobody knows a password for it, and verifying it takes as long.
        salt, digest = (base64.b64encode(os.urandom(size)).rstrip(b"=").decode() for size in (16, 32))
        parameters = f"m={ARGON2_MEMORY_KIB},t={ARGON2_TIME_COST},p={ARGON2_PARALLELISM}"
        self._nobodys_hash = f"$argon2id$v=19${parameters}${salt}${digest}"

    async def hash(self, password: str) -> str:
        """The text to store."""
        return await trio.to_thread.run_sync(self._hasher.hash, password, limiter=self._limiter, abandon_on_cancel=True)

    async def matches(self, stored: str | None, password: str) -> bool:
        """Whether the password is the stored one; with nothing stored, False after the same work."""
        right = await trio.to_thread.run_sync(
            self._verify, stored or self._nobodys_hash, password, limiter=self._limiter, abandon_on_cancel=True
        )
        return right and stored is not None

    def _verify(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False


class Identified(Struct, frozen=True):
    """Who knows the password, and the hash it was compared with: what is done next may ask that it still is the one."""

    user: UserState
    password_hash: str


class Credentials:
    """Checks e-mails and passwords, a few at a time; wrong ones are counted in the database, for all daemons.

    Of each e-mail, known or not, and of each network address ``failures_per_min`` may be wrong at once, and as many
    more per minute; 0 is no limit.
    """

    def __init__(self, books: Books, passwords: Passwords, failures_per_min: int) -> None:
        self._books = books
        self._passwords = passwords
        self.failures_per_min = failures_per_min
        # Whoever waits for a thread has taken no try yet, or many who give the right password would be in each other's
        # way: only as many tries are out as passwords are being looked at.
        self._turns = trio.CapacityLimiter(PASSWORD_THREADS)

    async def check(self, email: str | None, password: str, address: str) -> Identified:
        """Whose e-mail and password these are. None is the e-mail of nobody.

        Raises LedgerError ``rate_limited``, ``invalid_credentials`` (after the same work whether or not there is such a
        user), and StorageUnavailable.
        """
        network = network_of(address)
        async with self._turns:
            await self._take_try(email, network)
            material = None if email is None else await self._books.login_material(email)
            stored = None if material is None else material[1]
            if not await self._passwords.matches(stored, password) or material is None or stored is None:
                SIGN_INS.labels("password", "refused").inc()
                # Whose it is, if anybody's; never the e-mail: people type their passwords there.
                user_id = None if material is None else material[0].user_id
                log.info("password_refused", address=network, user_id=user_id)
                raise LedgerError(ErrorCode.INVALID_CREDENTIALS)
            SIGN_INS.labels("password", "accepted").inc()
            if self.failures_per_min:
                await self._books.return_password_try(email, network, self.failures_per_min)
        return Identified(user=material[0], password_hash=stored)

    async def _take_try(self, email: str | None, network: str | None) -> None:
        if not self.failures_per_min:
            return
        wait_ms = await self._books.take_password_try(email, network, self.failures_per_min)
        if wait_ms > 0:
            SIGN_INS.labels("password", "throttled").inc()
            log.warning("login_throttled", address=network, retry_after_ms=wait_ms)
            raise LedgerError(ErrorCode.RATE_LIMITED, retry_after_ms=wait_ms)


def network_of(address: str) -> str | None:
    """What failures from a peer's address are counted for; None for the empty address of a Unix socket's peer."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address or None
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, IPV6_NETWORK_BITS), strict=False))
