"""What the gateway and the hub ask of the database: one method per question, each one crossing.

Lives as long as the daemon. Between two generations every method raises StorageUnavailable.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import asyncpg
import trio

from ledgerd.engine.ports import (
    AccountFacts,
    AccountRef,
    AccountState,
    AttemptState,
    BalanceState,
    LedgerFacts,
    Place,
    Principal,
    Record,
    StorageUnavailable,
    Stretch,
    TokenState,
    UserState,
)
from ledgerd.storage import commit_order, rows
from ledgerd.storage.connection import Crossing
from ledgerd.storage.queries import QUERIES
from ledgerd_protocol.errors import ERROR_CODES, ErrorCode, LedgerError

T = TypeVar("T")


class Readers:
    """A few connections of one generation for everything but money. Whoever asks waits for a free one."""

    def __init__(self, crossing: Crossing, connections: Sequence[asyncpg.Connection]) -> None:
        self._crossing = crossing
        self._free = list(connections)
        self._limiter = trio.CapacityLimiter(len(connections))

    async def run(self, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        """Run one unit of work on a free connection."""
        async with self._limiter:
            connection = self._free.pop()
            try:
                return await self._crossing.run(lambda: work(connection), connection)
            finally:
                self._free.append(connection)


class PostgresBooks:
    """See `ledgerd.engine.ports.Books` for what each method answers and raises."""

    def __init__(self) -> None:
        self._readers: Readers | None = None
        self._facts: LedgerFacts | None = None

    @property
    def connected(self) -> bool:
        """Whether a generation is running."""
        return self._readers is not None

    def attach(self, readers: Readers, facts: LedgerFacts) -> None:
        """A generation begins."""
        self._readers = readers
        self._facts = facts

    def detach(self) -> None:
        """The generation is over; its facts stay known."""
        self._readers = None

    def facts(self) -> LedgerFacts:
        """Epoch and currencies, as read when the daemon connected."""
        if self._facts is None:
            raise StorageUnavailable("the database has not been reached yet")
        return self._facts

    async def _run(self, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        if self._readers is None:
            raise StorageUnavailable("the database is not reachable")
        return await self._readers.run(work)

    async def _fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        return await self._run(lambda connection: connection.fetch(QUERIES[query], *arguments))

    async def _row(self, query: str, *arguments: Any) -> asyncpg.Record | None:
        return await self._run(lambda connection: connection.fetchrow(QUERIES[query], *arguments))

    async def ping(self) -> None:
        """One round trip."""
        await self._run(lambda connection: connection.fetchval("SELECT 1"))

    # -- directory and feed ---------------------------------------------------------------------------------------

    async def find_accounts(self, refs: Sequence[tuple[AccountRef, str]]) -> list[AccountFacts | None]:
        found: list[AccountFacts | None] = [None] * len(refs)
        for row in await self._fetch(
            "find_accounts",
            [ref.account_id for ref, _ in refs],
            [ref.user_id for ref, _ in refs],
            [currency for _, currency in refs],
        ):
            found[row["n"] - 1] = AccountFacts(row["account_id"], row["user_id"], row["currency"], row["scale"])
        return found

    async def account_states(self, account_ids: Sequence[int]) -> list[AccountState]:
        return list(map(rows.account_state, await self._fetch("account_states", list(account_ids))))

    async def history(self, account_id: int, after_version: int, limit: int) -> list[Record]:
        return list(map(rows.record, await self._fetch("history", account_id, after_version, limit)))

    async def heads(self, account_ids: Sequence[int]) -> dict[int, int]:
        return {row["account_id"]: row["version"] for row in await self._fetch("heads", list(account_ids))}

    async def unknown_accounts(self, user_ids: Sequence[int], known: Sequence[int], limit: int) -> list[AccountState]:
        found = await self._fetch("unknown_accounts", list(user_ids), list(known), limit)
        return list(map(rows.account_state, found))

    async def here(self) -> Place:
        row = await self._row("snapshot")
        assert row is not None
        return commit_order.parse(row["now"]).place

    async def place(self, position: str) -> Place | None:
        snapshot = commit_order.low_water(position)
        row = await self._row("snapshot")
        assert row is not None
        if snapshot is None or snapshot.next > commit_order.parse(row["now"]).next:
            return None
        return snapshot.place

    async def committed_since(self, place: Place, limit: int) -> Stretch:
        async def work(connection: asyncpg.Connection) -> Stretch:
            found = await connection.fetch(QUERIES["committed_since"], place.exact, limit)
            now = commit_order.parse(found[0]["now"])
            if found[0]["xact"] is None:
                return Stretch([], now.place, more=False)
            records = list(map(rows.record, found))
            if len(found) < limit:
                return Stretch(commit_order.in_order(records), now.place, more=False)
            # A transaction that had its id before it waited for a lock comes after one with a higher id, which may
            # be beyond this page: then that one is delivered first, and again with its own page.
            last = found[-1]["xact_text"]
            ids = [row["transaction_id"] for row in found]
            earlier = await connection.fetch(QUERIES["committed_before"], ids, last, str(now.next))
            end = commit_order.page_end(commit_order.parse(place.exact), now, int(last))
            return Stretch(commit_order.in_order([*records, *map(rows.record, earlier)]), end.place, more=True)

        return await self._run(work)

    # -- users and tokens -----------------------------------------------------------------------------------------

    async def token_by_hash(self, token_hash: bytes) -> TokenState | None:
        async def work(connection: asyncpg.Connection) -> asyncpg.Record | None:
            token_id = await connection.fetchval(QUERIES["token_id_by_hash"], token_hash)
            return None if token_id is None else await connection.fetchrow(QUERIES["token"], token_id)

        row = await self._run(work)
        return None if row is None else rows.token_state(row)

    async def login_material(self, email: str) -> tuple[UserState, str | None] | None:
        async def work(connection: asyncpg.Connection) -> tuple[UserState, str | None] | None:
            material = await connection.fetchrow(QUERIES["login_material"], email)
            if material["user_id"] is None:
                return None
            user = await connection.fetchrow(QUERIES["user"], material["user_id"])
            return rows.user_state(user), material["password_hash"]

        return await self._run(work)

    async def register_user(
        self,
        *,
        name: str,
        email: str | None,
        password_hash: str | None,
        currency: str,
        scale: int,
        token_hash: bytes,
        scopes: Sequence[str],
        expires_at_s: float | None,
    ) -> tuple[UserState, AccountState, TokenState]:
        async def work(connection: asyncpg.Connection) -> tuple[UserState, AccountState, TokenState]:
            made = await connection.fetchrow(
                QUERIES["register_user"],
                name,
                email,
                password_hash,
                currency,
                scale,
                token_hash,
                list(scopes),
                _time(expires_at_s),
            )
            user = await connection.fetchrow(QUERIES["user"], made["user_id"])
            account = await connection.fetchrow(QUERIES["account_states"], [made["account_id"]])
            token = await connection.fetchrow(QUERIES["token"], made["token_id"])
            return rows.user_state(user), rows.account_state(account), rows.token_state(token)

        try:
            return await self._run(work)
        except asyncpg.UniqueViolationError as error:
            raise LedgerError(
                ErrorCode.ALREADY_EXISTS, "A user with this e-mail exists already.", resource="user"
            ) from error

    async def user(self, user_id: int) -> UserState | None:
        row = await self._row("user", user_id)
        return None if row is None else rows.user_state(row)

    async def create_token(
        self,
        *,
        token_hash: bytes,
        user_id: int | None,
        account_id: int | None,
        scopes: Sequence[str],
        expires_at_s: float | None,
        label: str | None,
    ) -> TokenState:
        async def work(connection: asyncpg.Connection) -> asyncpg.Record:
            token_id = await connection.fetchval(
                QUERIES["create_token"], token_hash, user_id, account_id, list(scopes), _time(expires_at_s), label
            )
            return await connection.fetchrow(QUERIES["token"], token_id)

        try:
            return rows.token_state(await self._run(work))
        except asyncpg.ForeignKeyViolationError as error:
            raise LedgerError(ErrorCode.NOT_FOUND, resource="user or account") from error

    async def tokens(self, user_id: int | None, after_token_id: int, limit: int) -> list[TokenState]:
        return list(map(rows.token_state, await self._fetch("tokens", user_id, after_token_id, limit)))

    async def token(self, token_id: int) -> TokenState | None:
        row = await self._row("token", token_id)
        return None if row is None else rows.token_state(row)

    async def revoked_tokens(self, token_ids: Sequence[int]) -> list[int]:
        return [row["token_id"] for row in await self._fetch("revoked_tokens", list(token_ids))]

    async def revoke_tokens(self, *, token_id: int | None = None, user_id: int | None = None) -> int:
        row = await self._row("revoke_tokens", token_id, user_id)
        assert row is not None
        return int(row["revoked"])

    # -- accounts and transactions --------------------------------------------------------------------------------

    async def open_account(self, *, user_id: int, currency: str, scale: int) -> AccountState:
        async def work(connection: asyncpg.Connection) -> asyncpg.Record:
            account_id = await connection.fetchval(QUERIES["open_account"], user_id, currency, scale)
            return await connection.fetchrow(QUERIES["account_states"], [account_id])

        try:
            return rows.account_state(await self._run(work))
        except asyncpg.UniqueViolationError as error:
            raise LedgerError(
                ErrorCode.ALREADY_EXISTS, f"The user has an account in {currency} already.", resource="account"
            ) from error
        except asyncpg.ForeignKeyViolationError as error:
            raise LedgerError(ErrorCode.NOT_FOUND, resource="user") from error

    async def accounts(self, user_id: int | None, after_account_id: int, limit: int) -> list[AccountState]:
        return list(map(rows.account_state, await self._fetch("accounts", user_id, after_account_id, limit)))

    async def balance_at(
        self, account_id: int, *, version: int | None = None, at: str | None = None
    ) -> BalanceState | None:
        async def work(connection: asyncpg.Connection) -> BalanceState | None:
            row = await connection.fetchrow(QUERIES["account_states"], [account_id])
            if row is None:
                return None
            account = rows.account_state(row)
            wanted = version
            if at is not None:
                moment = datetime.fromisoformat(at)
                if moment < row["created_at"]:
                    return None
                wanted = await connection.fetchval(QUERIES["version_at"], account_id, moment)
            if not wanted:
                return _balance(account, 0, 0, 0, 0, account.created_at)
            found = await connection.fetch(QUERIES["history"], account_id, wanted - 1, 1)
            if not found:
                return None
            record = rows.record(found[0])
            side = next(side for side in record.sides if side.account_id == account_id)
            return _balance(account, side.version, side.balance, side.held, side.available, record.created_at)

        return await self._run(work)

    async def transaction(self, transaction_id: str) -> Record | None:
        row = await self._row("records", [transaction_id])
        return None if row is None else rows.record(row)

    async def attempts(self, transaction_id: str, token_ids_of: Principal) -> list[AttemptState]:
        return [
            AttemptState(str(row["attempt_id"]), ERROR_CODES[row["code"]], rows.time_text(row["created_at"]))
            for row in await self._fetch("attempts", transaction_id, token_ids_of.sees_all, token_ids_of.user_id)
        ]

    async def transactions(
        self,
        account_id: int,
        *,
        newest_first: bool,
        after_version: int | None,
        limit: int,
        kind: str | None,
        status: str | None,
        reference: str | None,
        created_from: str | None,
        created_before: str | None,
    ) -> list[Record]:
        found = await self._fetch(
            "transactions_newest_first" if newest_first else "transactions_oldest_first",
            account_id,
            after_version,
            limit,
            kind,
            status,
            reference,
            _moment(created_from),
            _moment(created_before),
        )
        return list(map(rows.record, found))


def _balance(account: AccountState, version: int, balance: int, held: int, available: int, as_of: str) -> BalanceState:
    return BalanceState(
        account_id=account.account_id,
        user_id=account.user_id,
        currency=account.currency,
        scale=account.scale,
        balance=balance,
        held=held,
        available=available,
        version=version,
        as_of=as_of,
    )


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
